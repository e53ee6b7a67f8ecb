// SPDX-License-Identifier: Apache-2.0

// Command guest is pid 1 of the emulated server's demonstration instance,
// twice: as /init of its initramfs it loads modules, mounts the disk that the
// card serves (or the partition of it that root= names) and switches to it; as
// /sbin/init on that disk it proves that the disk holds what was written, then
// keeps a shell on the console and powers off when the power button is pressed.
//
// The proof, one line a file, which davit compares with the card's volume. The
// nonce is davit.nonce on the kernel's command line or else the disk's serial
// number:
//
//	DAVIT-PROOF nonce=HEX disk=NAME offset=BYTES length=BYTES sha256=HEX
//	DAVIT-PROOF nonce=HEX end
//
// With davit.load on its kernel's command line it then writes, syncs and
// verifies until it is told to power off, a line a round:
//
//	DAVIT-LOAD boot=N round=N ok
//
// It knows nothing of cards: to it, the disk is a virtio disk.
package main
