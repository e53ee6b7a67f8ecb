// SPDX-License-Identifier: Apache-2.0

// Package loopback tests the whole system on the loopback board: davitd, vcard,
// hostd and QEMU are the real programs; only the card is two processes of this
// machine instead of an emulated one, so that a test starts in a second.
//
//	kill_test.go    kill -9 of every process at random moments, under load
//	moment_test.go  the same in the middle of a start and of a stop
//	life_test.go    an instance from create to delete: stops of all kinds
//	boot_test.go    an instance that UEFI firmware boots from its disk, under kills
//	fail_test.go    starts that fail, and what they leave behind: nothing
//	hosts_test.go   no host, a second host, a host with a smaller pool
//	volumes_test.go several instances, queues, memory and read-only volumes
//	refuse_test.go  the mailbox's refusals through every door, and their audit
//	garbage_test.go what no client sends, through every door
//	hostile_test.go a host that speaks the bus's protocol wrongly
//
// It has no exported names: it is tests only.
package loopback
