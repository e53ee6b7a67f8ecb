// SPDX-License-Identifier: Apache-2.0

package sandbox

import (
	"errors"
	"fmt"
	"net"
	"os"
	"runtime"
	"strconv"
	"sync"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
)

// The attacker's view: this file runs in a child of the test, inside the
// sandbox, with
//
//	fd 3  a file to do I/O on        fd 5  a listening unix socket
//	fd 4  a connected unix socket    fd 6  a unix socket that is not connected
const (
	fdFile = 3 + iota
	fdPeer
	fdListener
	fdSocket
)

const (
	envAttack = "SANDBOX_TEST_ATTACK"
	envParent = "SANDBOX_TEST_PARENT"
	envReport = "SANDBOX_TEST_REPORT"
)

func parentPID() int {
	pid, err := strconv.Atoi(os.Getenv(envParent))
	if err != nil {
		return 1
	}
	return pid
}

func raw(nr uintptr, args ...uintptr) error {
	var a [6]uintptr
	copy(a[:], args)
	_, _, errno := syscall.RawSyscall6(nr, a[0], a[1], a[2], a[3], a[4], a[5])
	if errno != 0 {
		return errno
	}
	return nil
}

func fcntl(command, arg uintptr) error { return raw(unix.SYS_FCNTL, fdPeer, command, arg) }

func socket(domain, kind int) error {
	fd, err := unix.Socket(domain, kind, 0)
	_ = fd
	return err
}

// attack tries something; nil means that it worked. killed: the process must
// not survive the try.
type attack struct {
	killed bool
	try    func() error
}

var attacks = map[string]attack{
	"open a file":                 {false, func() error { _, err := os.ReadFile("/etc/passwd"); return err }},
	"create a file":               {false, func() error { return os.WriteFile("/x", nil, 0o600) }},
	"list the root":               {false, func() error { _, err := os.ReadDir("/"); return err }},
	"see processes":               {false, func() error { _, err := os.ReadDir("/proc"); return err }},
	"read own memory map":         {false, func() error { _, err := os.ReadFile("/proc/self/maps"); return err }},
	"TCP socket":                  {false, func() error { return socket(unix.AF_INET, unix.SOCK_STREAM) }},
	"unix socket":                 {false, func() error { return socket(unix.AF_UNIX, unix.SOCK_STREAM) }},
	"netlink socket":              {false, func() error { return socket(unix.AF_NETLINK, unix.SOCK_RAW) }},
	"vsock socket":                {false, func() error { return socket(unix.AF_VSOCK, unix.SOCK_STREAM) }},
	"socket pair":                 {false, func() error { _, err := unix.Socketpair(unix.AF_UNIX, unix.SOCK_STREAM, 0); return err }},
	"connect a socket it has":     {false, func() error { return unix.Connect(fdSocket, &unix.SockaddrUnix{Name: "/run/x"}) }},
	"bind a socket it has":        {false, func() error { return unix.Bind(fdSocket, &unix.SockaddrUnix{Name: "@x"}) }},
	"listen on a socket it has":   {false, func() error { return unix.Listen(fdSocket, 1) }},
	"fork":                        {false, func() error { return raw(unix.SYS_CLONE, uintptr(unix.SIGCHLD)) }},
	"fork with flags of a number": {false, func() error { return raw(unix.SYS_CLONE, unix.SYS_MMAP) }},
	"fork by clone3":              {false, func() error { return raw(unix.SYS_CLONE3, 0, 88) }},
	"signal another process":      {false, func() error { return unix.Kill(parentPID(), 0) }},
	"signal its threads":          {false, func() error { return unix.Tgkill(parentPID(), parentPID(), 0) }},
	"signal by a descriptor":      {false, func() error { return fcntl(unix.F_SETOWN, uintptr(parentPID())) }},
	"choose that signal":          {false, func() error { return fcntl(unix.F_SETSIG, uintptr(unix.SIGKILL)) }},
	"by a command of 64 bits":     {false, func() error { return fcntl(1<<32|unix.F_SETSIG, uintptr(unix.SIGKILL)) }},
	"signal a thread that way":    {false, func() error { return fcntl(unix.F_SETOWN_EX, 0) }},
	"lock a file against another": {false, func() error {
		return unix.FcntlFlock(fdFile, unix.F_OFD_SETLK, &unix.Flock_t{Type: unix.F_WRLCK})
	}},
	"map executable memory": {false, func() error {
		_, err := unix.Mmap(-1, 0, 4096, unix.PROT_READ|unix.PROT_EXEC, unix.MAP_PRIVATE|unix.MAP_ANON)
		return err
	}},
	"make memory executable": {false, func() error {
		b, err := unix.Mmap(-1, 0, 4096, unix.PROT_READ|unix.PROT_WRITE, unix.MAP_PRIVATE|unix.MAP_ANON)
		if err != nil {
			return nil // would hide the attack
		}
		return unix.Mprotect(b, unix.PROT_READ|unix.PROT_EXEC)
	}},
	"become dumpable":      {false, func() error { return unix.Prctl(unix.PR_SET_DUMPABLE, 1, 0, 0, 0) }},
	"type on a terminal":   {false, func() error { return unix.IoctlSetInt(2, unix.TIOCSTI, 0) }},
	"raise a limit":        {false, func() error { return unix.Setrlimit(unix.RLIMIT_CORE, &unix.Rlimit{Cur: 1, Max: 1}) }},
	"truncate a file":      {false, func() error { return unix.Ftruncate(fdFile, 0) }},
	"change a file's mode": {false, func() error { return unix.Fchmod(fdFile, 0o777) }},
	"host name":            {false, func() error { return unix.Sethostname([]byte("x")) }},
	"shared memory":        {false, func() error { return raw(unix.SYS_SHMGET, 1, 4096, 0o1000) }},
	"exec":                 {true, func() error { return syscall.Exec("/bin/true", []string{"true"}, nil) }},
	"exec by descriptor":   {true, func() error { return raw(unix.SYS_EXECVEAT, fdFile, 0, 0, 0, unix.AT_EMPTY_PATH) }},
	"trace":                {true, func() error { return unix.PtraceAttach(parentPID()) }},
	"read other memory":    {true, func() error { return raw(unix.SYS_PROCESS_VM_READV, uintptr(parentPID()), 0, 0, 0, 0, 0) }},
	"take a descriptor":    {true, func() error { _, err := unix.PidfdOpen(parentPID(), 0); return err }},
	"mount":                {true, func() error { return unix.Mount("none", "/", "tmpfs", 0, "") }},
	"leave the root":       {true, func() error { return unix.Chroot("..") }},
	"new namespaces":       {true, func() error { return unix.Unshare(unix.CLONE_NEWUSER) }},
	"become root":          {true, func() error { return raw(unix.SYS_SETUID, 0) }},
	"load BPF":             {true, func() error { return raw(unix.SYS_BPF, 0, 0, 0) }},
	"io_uring":             {true, func() error { return raw(unix.SYS_IO_URING_SETUP, 1, 0) }},
	"load a module":        {true, func() error { return raw(unix.SYS_FINIT_MODULE, fdFile, 0, 0) }},
	"reboot":               {true, func() error { return unix.Reboot(unix.LINUX_REBOOT_CMD_CAD_OFF) }},
}

