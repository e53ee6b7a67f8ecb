// SPDX-License-Identifier: Apache-2.0

// Package virtq is the device side of a virtqueue: the split ring of Virtio 1.2
// section 2.7 and the packed ring of section 2.8, both with indirect descriptors
// and event suppression.
//
//	        driver writes                         device writes
//	┌────────────┐  ┌──────────────────┐   ┌──────────────────────┐
//	│ descriptor │  │ available ring   │   │ used ring            │
//	│ table      │◄─│ idx  ring[size]  │   │ idx  elements[size]  │
//	│ addr len   │  │ used_event       │   │ avail_event          │
//	│ flags next │  └──────────────────┘   └──────────────────────┘
//	└────────────┘        next ▲                  ▲ used
//	                           │                  │
//	          used ≤ completed ≤ … ≤ next ≤ avail.idx   (modulo 2^16)
//	                └─ taken, in flight ─┘└ waiting ┘
//
// Queue holds what both formats share; layout is what they differ in: split and
// packed, which has a picture of its own.
//
// # Order
//
// Requests may be worked on in parallel and may finish in any order, but without
// an in-flight region they are published in ring order. Hence used.idx..avail.idx in
// guest memory is, at any moment and also after the process is killed, exactly the
// set of requests that the driver has not seen completed. A Queue resumes from there:
// requests must be idempotent while they are outstanding, as those of a disk are.
//
// With an in-flight region (see inflight.go) a split queue publishes requests as
// they finish, and resumes from what the region says is in flight. A packed ring does not
// tell where the device was, so it resumes after a kill only with a region, which
// keeps its position; it stays in ring order.
//
// # Who owns what
//
// Serve has one taker: it takes requests in batches, executes those that do not
// have to wait, and lends the others to workers. The next index and the waiting for
// kicks belong to whoever is inside Take (takeMu), the used ring to whoever holds
// usedMu. Any number of goroutines may call Take and Complete.
//
// # Polling
//
// Before it sleeps, a taker looks at the ring for a while (see poller), and asks
// the driver for no kicks meanwhile. With workers busy it does not: they want the
// processor.
//
// # A hostile driver
//
// All of guest memory can change at any time. Each index, descriptor and event
// word is read once into memory of this process, checked there, and used from
// there. What breaks the protocol is a *ProtocolError, which ends the queue: it
// takes and publishes nothing more. Chains are bounded: at most the queue size
// of direct and MaxIndirect of indirect descriptors, hence loops end.
//
// # Memory order
//
// Go has no 16-bit atomics, so indices are accessed through the aligned 32-bit
// word that holds them: loads take the whole word, stores of used.idx write
// it together with the flags where these are always 0, and what shares its word with a
// field of somebody else is exchanged by compare-and-swap. Go's atomics are sequentially
// consistent on every architecture, which gives the two orders that the ring needs:
// release of used elements before used.idx, and store-before-load between
// arming the notification and looking again (and between used.idx and used_event).
// The machine must be little-endian, as amd64 and arm64 are.
//
// # Migration
//
// With a Log, each page that the device writes to is marked after the write, and
// before the driver can see the completion of the request that it belongs to.
//
// The package does not know what a request means, where the ring addresses
// come from, or how a notification travels.
package virtq
