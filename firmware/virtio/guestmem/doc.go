// SPDX-License-Identifier: Apache-2.0

// Package guestmem gives bounds-checked access to the memory of a guest.
//
// A Memory is an immutable, sorted table of regions, each a piece of memory
// mapped into this process and known under two addresses: its guest-physical
// address (used by descriptors) and its address in the front end's process
// (used by vhost-user for rings).
//
//	guest-physical  0 ┌──────────┐        ┌──────────┐ user address
//	                  │ region 0 │───────►│ bytes    │◄── file (FD) or
//	       0x000A0000 ├──────────┤        ├──────────┤    DMA window
//	                  │  hole    │        │ bytes    │
//	       0x00100000 ├──────────┤  ┌────►└──────────┘
//	                  │ region 1 │──┘
//	                  └──────────┘
//
// A front end that changes its memory region by region gets a new table for each
// step; the mappings that stay are counted, and the last table unmaps them.
//
// Every address and length comes from a guest or a host and is hostile: sums
// are checked for overflow, regions for overlap, alignment and size, and a
// file for being as long as the region claims.
//
// What can not be checked once and for all is that the file keeps its length: a
// peer that truncates it later makes an access raise SIGBUS. Goroutines which
// touch guest memory therefore run under Guard, which turns such a fault into a
// *FaultError instead of the end of the process. System calls (preadv, pwritev)
// on truncated memory return EFAULT and need no guard.
//
// A Log tells a front end that migrates its guest which pages were written to
// meanwhile. It is as hostile as memory: bounded, and guarded against truncation by
// itself.
//
// The package does not know rings, descriptors or protocols.
package guestmem
