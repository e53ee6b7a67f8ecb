// SPDX-License-Identifier: Apache-2.0

// Package disk holds volumes: what a block device stores its data on.
//
//	block device ── bufs, offset ──► Volume ── file (OpenFile)
//	                                        ├─ memory (NewMemory; for tests)
//	                                        ├─ nothing (NewNull; for measurements)
//	                                        ├─ server (package nbd)
//	                                        └─ overlay (OpenOverlay) ─┬─ base: a Volume, read-only
//	                                                                  └─ store: a Volume, for what was changed
//
// A Volume is a number of bytes, a multiple of SectorSize, which may grow (see
// Growable) but never shrinks. I/O is
// vectored and goes to or from the caller's buffers directly, which may be
// guest memory: an implementation must not keep them, and must not rely on their
// content staying the same while it reads it.
//
// Durability: what was written before Flush was called survives a power cut
// once Flush has returned nil. Nothing else is promised.
//
// Discarding and efficient zeroing are optional, see Trimmer.
//
// The package does not know virtio, requests, sessions or who may use a volume.
package disk