// works is what a virtual card does all day; nil means that it still can.
var works = map[string]func() error{
	"file I/O":    fileIO,
	"map a file":  mapFile,
	"pass fds":    passFiles,
	"accept":      acceptOne,
	"threads":     manyThreads,
	"collection":  collectGarbage,
	"timers":      func() error { time.Sleep(5 * time.Millisecond); return nil },
	"fcntl":       useFcntl,
	"doorbells":   ringDoorbell,
	"in-flight":   makeInflight,
	"file system": func() error { return unix.Fstatfs(fdFile, new(unix.Statfs_t)) },
	"self signal": func() error { return unix.Tgkill(os.Getpid(), unix.Gettid(), unix.SIGURG) },
}

func fileIO() error {
	buf := []byte("0123456789abcdef")
	n, err := unix.Pwritev(fdFile, [][]byte{buf[:8], buf[8:]}, 0)
	if err != nil || n != 16 {
		return fmt.Errorf("pwritev: %d, %w", n, err)
	}
	got := make([]byte, 16)
	if n, err = unix.Preadv(fdFile, [][]byte{got[:3], got[3:]}, 0); err != nil || n != 16 || string(got) != string(buf) {
		return fmt.Errorf("preadv: %d, %q, %w", n, got, err)
	}
	const punch = unix.FALLOC_FL_PUNCH_HOLE | unix.FALLOC_FL_KEEP_SIZE
	if err := errors.Join(unix.Fdatasync(fdFile), unix.Fallocate(fdFile, punch, 0, 4096), unix.Flock(fdFile, unix.LOCK_EX)); err != nil {
		return err
	}
	_, err = unix.Seek(fdFile, 0, unix.SEEK_END)
	return err
}

// makeInflight makes sealed memory as vhostuser does for in-flight regions. That
// it cannot be run is a matter of the calls that would.
func makeInflight() error {
	fd, err := unix.MemfdCreate("region", unix.MFD_CLOEXEC|unix.MFD_ALLOW_SEALING)
	if err != nil {
		return err
	}
	defer unix.Close(fd)
	if err := unix.Fallocate(fd, 0, 0, 4096); err != nil {
		return err
	}
	if _, err := unix.FcntlInt(uintptr(fd), unix.F_ADD_SEALS, unix.F_SEAL_SHRINK); err != nil {
		return err
	}
	_, err = unix.FcntlInt(uintptr(fd), unix.F_GET_SEALS, 0)
	return err
}

