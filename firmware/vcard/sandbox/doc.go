// SPDX-License-Identifier: Apache-2.0

// Package sandbox takes from a process everything that a virtual card does not
// need, once and for good, before it reads the first foreign byte.
//
//	step          what is gone afterwards                                    needs root
//	namespaces    other processes, networks, mounts, IPC (made by the parent)  yes
//	filesystem    every path: the root is an empty, read-only directory        yes
//	limits        core dumps, locked memory, endless descriptors and threads   no
//	identity      uid 0, all groups, all capabilities                          yes
//	undumpable    being traced or read through /proc by its own user           no
//	system-calls  all but those of one table; no_new_privs                     no
//
// What is left: the descriptors it holds, descriptors that come over sockets it
// holds, memory, threads, time and random numbers.
//
// Enter runs the steps in this order: each needs what a later one takes away.
// A step that could not be done is reported as a failed spec.Check; in Strict
// mode it is an error, and the caller must not go on.
//
// System calls not in the table fail with EPERM: a Go runtime of another
// version, or a kernel with another habit, then meets an error it can report,
// where killing would turn one unforeseen call into a crash loop of the data
// plane. Calls that no honest code here ever makes and that every break-out
// needs (execve, ptrace, mount, bpf and their like) kill the process at once:
// there, running on is worse than a restart, and the kernel's log shows why.
//
// The package does not know what the process does, which descriptors it holds,
// or who starts it (control.Command makes the namespaces).
package sandbox
