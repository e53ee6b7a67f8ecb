// SPDX-License-Identifier: Apache-2.0

// Package vhostuser is the back end of the vhost-user protocol: it lets a
// front end (QEMU) connect a guest's virtqueues to a virtio.Device of ours.
//
//	front end ── Conn ──► Serve ──► Device.Serve ── virtq ──► guest memory
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
// The goroutine that calls Serve handles the messages, one after the other, and
// owns all that they set up. Each running ring has a goroutine in Device.Serve,
// and the device's workers below it. Messages never wait for I/O, except those
// whose meaning is to wait: GET_VRING_BASE, SET_VRING_ENABLE(0), and a memory
// table that replaces one in use return when everything taken is completed.
//
// # States of a ring
//
//	         SET_VRING_KICK                  SET_VRING_ENABLE 1
//	stopped ────────────────► started ◄──────────────────────────► running
//	   ▲                         │           SET_VRING_ENABLE 0       │
//	   └───── GET_VRING_BASE ────┴──────────── GET_VRING_BASE ────────┘
//
// A ring runs as soon as it is started and enabled, without waiting for a first
// kick: a predecessor may have consumed it. It goes on at the used index found in
// guest memory (see virtq) and notifies the guest once.
//
// # A driver or a front end that breaks the rules
//
// A ring that breaks the virtio protocol stops the device: all rings
// stop, the reason is logged once and reported, the error fds are signalled, and the
// connection stays, as does everything else in the process. It works again
// after the front end has stopped all rings, as it does on a reset by the driver.
//
// A front end that breaks vhost-user (sizes, order, limits, fds) ends the session
// with a *MessageError, after a negative acknowledgement if it asked for one. File
// descriptors that nobody claimed are closed.
//
// Supported: protocol features MQ, REPLY_ACK, CONFIG. Unknown and unsupported requests
// end the session, since an answer may be expected that we can not give.
//
// The package does not know what the device does, nor how bytes cross the bus.
package vhostuser