// useFcntl does what os, net and disk do with descriptors.
func useFcntl() error {
	fd, err := unix.FcntlInt(fdFile, unix.F_DUPFD_CLOEXEC, 0)
	if err != nil {
		return err
	}
	defer unix.Close(fd)
	for _, command := range []int{unix.F_GETFD, unix.F_GETFL} {
		if _, err := unix.FcntlInt(uintptr(fd), command, 0); err != nil {
			return err
		}
	}
	_, err = unix.FcntlInt(uintptr(fd), unix.F_SETFD, unix.FD_CLOEXEC)
	return errors.Join(err, unix.SetNonblock(fd, true))
}

// ringDoorbell uses an eventfd as vhostuser does.
func ringDoorbell() error {
	fd, err := unix.Eventfd(0, unix.EFD_NONBLOCK|unix.EFD_CLOEXEC)
	if err != nil {
		return err
	}
	defer unix.Close(fd)
	if err := unix.SetNonblock(fd, true); err != nil {
		return err
	}
	if _, err := unix.Write(fd, []byte{1, 0, 0, 0, 0, 0, 0, 0}); err != nil {
		return err
	}
	if n, err := unix.Preadv2(fd, [][]byte{make([]byte, 8)}, -1, unix.RWF_NOWAIT); err != nil || n != 8 {
		return fmt.Errorf("preadv2: %d, %w", n, err)
	}
	return unix.Dup3(fd, fdSocket, unix.O_CLOEXEC)
}

func mapFile() error {
	mem, err := unix.Mmap(fdFile, 0, 4096, unix.PROT_READ|unix.PROT_WRITE, unix.MAP_SHARED)
	if err != nil {
		return err
	}
	mem[0] = 'x'
	return unix.Munmap(mem)
}

// passFiles receives a descriptor from the test and sends one back, through the
// runtime's poller.
func passFiles() error {
	conn, err := net.FileConn(os.NewFile(fdPeer, "peer"))
	if err != nil {
		return err
	}
	defer conn.Close()
	uc := conn.(*net.UnixConn)
	buf, oob := make([]byte, 16), make([]byte, 64)
	n, oobn, _, _, err := uc.ReadMsgUnix(buf, oob)
	if err != nil {
		return err
	}
	msgs, err := unix.ParseSocketControlMessage(oob[:oobn])
	if err != nil || len(msgs) != 1 {
		return fmt.Errorf("%d control messages: %w", len(msgs), err)
	}
	fds, err := unix.ParseUnixRights(&msgs[0])
	if err != nil {
		return err
	}
	if err := uc.SetDeadline(time.Now().Add(10 * time.Second)); err != nil {
		return err
	}
	_, _, err = uc.WriteMsgUnix(buf[:n], unix.UnixRights(fds...), nil)
	return err
}

func acceptOne() error {
	ln, err := net.FileListener(os.NewFile(fdListener, "listener"))
	if err != nil {
		return err
	}
	defer ln.Close()
	conn, err := ln.Accept()
	if err != nil {
		return err
	}
	defer conn.Close()
	_, err = conn.Write([]byte("hello"))
	return err
}

// manyThreads blocks goroutines in system calls, each of which costs a thread.
func manyThreads() error {
	var wg sync.WaitGroup
	for range 100 {
		wg.Go(func() {
			ts := unix.Timespec{Nsec: 20e6}
			_ = unix.Nanosleep(&ts, nil)
		})
	}
	wg.Wait()
	return nil
}

// collectGarbage runs collections beside goroutines that must be preempted by
// signals.
func collectGarbage() error {
	var wg sync.WaitGroup
	stop := time.Now().Add(200 * time.Millisecond)
	for range 4 {
		wg.Go(func() {
			n := 0
			for time.Now().Before(stop) {
				for i := range 100000 {
					n += i
				}
				_ = make([]byte, 1<<20)
			}
			runtime.KeepAlive(n)
		})
	}
	for time.Now().Before(stop) {
		runtime.GC()
	}
	wg.Wait()
	return nil
}

// attackMain is the child: it confines itself and does as the environment says.
func attackMain(what string) int {
	if what == "cover" { // the other way to an empty root, which a card's initramfs needs
		err := enterEmpty()
		if err == nil {
			err = coverHere()
		}
		entries, rerr := os.ReadDir("/")
		_, up := os.Stat("/../etc")
		fmt.Printf("%v %v %d %v\n", err, rerr, len(entries), up)
		return 0
	}
	checks, err := Enter(Config{Strict: os.Getenv(envReport) == "", ID: 64200})
	if err != nil {
		fmt.Println("enter:", err)
		return 3
	}
	if what == "checks" {
		for _, c := range checks {
			fmt.Printf("%s=%s\n", c.Name, c.Result)
		}
		return 0
	}
	try, label := works[what], "works"
	if a, ok := attacks[what]; ok {
		try, label = a.try, "attack"
	}
	if err := try(); err != nil {
		fmt.Printf("%s: denied: %v\n", label, err)
		return 1
	}
	fmt.Printf("%s: done\n", label)
	return 0
}
