// SPDX-License-Identifier: Apache-2.0

package vhostuser

import (
	"errors"
	"fmt"
	"os"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
)

// EventFDs opens the eventfds (or pipes) that a local front end sends.
type EventFDs struct{}

// OpenKick implements Notifiers.
func (EventFDs) OpenKick(queue, fd int) (Kick, error) {
	f, err := openEvent(fd, fmt.Sprintf("kick %d", queue))
	if err != nil {
		return nil, err
	}
	return &eventKick{f: f}, nil
}

// OpenCall implements Notifiers.
func (EventFDs) OpenCall(queue, fd int) (Call, error) {
	f, err := openEvent(fd, fmt.Sprintf("call %d", queue))
	if err != nil {
		return nil, err
	}
	return newEventCall(f)
}

// openEvent takes over fd. It must be pollable: a file that is always
// readable would have us spin, one that blocks would hold a thread.
func openEvent(fd int, name string) (*os.File, error) {
	if fd == NoFD {
		return nil, fmt.Errorf("open %s: %w", name, ErrNoFD)
	}
	var st unix.Stat_t
	err := unix.Fstat(fd, &st)
	// eventfds are anonymous inodes, which have no file type
	if format := st.Mode & unix.S_IFMT; err == nil && format != 0 && format != unix.S_IFIFO {
		err = fmt.Errorf("mode %#o is neither eventfd nor pipe", st.Mode)
	}
	if err == nil {
		err = unix.SetNonblock(fd, true)
	}
	if err != nil {
		_ = unix.Close(fd)
		return nil, fmt.Errorf("open %s: %w", name, err)
	}
	return os.NewFile(uintptr(fd), name), nil
}

// eventKick waits for an eventfd on the runtime's poller.
type eventKick struct {
	f   *os.File
	buf [8]byte
}

// Wait implements virtq.Kick. An interrupt is an expired deadline, which stays
// until a Wait has seen it.
func (k *eventKick) Wait() error {
	_, err := k.f.Read(k.buf[:])
	if errors.Is(err, os.ErrDeadlineExceeded) {
		return k.f.SetReadDeadline(time.Time{})
	}
	return err
}

// Interrupt implements virtq.Kick. Only a closed file refuses the deadline, and
// nobody waits for that.
func (k *eventKick) Interrupt() { _ = k.f.SetReadDeadline(time.Unix(1, 0)) }

func (k *eventKick) Close() error { return k.f.Close() }

var one = []byte{1, 0, 0, 0, 0, 0, 0, 0}

// eventCall writes to an eventfd, once and without waiting: a full counter or a
// closed peer needs no further notification.
type eventCall struct {
	f     *os.File
	raw   syscall.RawConn
	write func(fd uintptr) bool
}

func newEventCall(f *os.File) (*eventCall, error) {
	raw, err := f.SyscallConn()
	if err != nil {
		return nil, fmt.Errorf("open %s: %w", f.Name(), err)
	}
	write := func(fd uintptr) bool {
		_, _ = unix.Write(int(fd), one)
		return true
	}
	return &eventCall{f: f, raw: raw, write: write}, nil
}

// Signal implements virtq.Call.
func (c *eventCall) Signal() { _ = c.raw.Write(c.write) }

func (c *eventCall) Close() error { return c.f.Close() }
