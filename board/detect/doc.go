// SPDX-License-Identifier: Apache-2.0

// Package detect holds the one list of boards, and picks from it by name or by
// what sysfs shows.
package detect
