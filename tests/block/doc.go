// SPDX-License-Identifier: Apache-2.0

// Package block drives the block back end with the real peer: an unmodified
// QEMU as vhost-user front end, and in it SeaBIOS and Linux as drivers.
//
//	test process              back-end process            QEMU (TCG)
//	┌──────────────┐ kill -9  ┌────────────────────┐      ┌──────────────────┐
//	│ checks the   │────────► │ vhostuser.Serve    │◄────►│ vhost-user-blk   │
//	│ volume after │ restart  │ vblk, disk.File    │socket│  boot sector or  │
//	│ wards        │          └────────────────────┘      │  Linux + guest/  │
//	└──────────────┘ ◄────────── serial console ──────────└──────────────────┘
//
// The guest program (folder guest) writes, discards, zeroes and verifies on
// all queues against a copy in its own memory, and reports a digest of the whole disk,
// which is compared with the volume.
//
// QEMU and the kernel come from package tools/packages; DAVIT_QEMU_X86 names
// another QEMU binary.
package block
