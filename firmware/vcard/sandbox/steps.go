// SPDX-License-Identifier: Apache-2.0

package sandbox

import (
	"errors"
	"fmt"
	"os"
	"runtime"
	"strings"
	"syscall"

	seccomp "github.com/elastic/go-seccomp-bpf"
	"golang.org/x/sys/unix"
)

var errNotRoot = errors.New("needs root")

// namespaces that the parent makes: the name under /proc/PID/ns.
var namespaces = []string{"mnt", "net", "ipc", "uts", "pid"}

// checkNamespaces proves that no namespace is shared with the process that
// started this one.
func checkNamespaces(Config) (string, error) {
	if os.Geteuid() != 0 {
		return "", errNotRoot
	}
	var shared []string
	for _, ns := range namespaces {
		own, err := ownNamespace(ns)
		if err != nil {
			return "", err
		}
		if !own {
			shared = append(shared, ns)
		}
	}
	if len(shared) > 0 {
		return "", fmt.Errorf("%s shared with the parent process", strings.Join(shared, ", "))
	}
	return "own " + strings.Join(namespaces, ", "), nil
}

// ownNamespace compares a namespace with the parent's. getppid(2) is 0 in a
// PID namespace of one's own; the mounted /proc still knows the parent.
func ownNamespace(name string) (bool, error) {
	status, err := os.ReadFile("/proc/self/status")
	if err != nil {
		return false, err
	}
	_, rest, ok := strings.Cut(string(status), "\nPPid:\t")
	parent, _, end := strings.Cut(rest, "\n")
	if !ok || !end {
		return false, errors.New("parent process is unknown")
	}
	own, err := os.Readlink("/proc/self/ns/" + name)
	if err != nil {
		return false, err
	}
	theirs, err := os.Readlink("/proc/" + parent + "/ns/" + name)
	if err != nil {
		return false, err
	}
	return own != theirs, nil
}

// emptyRoot puts an empty directory in place of the root. It works in the
// process' own mount namespace only.
func emptyRoot(Config) (string, error) {
	if os.Geteuid() != 0 {
		return "", errNotRoot
	}
	if own, err := ownNamespace("mnt"); err != nil {
		return "", err
	} else if !own {
		return "", errors.New("mount namespace is the parent's")
	}
	if mounted, err := isMountPoint("/"); err != nil {
		return "", err
	} else if !mounted {
		return "", errors.New("the root is not a mount point, as in a chroot: it cannot be left")
	}
	if err := enterEmpty(); err != nil {
		return "", err
	}
	err := pivotHere()
	if errors.Is(err, unix.EINVAL) {
		err = coverHere()
	}
	if err != nil {
		return "", fmt.Errorf("change the root: %w", err)
	}
	entries, err := os.ReadDir("/")
	if err != nil {
		return "", fmt.Errorf("look at the new root: %w", err)
	}
	if len(entries) != 0 {
		return "", fmt.Errorf("the new root has %d entries", len(entries))
	}
	return "root is an empty read-only directory", nil
}

// isMountPoint says whether a file system is mounted at path. A kernel that
// doesn't tell (before 5.8) is taken to mean yes: what follows fails if not.
func isMountPoint(path string) (bool, error) {
	var st unix.Statx_t
	if err := unix.Statx(unix.AT_FDCWD, path, 0, 0, &st); err != nil {
		return false, fmt.Errorf("look at the mount of %s: %w", path, err)
	}
	const root = unix.STATX_ATTR_MOUNT_ROOT
	return st.Attributes_mask&root == 0 || st.Attributes&root != 0, nil
}

// enterEmpty mounts an empty directory and makes it the working directory.
func enterEmpty() error {
	if err := unix.Mount("", "/", "", unix.MS_REC|unix.MS_PRIVATE, ""); err != nil {
		return fmt.Errorf("make mounts private: %w", err)
	}
	// /proc is a directory that is there on every Linux.
	const flags = unix.MS_RDONLY | unix.MS_NOSUID | unix.MS_NODEV | unix.MS_NOEXEC
	if err := unix.Mount("none", "/proc", "tmpfs", flags, "size=4k,nr_inodes=2,mode=0555"); err != nil {
		return fmt.Errorf("mount an empty directory: %w", err)
	}
	if err := unix.Chdir("/proc"); err != nil {
		return fmt.Errorf("enter the empty directory: %w", err)
	}
	return nil
}

// pivotHere makes the working directory the root and gives up the old one.
func pivotHere() error {
	if err := unix.PivotRoot(".", "."); err != nil {
		return err
	}
	if err := unix.Unmount(".", unix.MNT_DETACH); err != nil {
		return err
	}
	return unix.Chdir("/")
}

