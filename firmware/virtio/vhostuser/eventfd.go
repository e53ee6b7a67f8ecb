// SPDX-License-Identifier: Apache-2.0

package vhostuser

import (
	"errors"
	"fmt"
	"os"
	"runtime"
	"sync"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
)

// EventFDs opens the eventfds that a local front end sends.
//
// The front end shares their open file description: whenever it likes it can
// clear O_NONBLOCK with fcntl(2), empty the counter that is about to be read and
// fill the one that is about to be written. So nothing here relies on O_NONBLOCK,
// and a front end that plays with it harms its own device and nobody else.
type EventFDs struct{}

// OpenKick implements Notifiers.
func (EventFDs) OpenKick(queue, fd int) (Kick, error) {
	name := fmt.Sprintf("kick %d", queue)
	if err := checkEvent(fd, name); err != nil {
		return nil, err
	}
	f := os.NewFile(uintptr(fd), name)
	k, err := newEventKick(f)
	if err != nil {
		return nil, fmt.Errorf("open %s: %w", name, errors.Join(err, f.Close()))
	}
	return k, nil
}

// OpenCall implements Notifiers.
func (EventFDs) OpenCall(queue, fd int) (Call, error) {
	if err := checkEvent(fd, fmt.Sprintf("call %d", queue)); err != nil {
		return nil, err
	}
	c := &eventCall{fd: fd, due: make(chan struct{}, 1)}
	go c.run()
	return c, nil
}

// checkEvent takes over fd, closes it unless it is an eventfd as far as fstat
// can tell, and makes it non-blocking, which the runtime's poller asks for.
//
// Eventfds are anonymous inodes, which have no file type; neither have timers,
// inotify and the like. Of those a kick fails, or counts as one, and a call
// is a write that fails: see eventKick and eventCall for why neither holds up
// more than itself. Files, FUSE's among them, pipes, sockets and terminals are
// refused here.
func checkEvent(fd int, name string) error {
	if fd == NoFD {
		return fmt.Errorf("open %s: %w", name, ErrNoFD)
	}
	var st unix.Stat_t
	err := unix.Fstat(fd, &st)
	if err == nil && st.Mode&unix.S_IFMT != 0 {
		err = fmt.Errorf("mode %#o is no eventfd's", st.Mode)
	}
	if err == nil {
		err = unix.SetNonblock(fd, true)
	}
	if err != nil {
		_ = unix.Close(fd)
		return fmt.Errorf("open %s: %w", name, err)
	}
	return nil
}

// eventKick waits for an eventfd on the runtime's poller. RWF_NOWAIT keeps the
// read behind it from blocking, whatever the file's flags say by then.
type eventKick struct {
	f    *os.File
	raw  syscall.RawConn
	read func(fd uintptr) bool
	n    int   // of the last read
	err  error // of the last read
}

// newEventKick fails for a file that the runtime cannot poll.
func newEventKick(f *os.File) (*eventKick, error) {
	raw, err := f.SyscallConn()
	if err != nil {
		return nil, err
	}
	if err := f.SetReadDeadline(time.Time{}); err != nil {
		return nil, err
	}
	k := &eventKick{f: f, raw: raw}
	bufs := [][]byte{make([]byte, 8)}
	k.read = func(fd uintptr) bool {
		for {
			k.n, k.err = unix.Preadv2(int(fd), bufs, -1, unix.RWF_NOWAIT)
			if !errors.Is(k.err, unix.EINTR) {
				return !errors.Is(k.err, unix.EAGAIN)
			}
		}
	}
	return k, nil
}

// Wait implements virtq.Kick. An interrupt is an expired deadline, which stays
// until a Wait has seen it.
func (k *eventKick) Wait() error {
	err := k.raw.Read(k.read)
	if errors.Is(err, os.ErrDeadlineExceeded) {
		return k.f.SetReadDeadline(time.Time{})
	}
	if err == nil {
		err = k.err
	}
	if err == nil && k.n != 8 { // no eventfd; it could have us spin
		err = fmt.Errorf("%d bytes", k.n)
	}
	if err != nil {
		return fmt.Errorf("read %s: %w", k.f.Name(), err)
	}
	return nil
}

// Interrupt implements virtq.Kick. Only a closed file refuses the deadline, and
// nobody waits for that.
func (k *eventKick) Interrupt() { _ = k.f.SetReadDeadline(time.Unix(1, 0)) }

func (k *eventKick) Close() error { return k.f.Close() }

var one = []byte{1, 0, 0, 0, 0, 0, 0, 0}

// eventCall adds to an eventfd. The kernel has no write to an eventfd that is
// certain not to block: RWF_NOWAIT is not supported there, and O_NONBLOCK is the
// front end's to clear. So a goroutine of its own writes, which nobody ever waits
// for: neither who signals nor who closes.
type eventCall struct {
	fd  int
	due chan struct{} // cap 1: there is something to signal, or the end

	mu     sync.Mutex
	thread int  // guarded by mu; in the middle of a write, or 0
	closed bool // guarded by mu; and fd too, or to be by the write under way
}

// Signal implements virtq.Call.
func (c *eventCall) Signal() {
	select {
	case c.due <- struct{}{}:
	default: // one write that has not begun serves both
	}
}

// run writes until Close. What the write answers does not matter: a full counter
// and a peer that has gone need no further notification.
func (c *eventCall) run() {
	for range c.due {
		if !c.begin() {
			return
		}
		_, _ = unix.Write(c.fd, one)
		c.end()
	}
}

// begin announces a write from this thread, to which the goroutine keeps until
// end; false after Close.
func (c *eventCall) begin() bool {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.closed {
		return false
	}
	runtime.LockOSThread()
	c.thread = unix.Gettid()
	return true
}

// end does what Close left to the write.
func (c *eventCall) end() {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.thread = 0
	runtime.UnlockOSThread()
	if c.closed {
		_ = unix.Close(c.fd)
	}
}

// Close drops what is still to be signalled. It frees the write that is under
// way, if any, but does not wait for it: without that each call that a front end
// blocks would cost a thread.
func (c *eventCall) Close() error {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.closed {
		return os.ErrClosed
	}
	c.closed = true
	c.Signal() // to run, which ends
	if c.thread == 0 {
		return unix.Close(c.fd)
	}
	if err := c.free(); err != nil {
		return fmt.Errorf("free a call: %w", err)
	}
	return nil
}

// free gets a blocked write to return. A signal has the kernel begin the system
// call anew (the runtime's handlers are all SA_RESTART, and SIGURG is one it
// always expects), and that finds another eventfd under the old number: one with
// an empty counter that no front end knows. The caller holds mu, and a write is
// under way: the number is still the call's own.
func (c *eventCall) free() error {
	fresh, err := unix.Eventfd(0, unix.EFD_NONBLOCK|unix.EFD_CLOEXEC)
	if err != nil {
		return err
	}
	defer unix.Close(fresh)
	if err := unix.Dup3(fresh, c.fd, unix.O_CLOEXEC); err != nil {
		return err
	}
	return unix.Tgkill(unix.Getpid(), c.thread, unix.SIGURG)
}
