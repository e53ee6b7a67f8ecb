// SPDX-License-Identifier: Apache-2.0

// Package qmp is a client of the QEMU Machine Protocol (QEMU's
// docs/interop/qmp-spec.rst) over any byte stream, with ids, deadlines and
// bounded events.
//
//	connected ──greeting──► negotiating ──qmp_capabilities──► ready ──► ended(reason)
//
// Nothing that arrives is trusted: the bytes come through a host that may not
// be the VMM it claims to be. A line is at most MaxLine bytes of one JSON
// object, which is exactly one of greeting (once, first), event, or the answer
// to an id under way; anything else ends the client with ErrProtocol. Events
// that nobody takes are dropped, oldest first, and counted.
//
// The package does not know any command; callers name them and bring the
// argument and result structs.
package qmp
