// SPDX-License-Identifier: Apache-2.0

// Package cli tests the davit command as its users run it: the built program,
// in a folder of its own, against a real server on the loopback board. It looks
// at what is printed, for people and with --json, at exit codes (0 done, 1 it
// did not work, 2 it was typed wrongly), and whether errors name what to mend.
//
// It has no exported names: it is tests only.
package cli
