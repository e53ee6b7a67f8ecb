// SPDX-License-Identifier: Apache-2.0

// Package vcardtest is the world around a virtual card, for tests: a host's end
// of the bus that behaves, or does as the test says, and a guest's driver of a
// disk behind it.
//
//	Disk ── rings in Pool ── Front ── vhost-user channel ─┐
//	Host: orders, QMP, console, doors ────────────────────┴─ bus ── card under test
//
// The pool is one memory file: the Host's VMMs, the drivers' rings and the
// card's window are all in it, as on a real machine.
//
// The package does not know how the card under test runs: in the same process
// or as a process of its own.
package vcardtest
