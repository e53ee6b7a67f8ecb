// SPDX-License-Identifier: Apache-2.0

// Package vcard is one virtual card: the share of a card that one host gets,
// and the only part of the card that reads bytes which a host or guest wrote.
//
//	davitd ── control socket ──► Card ─┬─ devices: volume + virtio-blk ◄─┬─ vhost-user on a bus channel
//	          (firmware/control)       │    one session at a time        └─ vhost-user on a local socket
//	                                   ├─ vmms: QMP, console             ◄── bus channels that it opens
//	                                   ├─ doors: bytes for the mailbox   ◄── bus channels that it accepts
//	                                   └─ window: the host's memory pool
//
// A device's life, as DeviceStatus shows it:
//
//	AddDevice ──► pending ──front end──► starting ──ring runs──► ready
//	                 ▲                      │  ▲                   │
//	                 │◄── front end gone ───┴──┼───────────────────┤
//	                 │                         └─rings stopped─────┤
//	              failed ◄── guest or host broke a rule, volume ───┘
//	                 │
//	RemoveDevice ──► stopping ──drained, flushed──► stopped ("removed"), forgotten
//
// Hostile host. The host end of the bus, and every guest, may do anything. A
// device's front end may name only memory inside its instance's range of the
// pool. What breaks a rule ends that channel or stops that device, with the
// reason in its status, counts in HostStatus.Alerts and is logged at a bounded
// rate; everything else goes on. What the host says of its VMMs is passed on
// as what the host says.
//
// I/O needs neither controller nor davitd: devices run until RemoveDevice,
// Shutdown, or the end of the process. Ring state is in guest memory only, so a
// process killed at any moment loses nothing that a guest was told is written;
// its successor is given the volumes again and continues.
//
// The package does not know instances' specs, keys, policy or where volumes
// are kept; how it is confined is firmware/vcard/sandbox.
package vcard
