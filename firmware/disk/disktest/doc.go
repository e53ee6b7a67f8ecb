// SPDX-License-Identifier: Apache-2.0

// Package disktest has a volume that fails when it is told to, for tests of what
// uses volumes.
//
// It knows what is asked of a volume, and nothing of who asks.
package disktest
