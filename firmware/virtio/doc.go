// SPDX-License-Identifier: Apache-2.0

// Package virtio holds what every virtio device and every transport must agree
// on: the feature bits and the Device interface.
//
//	           ┌────────────── Device (vblk, …) ──────────────┐
//	transport  │ Info  ReadConfig  WriteConfig   Serve(queue) │
//	(vhostuser)│                                  ▲           │
//	           └──────────────────────────────────┼───────────┘
//	                                    Queue = virtq.Queue + index + features
//
// A transport negotiates features, maps the guest's memory, builds a
// virtq.Queue for each ring that the driver starts, and hands it to the device,
// which serves it until told to stop. Terms are those of Virtio 1.2.
//
// The package does not know how a device is reached (vhost-user, PCI), what a
// request looks like, or where data is kept.
package virtio
