// SPDX-License-Identifier: Apache-2.0

// Package state holds Cell, a value with one writer and many watchers. It
// knows nothing of what the value means, and keeps no history: a slow watcher
// sees the newest value, not each one.
package state
