// SPDX-License-Identifier: Apache-2.0

package supervise

import (
	"bytes"
	"errors"
	"fmt"
	"os"
	"strconv"
	"sync"
	"syscall"

	"golang.org/x/sys/unix"
)

// ErrGone says that a process to be adopted does not exist any more: nothing
// has its pid, or something else has.
var ErrGone = errors.New("process is gone")

// Identity tells one process from all others on one boot: the start time keeps
// a reused pid from being taken for it.
type Identity struct {
	PID        int    `json:"pid"`
	StartTicks uint64 `json:"startTicks"` // field 22 of /proc/PID/stat, proc_pid_stat(5)
}

// IdentityOf reads the identity of a running process.
func IdentityOf(pid int) (Identity, error) {
	b, err := os.ReadFile("/proc/" + strconv.Itoa(pid) + "/stat")
	if errors.Is(err, os.ErrNotExist) || errors.Is(err, syscall.ESRCH) {
		return Identity{}, fmt.Errorf("pid %d: %w", pid, ErrGone)
	}
	if err != nil {
		return Identity{}, fmt.Errorf("identity of pid %d: %w", pid, err)
	}
	ticks, err := startTicks(b)
	if err != nil {
		return Identity{}, fmt.Errorf("identity of pid %d: %w", pid, err)
	}
	return Identity{PID: pid, StartTicks: ticks}, nil
}

// startTicks takes field 22 from a stat line. Field 2 is the program's name in
// parentheses, which may hold spaces and parentheses itself.
func startTicks(stat []byte) (uint64, error) {
	i := bytes.LastIndexByte(stat, ')')
	if i < 0 {
		return 0, errors.New("stat line has no name")
	}
	f := bytes.Fields(stat[i+1:]) // starts with field 3
	if len(f) < 20 {
		return 0, errors.New("stat line is too short")
	}
	return strconv.ParseUint(string(f[19]), 10, 64)
}

// Adopted is a process that another process started, watched through a pidfd.
// Its exit code is not known to us.
type Adopted struct {
	id   Identity
	done chan struct{}

	mu sync.Mutex
	fd *os.File // guarded by mu; pidfd, nil once the process has ended
}

// Adopt watches the process with this identity; ErrGone when it has ended.
func Adopt(id Identity) (*Adopted, error) {
	fd, err := unix.PidfdOpen(id.PID, unix.PIDFD_NONBLOCK)
	if errors.Is(err, unix.ESRCH) {
		return nil, fmt.Errorf("adopt pid %d: %w", id.PID, ErrGone)
	}
	if err != nil {
		return nil, fmt.Errorf("adopt pid %d: %w", id.PID, err)
	}
	f := os.NewFile(uintptr(fd), "pidfd")
	// Read after the pidfd was opened: what it shows is what the pidfd holds,
	// or the process has ended since, which the pidfd shows.
	now, err := IdentityOf(id.PID)
	if err == nil && now != id {
		err = ErrGone
	}
	if err != nil {
		f.Close()
		return nil, fmt.Errorf("adopt pid %d: %w", id.PID, err)
	}
	a := &Adopted{id: id, done: make(chan struct{}), fd: f}
	raw, err := f.SyscallConn()
	if err != nil {
		f.Close()
		return nil, fmt.Errorf("adopt pid %d: %w", id.PID, err)
	}
	go a.watch(raw)
	return a, nil
}

func (a *Adopted) watch(raw syscall.RawConn) {
	// A pidfd is readable once its process has ended, pidfd_open(2). An error
	// is that of a closed file; only this goroutine closes it.
	_ = raw.Read(func(fd uintptr) bool {
		p := []unix.PollFd{{Fd: int32(fd), Events: unix.POLLIN}}
		n, err := unix.Poll(p, 0)
		return err == nil && n > 0
	})
	a.mu.Lock()
	a.fd.Close()
	a.fd = nil
	a.mu.Unlock()
	close(a.done)
}

// Identity tells this process from all others on this boot.
func (a *Adopted) Identity() Identity { return a.id }

// Ready is always closed: who adopts a process has asked it already.
func (a *Adopted) Ready() <-chan struct{} {
	c := make(chan struct{})
	close(c)
	return c
}

// Done is closed once the process has ended.
func (a *Adopted) Done() <-chan struct{} { return a.done }

// Exit waits for its end; Known is false.
func (a *Adopted) Exit() Exit {
	<-a.done
	return Exit{Code: -1}
}

// Signal sends a signal; os.ErrProcessDone when it has ended.
func (a *Adopted) Signal(s syscall.Signal) error {
	a.mu.Lock()
	defer a.mu.Unlock()
	if a.fd == nil {
		return fmt.Errorf("signal %d to pid %d: %w", int(s), a.id.PID, os.ErrProcessDone)
	}
	raw, err := a.fd.SyscallConn()
	if err != nil {
		return fmt.Errorf("signal %d to pid %d: %w", int(s), a.id.PID, err)
	}
	var sent error
	if err := raw.Control(func(fd uintptr) { sent = unix.PidfdSendSignal(int(fd), s, nil, 0) }); err != nil {
		return fmt.Errorf("signal %d to pid %d: %w", int(s), a.id.PID, err)
	}
	if errors.Is(sent, unix.ESRCH) {
		sent = os.ErrProcessDone
	}
	if sent != nil {
		return fmt.Errorf("signal %d to pid %d: %w", int(s), a.id.PID, sent)
	}
	return nil
}
