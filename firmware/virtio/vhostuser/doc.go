// SPDX-License-Identifier: Apache-2.0

// Package vhostuser is the back end of the vhost-user protocol: it lets a
// front end (QEMU) connect a guest's virtqueues to a virtio.Device of ours.
//
//	front end ── Conn ──► Server ─► Device.Serve ── virtq ──► guest memory
//	   │ set-up messages    │  Mapper: MEM_TABLE entry → region
//	   └─ kick, call ───────┘  Notifiers: vring file or doorbell → Kick, Call
//
// Two ways lead to a guest, and differ in the three interfaces only:
//
//	           local socket                   bus
//	Conn       SocketConn: SCM_RIGHTS         supplied by the bus: no fds
//	Mapper     FDMapper: mmap of the fd       supplied by the bus: part of its window
//	Notifiers  EventFDs: the fds received     Doorbells: Ring(queue) and a callback
//
// # Goroutines
//
// The goroutine that calls Serve handles the messages, one after the other; only
// the turn to run rings (see Server) may change what they set up beside it. Each running ring has a goroutine in Device.Serve,
// and the device's workers below it. Messages never wait for I/O, except those
// whose meaning is to wait until everything taken is completed: what stops rings
// (GET_VRING_BASE, SET_VRING_ENABLE(0), RESET_DEVICE, SET_STATUS 0), and what changes
// them while they run (memory, the log and what is logged, SET_VRING_KICK).
//
// # States of a ring
//
//	         SET_VRING_KICK                  SET_VRING_ENABLE 1
//	stopped ────────────────► started ◄──────────────────────────► running
//	   ▲                         │           SET_VRING_ENABLE 0       │
//	   └───── GET_VRING_BASE ────┴──────────── GET_VRING_BASE ────────┘
//	                             RESET_DEVICE, SET_STATUS 0: all rings, and disabled
//
// A ring runs as soon as it is started and enabled, without waiting for a first
// kick: a predecessor may have consumed it. It goes on at the used index found in
// guest memory (see virtq) and notifies the guest once.
//
// A ring that is started and enabled while another front end of the device runs rings
// waits for those to stop.
//
// # A driver or a front end that breaks the rules
//
// A ring that breaks the virtio protocol stops the device: all rings
// stop, the reason is logged once and reported, the error fds are signalled, and the
// connection stays, as does everything else in the process. It works again
// after the front end has stopped all rings, as it does on a reset by the driver;
// until then GET_STATUS has DEVICE_NEEDS_RESET.
//
// A front end that breaks vhost-user (sizes, order, limits, fds) ends the session
// with a *MessageError, after a negative acknowledgement if it asked for one. File
// descriptors that nobody claimed are closed.
//
// # Memory that changes
//
// Memory comes as a whole table, or region by region (CONFIGURE_MEM_SLOTS). Either
// way running rings are drained and go on with the new table. A front end that
// changes regions one by one takes one that changes its size away before it brings it
// again: a ring that lies in it waits for that, and then runs.
//
// # Dirty pages
//
// A front end that migrates its guest gives a bitmap of pages (SET_LOG_BASE), and has
// what devices write logged in it by VHOST_F_LOG_ALL and the log flag of rings. To
// change that, rings are drained and go on: a ring either logs all the time or never,
// which costs nothing. A bitmap that has no room for a page, or is taken away, stops the
// device: the guest would find old data after its migration.
//
// Supported: protocol features MQ, REPLY_ACK, CONFIG, STATUS, RESET_DEVICE, and where there are file descriptors
// CONFIGURE_MEM_SLOTS, LOG_SHMFD and, for a device that is a virtio.ConfigWatcher, BACKEND_REQ. Unknown and unsupported requests end the session, since an
// answer may be expected that we can not give.
//
// The package does not know what the device does, nor how bytes cross the bus.
package vhostuser
