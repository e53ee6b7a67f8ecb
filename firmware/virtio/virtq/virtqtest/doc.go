// SPDX-License-Identifier: Apache-2.0

// Package virtqtest is the driver's side of a split virtqueue, for tests and
// benchmarks of devices: it lays out rings and buffers in memory that can be shared
// by file descriptor, submits requests and collects what the device used.
//
//	Memory (memfd)   0 ┌ never allocated: address 0 stays invalid
//	              4096 ├ rings of the first Driver
//	                   ├ buffers (Alloc)
//	                   └ rings of the next Driver, …
//
// A Driver behaves as the specification demands, and is used by one goroutine. Fast
// ones Prepare their chains once and Offer them again: no request allocates, and
// none writes more than an entry of the ring.
//
// What is written before Publish is seen by the device that sees the index, and
// Collect sees all that was written before the used index (Virtio 1.2, 2.7.13 and
// 2.7.14): both indices are accessed by Go's atomics, see package virtq.
//
// Its Set methods write any descriptor, ring entry or index instead, for drivers that do not behave.
//
// The package does not know what requests mean, nor vhost-user.
package virtqtest