// coverHere moves the working directory over the root. It serves where the
// root is the initial ramfs of a card, which cannot be pivoted away from.
func coverHere() error {
	if err := unix.Mount(".", "/", "", unix.MS_MOVE, ""); err != nil {
		return err
	}
	if err := unix.Chroot("."); err != nil {
		return err
	}
	return unix.Chdir("/")
}

// limits of what stays possible, soft and hard.
var limits = []struct {
	what  int
	name  string
	value uint64
}{
	{unix.RLIMIT_CORE, "core", 0},        // guest memory must not reach a disk
	{unix.RLIMIT_NOFILE, "nofile", 8192}, // devices × (volume, sockets, eventfds)
	{unix.RLIMIT_NPROC, "nproc", 4096},   // threads blocked in I/O
	{unix.RLIMIT_MEMLOCK, "memlock", 0},
	{unix.RLIMIT_MSGQUEUE, "msgqueue", 0},
	{unix.RLIMIT_RTPRIO, "rtprio", 0},
	{unix.RLIMIT_NICE, "nice", 0},
}

func setLimits(Config) (string, error) {
	var set []string
	for _, l := range limits {
		var now unix.Rlimit
		if err := unix.Getrlimit(l.what, &now); err != nil {
			return "", fmt.Errorf("get %s: %w", l.name, err)
		}
		v := min(l.value, now.Max) // an ordinary user cannot raise a limit
		if err := unix.Setrlimit(l.what, &unix.Rlimit{Cur: v, Max: v}); err != nil {
			return "", fmt.Errorf("set %s: %w", l.name, err)
		}
		set = append(set, fmt.Sprintf("%s %d", l.name, v))
	}
	return strings.Join(set, ", "), nil
}

// dropIdentity gives up root in all threads. Leaving uid 0 clears the
// capabilities; that is checked, not assumed.
func dropIdentity(cfg Config) (string, error) {
	var err error
	if os.Geteuid() == 0 {
		err = errors.Join(syscall.Setgroups(nil), syscall.Setresgid(cfg.ID, cfg.ID, cfg.ID), syscall.Setresuid(cfg.ID, cfg.ID, cfg.ID))
	} else {
		err = fmt.Errorf("stays user %d, who started it: %w", os.Geteuid(), errNotRoot)
	}
	if err != nil {
		return "", err
	}
	header := unix.CapUserHeader{Version: unix.LINUX_CAPABILITY_VERSION_3}
	var data [2]unix.CapUserData
	if err := unix.Capget(&header, &data[0]); err != nil {
		return "", fmt.Errorf("get capabilities: %w", err)
	}
	if data != [2]unix.CapUserData{} {
		return "", fmt.Errorf("capabilities left: %+v", data)
	}
	return fmt.Sprintf("uid and gid %d, no groups, no capabilities", cfg.ID), nil
}

func setUndumpable(Config) (string, error) {
	if err := unix.Prctl(unix.PR_SET_DUMPABLE, 0, 0, 0, 0); err != nil {
		return "", err
	}
	return "", nil
}

// filterCalls loads the filters for all threads and tries them out.
func filterCalls(Config) (string, error) {
	runtime.LockOSThread() // no_new_privs is set on the thread that loads
	defer runtime.UnlockOSThread()
	if err := unix.Prctl(unix.PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0); err != nil {
		return "", fmt.Errorf("set no_new_privs: %w", err)
	}
	for _, p := range filters(os.Getpid()) {
		err := seccomp.LoadFilter(seccomp.Filter{Flag: seccomp.FilterFlagTSync | seccomp.FilterFlagLog, Policy: p})
		if err != nil {
			return "", err
		}
	}
	if err := probe(); err != nil {
		return "", fmt.Errorf("this thread: %w", err)
	}
	// The loader cannot tell when the kernel found a thread it could not
	// confine; another thread can.
	other := make(chan error, 1)
	go func() {
		runtime.LockOSThread() // never unlocked: not the thread above, which is locked too
		other <- probe()
	}()
	if err := <-other; err != nil {
		return "", fmt.Errorf("another thread: %w", err)
	}
	return fmt.Sprintf("%d allowed, %d fatal, the rest refused; no new privileges", len(names(allowed)), len(names(fatal))), nil
}

// probe tries a call that the table refuses and one that it narrows.
func probe() error {
	fd, err := unix.Socket(unix.AF_UNIX, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
	if err == nil {
		return errors.Join(errors.New("socket is possible"), unix.Close(fd))
	}
	if !errors.Is(err, unix.EPERM) {
		return fmt.Errorf("socket: got %w, want EPERM", err)
	}
	if err := unix.Prctl(unix.PR_SET_DUMPABLE, 1, 0, 0, 0); !errors.Is(err, unix.EPERM) {
		return fmt.Errorf("prctl: got %v, want EPERM", err)
	}
	return nil
}
