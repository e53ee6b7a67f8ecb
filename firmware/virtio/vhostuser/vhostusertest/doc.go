// SPDX-License-Identifier: Apache-2.0

// Package vhostusertest is a vhost-user front end for tests and benchmarks of
// back ends: it does over a unix socket what QEMU does, in the same order, and
// connects queues of package virtqtest.
//
//	FrontEnd ── socket ──► vhostuser.Serve
//	   └─ Queue: virtqtest.Driver + eventfds
//
// Send and Call write any message, for front ends that do not behave.
//
// The package does not know what the device does.
package vhostusertest
