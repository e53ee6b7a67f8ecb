// SPDX-License-Identifier: Apache-2.0

package sandbox

import (
	seccomp "github.com/elastic/go-seccomp-bpf"
	"golang.org/x/sys/unix"
)

// callGroup is a row of the table: system calls with the reason why they are
// treated as they are.
type callGroup struct {
	why   string
	names []string
}

// allowed is all a virtual card may ask of the kernel. Every name exists on
// amd64 and arm64.
var allowed = []callGroup{
	{"Go runtime: memory; mprotect for thread stacks of a C library; both are narrowed below", []string{
		"mmap", "munmap", "madvise", "mprotect",
	}},
	{"Go runtime: threads; clone and prctl are narrowed below", []string{
		"clone", "prctl", "exit", "exit_group", "futex", "sched_yield", "sched_getaffinity", "set_robust_list", "rseq", "gettid", "getpid",
	}},
	{"Go runtime: signals; tgkill is narrowed below", []string{
		"rt_sigaction", "rt_sigprocmask", "rt_sigreturn", "sigaltstack", "tgkill", "restart_syscall",
	}},
	{"Go runtime: time and random numbers", []string{"nanosleep", "clock_nanosleep", "clock_gettime", "getrandom"}},
	{"Go runtime: poller; ppoll for a wait without it", []string{
		"epoll_create1", "epoll_ctl", "epoll_pwait", "eventfd2", "ppoll",
	}},
	{"any descriptor it holds; preadv2 for doorbells that must not block; fcntl is narrowed below", []string{
		"read", "write", "readv", "writev", "preadv2", "close", "fstat", "fcntl", "dup3",
	}},
	{"volumes: data, durability, holes, the lock and the size", []string{
		"pread64", "pwrite64", "preadv", "pwritev", "fdatasync", "fsync", "fallocate", "flock", "lseek", "fstatfs",
	}},
	{"in-flight regions: memory that a front end keeps while this process is gone", []string{"memfd_create"}},
	{"sockets it holds or is handed", []string{
		"accept4", "recvmsg", "sendmsg", "recvfrom", "sendto", "shutdown", "getsockname", "getpeername", "getsockopt",
	}},
}

// fatal kills the process: no code of ours or of the Go runtime makes these.
var fatal = []callGroup{
	{"run another program", []string{"execve", "execveat"}},
	{"look into or act as another process", []string{
		"ptrace", "process_vm_readv", "process_vm_writev", "process_madvise", "kcmp", "pidfd_open", "pidfd_getfd", "pidfd_send_signal",
	}},
	{"change what paths mean", []string{
		"mount", "umount2", "pivot_root", "chroot", "open_tree", "move_mount", "fsopen", "fsconfig", "fsmount", "fspick", "mount_setattr",
	}},
	{"leave or make namespaces", []string{"setns", "unshare"}},
	{"load code into the kernel, or make it run some", []string{
		"bpf", "perf_event_open", "userfaultfd", "io_uring_setup", "io_uring_enter", "io_uring_register",
		"init_module", "finit_module", "delete_module", "kexec_load",
	}},
	{"gain rights", []string{
		"setuid", "setgid", "setreuid", "setregid", "setresuid", "setresgid", "setfsuid", "setfsgid", "setgroups", "capset", "personality",
	}},
	{"keys and raw access to files", []string{"add_key", "request_key", "keyctl", "open_by_handle_at"}},
	{"end or reconfigure the machine", []string{"reboot", "swapon", "swapoff", "acct", "settimeofday", "clock_settime", "adjtimex", "clock_adjtime"}},
}

// absent fails like a call that the kernel does not have, for callers that know
// what to do then: C libraries use clone, whose flags can be checked, in place
// of clone3, whose flags are in memory.
var absent = []callGroup{{"threads of a C library", []string{"clone3"}}}

// narrowing is what an allowed call must not be used for. Each becomes a
// filter of its own, because the assembler compares the calls behind one with
// conditions against that call's argument instead of its number.
type narrowing struct {
	why    string
	name   string
	action seccomp.Action
	when   seccomp.ArgumentConditions // all of them
}

// narrowings are evaluated besides the table; the strictest answer counts.
func narrowings(pid int) []narrowing {
	deny := seccomp.ActionErrno
	return []narrowing{
		{"only threads, no processes", "clone", deny,
			seccomp.ArgumentConditions{{Argument: 0, Operation: seccomp.BitsNotSet, Value: unix.CLONE_THREAD}}},
		{"no new code: nothing may be mapped executable", "mmap", deny,
			seccomp.ArgumentConditions{{Argument: 2, Operation: seccomp.BitsSet, Value: unix.PROT_EXEC}}},
		{"no new code: nothing may become executable", "mprotect", deny,
			seccomp.ArgumentConditions{{Argument: 2, Operation: seccomp.BitsSet, Value: unix.PROT_EXEC}}},
		{"the runtime names its memory; nothing else", "prctl", deny,
			seccomp.ArgumentConditions{{Argument: 0, Operation: seccomp.NotEqual, Value: unix.PR_SET_VMA}}},
		{"signals only to its own threads", "tgkill", deny,
			seccomp.ArgumentConditions{{Argument: 0, Operation: seccomp.NotEqual, Value: uint64(pid)}}},
		{"flags and copies of descriptors, seals of in-flight regions; no signals to other processes, leases or locks", "fcntl", deny,
			noneOf(1, unix.F_DUPFD_CLOEXEC, unix.F_GETFD, unix.F_SETFD, unix.F_GETFL, unix.F_SETFL, unix.F_ADD_SEALS, unix.F_GET_SEALS)},
	}
}

// noneOf holds for an argument that has none of the values, in all its 64 bits:
// the kernel cuts many arguments to 32, so that more than one names a value.
func noneOf(argument uint32, values ...uint64) seccomp.ArgumentConditions {
	var all seccomp.ArgumentConditions
	for _, v := range values {
		all = append(all, seccomp.Condition{Argument: argument, Operation: seccomp.NotEqual, Value: v})
	}
	return all
}

func names(groups []callGroup) []string {
	var all []string
	for _, g := range groups {
		all = append(all, g.names...)
	}
	return all
}

// filters builds what is loaded, in this order: the table comes last, because
// it takes away the call that loads filters.
func filters(pid int) []seccomp.Policy {
	var out []seccomp.Policy
	for _, n := range narrowings(pid) {
		out = append(out, seccomp.Policy{
			DefaultAction: seccomp.ActionAllow,
			Syscalls: []seccomp.SyscallGroup{{
				Action:             n.action,
				NamesWithCondtions: []seccomp.NameWithConditions{{Name: n.name, Conditions: n.when}},
			}},
		})
	}
	return append(out, seccomp.Policy{
		DefaultAction: seccomp.ActionErrno,
		Syscalls: []seccomp.SyscallGroup{
			{Action: seccomp.ActionAllow, Names: names(allowed)},
			{Action: seccomp.ActionErrno | seccomp.Action(unix.ENOSYS), Names: names(absent)},
			{Action: seccomp.ActionKillProcess, Names: names(fatal)},
		},
	})
}
