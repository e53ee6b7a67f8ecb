// SPDX-License-Identifier: Apache-2.0

// Package rig is the emulated server: everything of the picture on one machine,
// as ordinary processes of an ordinary user.
//
//	swtpm ── card (QEMU aarch64, UEFI, the real image)
//	           │ virtio-serial: bus        │ NVDIMM: the pool, a file in /dev/shm
//	         davit-hostd ── QEMU: instance │ memory-backend-file: the same pool
//	           └───────────────────────────┘
//
// A Server is one run: a private folder, private ports, and processes that end
// with it. Sequence brings one up step by step; each step is a row that a
// person or a test reads. Tests use a Server directly and kill what they like.
//
// The rig plays the operator's and the data centre's part (it has the operator's
// key, it plugs the card in, it starts hostd); what the card then does, it does
// by itself.
package rig
