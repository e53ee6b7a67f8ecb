// SPDX-License-Identifier: Apache-2.0

// Package vblk is the virtio block device (Virtio 1.2, 5.2) over a disk.Volume.
//
//	readable                        writable
//	┌──────────────────┬──────┐     ┌──────┬────────┐
//	│ type reserved    │ data │     │ data │ status │
//	│ sector (512 B)   │ (out)│     │ (in) │ 1 byte │
//	└──────────────────┴──────┘     └──────┴────────┘
//	  16 bytes, copied once
//
// Data moves between the guest's memory and the volume without a copy on the
// way. A request that is wrong in itself (range, length, unknown type) or that the volume fails
// gets its status, and the device goes on; a request without room for header or
// status breaks the virtio protocol and ends the queue.
//
// # Cache and flush
//
// A flush request ends when everything whose completion the guest could have
// seen before it submitted the flush is durable. Requests execute concurrently, so
// it says nothing about writes that were in flight beside it. A driver that did not
// accept VIRTIO_BLK_F_FLUSH, or turned the write cache off, gets each write made durable before it completes.
//
// Turning the cache off by the driver (VIRTIO_BLK_F_CONFIG_WCE) is offered only if
// asked for, because front ends do not repeat the setting to a back end that was
// restarted, and a guest that relies on it would lose writes.
//
// # After a restart
//
// Requests that were not completed are executed again (see virtq). Reads, writes,
// flushes, discards and zeroing may be repeated as long as the guest has not seen
// them complete: the result is the same.
//
// # Who executes
//
// Reads and writes that do not have to wait for a device (disk.Prompter) are
// executed where they are taken; all else goes to a worker of the queue, of which
// there are up to Options.Depth.
//
// # Growing
//
// Grow makes room that the volume's store got usable while drivers run, and tells
// them. Nothing shrinks: a driver has no way to give up what it uses.
//
// # Limits
//
// A device may be held to a number of requests and of bytes a second. A request waits
// for its turn before it is executed; those of all queues pass in the order in which they came.
//
// # Stopping
//
// Serve returns when what executes has ended; what waits for its turn is left, or executed
// at once where requests may not be left (see virtq.Queue.MayLeave); a queue whose driver broke the protocol leaves it. So that this does not take long,
// whatever a guest asked for, a read or write moves in pieces of 64 MiB and
// is given up between two of them where the queue allows it (it is then executed again, as after a restart),
// and a request zeroes at most 64 MiB, in one range.
//
// The package does not know vhost-user, where the volume comes from, or how
// many guests there are.
package vblk
