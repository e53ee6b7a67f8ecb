// SPDX-License-Identifier: Apache-2.0

// Package host is the host's part of Davit: it does what the card orders and
// nothing else. It starts and kills VMMs (QEMU), carries their vhost-user, QMP
// and console bytes over the bus, and is a mailbox door for local clients.
//
//	bus ◄─► session ─┬─ orders ────► Host: start, kill, list; VMMs in RUN/vmm
//	                 ├─ front ◄────► QEMU's vhost-user-blk: messages; fds stay here,
//	                 │               kick eventfd → doorbell, doorbell → call eventfd
//	                 ├─ qmp, console ◄─► QEMU's sockets
//	                 └─ door ◄─────► RUN/mailbox.sock
//
// It keeps no state that matters: VMMs outlive it, and a new Host finds them
// again by what the kernel says of their processes.
//
//	            order                    process gone
//	(nothing) ─────────► running ───────────────────────► exited (RUN/exited/NAME)
//	                        ▲ adopted by the next Host         │ order of a new generation
//	                        └──────────────────────────────────┘
//
// A VMM is never restarted here, and an order that was already carried out is
// answered with its VMM's state, also when that is "exited".
//
// Sockets towards QEMU's vhost-user devices exist only while the card is ready
// to serve that device: a QEMU that is connected waits for answers with its main loop
// stopped, one that cannot connect tries again every 100 ms with its guest running.
//
// QEMU's output goes to a file that outlives a Host, as QEMU does. The Host looks at
// it every second and gives back the space of its middle, on file systems that know
// holes.
//
// Run directory (flock on RUN/lock; one Host at a time):
//
//	RUN/vmm/INSTANCE/{order.json,pid.json,log,qmp.sock,console.sock,diskN.sock,vars.fd}
//	RUN/exited/INSTANCE.json   how the last VMM of an instance ended
//	RUN/logs/INSTANCE.log      its output: beginning and end, at most 512 KiB
//	RUN/mailbox.sock           the door
//	RUN/accel.json             whether KVM ran a guest, asked once per boot
//
// The package does not know what is in mailbox, QMP or virtqueue bytes, and
// makes no decision of its own beyond refusing orders that contradict what runs.
package host
