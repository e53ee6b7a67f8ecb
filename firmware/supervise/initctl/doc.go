// SPDX-License-Identifier: Apache-2.0

// Package initctl is what pid 1 and the programs of the card say to each other:
// a control socket with three words, and the boot report that pid 1 writes.
//
// The control socket is a unix seqpacket socket. One connection carries one
// request and one answer, each a word of exactly 16 bytes, padded with NUL:
//
//	request   reboot | poweroff | status
//	answer    accepted | refused | unknown           to reboot and poweroff
//	          one word of State                      to status
//
// Only user 0 is answered; the kernel says who asks (SO_PEERCRED). Pid 1
// compares the word with its list and parses nothing.
//
// The boot report (Report) is JSON, written twice and replaced as a whole: before
// davitd is started, when that step and those after it are pending, and at the end
// of the boot, good or not. It says what was done and what was not; who reads it
// must not take a missing or a pending step for a good one.
//
// The package does not know what a step does, nor how a card reboots.
package initctl
