// SPDX-License-Identifier: Apache-2.0

package boot

import (
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"sync/atomic"
	"time"
	"unicode/utf8"

	"golang.org/x/sys/unix"
)

const (
	consoleQueue = 512             // lines kept for a console that is slow
	consoleWrite = 2 * time.Second // how long one line may take
	maxConsole   = 8               // consoles that are opened at most
)

// fallbackTTYs are tried when the kernel names no active console and the board
// is not known.
var fallbackTTYs = []string{"ttyAMA0", "hvc0", "ttyS0"}

// Consoles writes lines to every console there is. A console that is slow,
// stuck or broken loses lines, which are counted; it never holds up the
// writer. Lines written before a console is attached wait for it.
type Consoles struct {
	mu      sync.Mutex
	sinks   []*sink  // guarded by mu
	backlog []string // guarded by mu; the lines before the first console, for each that is attached
	started bool     // guarded by mu; a console was attached, or there is none
}

// Write queues one line for all consoles; it always takes all of it.
func (c *Consoles) Write(line []byte) (int, error) {
	c.put(printable(line))
	return len(line), nil
}

func (c *Consoles) put(line string) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if !c.started {
		if len(c.backlog) < consoleQueue {
			c.backlog = append(c.backlog, line)
		}
		return
	}
	for _, s := range c.sinks {
		s.put(line)
	}
}

// attach adds a console. reopen, when not nil, gives it anew after an error: a
// terminal is hung up for all who have it open when the session on it ends, as
// that of a rescue shell does.
func (c *Consoles) attach(w io.WriteCloser, reopen func() (io.WriteCloser, error)) {
	s := &sink{w: w, reopen: reopen, queue: make(chan item, consoleQueue)}
	guard("console", io.Discard, s.run)
	c.mu.Lock()
	defer c.mu.Unlock()
	for _, line := range c.backlog {
		s.put(line)
	}
	c.sinks = append(c.sinks, s)
	c.started = true
}

// giveUp gives the lines that wait for a console; from now on none is kept.
func (c *Consoles) giveUp() []string {
	c.mu.Lock()
	defer c.mu.Unlock()
	lines := c.backlog
	c.backlog, c.started = nil, true
	return lines
}

// dropped counts the lines lost so far.
func (c *Consoles) dropped() uint64 {
	c.mu.Lock()
	defer c.mu.Unlock()
	var n uint64
	for _, s := range c.sinks {
		n += s.dropped.Load()
	}
	return n
}

// drain waits until all lines are out, at most for d in all: at power-off the
// last lines would be lost otherwise.
func (c *Consoles) drain(d time.Duration) {
	c.mu.Lock()
	sinks := append([]*sink{}, c.sinks...)
	c.mu.Unlock()
	done := make(chan struct{})
	guard("console drain", io.Discard, func() {
		defer close(done)
		for _, s := range sinks {
			flushed := make(chan struct{})
			s.queue <- item{flush: flushed}
			<-flushed
		}
	})
	t := time.NewTimer(d)
	defer t.Stop()
	select {
	case <-done:
	case <-t.C:
	}
}

// sink is one console with its queue.
type sink struct {
	w       io.WriteCloser // of run's goroutine
	reopen  func() (io.WriteCloser, error)
	queue   chan item
	dropped atomic.Uint64
}

// item is a line, or a request to say that all before it is out.
type item struct {
	line  string
	flush chan<- struct{}
}

func (s *sink) put(line string) {
	select {
	case s.queue <- item{line: line}:
	default:
		s.dropped.Add(1)
	}
}

func (s *sink) run() {
	var told uint64
	worked := false
	for it := range s.queue {
		if it.flush != nil {
			s.sent()
			close(it.flush)
			continue
		}
		if n := s.dropped.Load(); n > told {
			it.line = fmt.Sprintf("… %d lines lost: this console is too slow\n%s", n-told, it.line)
			told = n
		}
		switch {
		case s.write(it.line):
			worked = true
		case worked: // else it is no console at all, but a guess
			told = s.dropped.Add(1)
		}
	}
}

func (s *sink) write(line string) bool {
	err := s.try(line)
	if err == nil || errors.Is(err, os.ErrDeadlineExceeded) || s.reopen == nil {
		return err == nil
	}
	w, err := s.reopen()
	if err != nil {
		return false
	}
	// It is hung up or broken: closing it adds nothing.
	_ = s.w.Close()
	s.w = w
	return s.try(line) == nil
}

func (s *sink) try(line string) error {
	if f, ok := s.w.(*os.File); ok {
		// A file that knows no deadlines is written without one: it holds up
		// this console's goroutine only.
		_ = f.SetWriteDeadline(time.Now().Add(consoleWrite))
	}
	_, err := io.WriteString(s.w, line)
	return err
}

// sent waits until the device has sent all, tcdrain(3). Not every console is
// one that knows.
func (s *sink) sent() {
	f, ok := s.w.(*os.File)
	if !ok {
		return
	}
	raw, err := f.SyscallConn()
	if err != nil {
		return
	}
	_ = raw.Control(func(fd uintptr) { _ = unix.IoctlSetInt(int(fd), unix.TCSBRK, 1) })
}

// printable makes one line of it that cannot steer a terminal: control
// characters and bytes that are no UTF-8 become "?".
func printable(line []byte) string {
	var b strings.Builder
	b.Grow(len(line) + 1)
	text := strings.TrimRight(string(line), "\r\n")
	for i, r := range text {
		switch {
		case r == '\t':
			b.WriteByte(' ')
		case r == utf8.RuneError && !strings.HasPrefix(text[i:], string(utf8.RuneError)),
			r < 0x20, r >= 0x7f && r < 0xa0, r == '\u2028', r == '\u2029':
			b.WriteByte('?')
		default:
			b.WriteRune(r)
		}
	}
	b.WriteByte('\n')
	return b.String()
}

// openConsoles opens the consoles that the kernel uses (dev/NAME for each NAME
// in the file active), or the board's own. With no console= argument the kernel
// chooses one itself or none; with several it lists all, the last one being
// /dev/console. It gives the names of those opened.
func openConsoles(c *Consoles, active, dev string, fallback []string) (opened []string, err error) {
	// Without the file there is the fallback.
	text, _ := os.ReadFile(active)
	opened, err = attachAll(c, dev, strings.Fields(string(text)))
	if len(opened) > 0 {
		return opened, nil
	}
	opened, fallbackErr := attachAll(c, dev, fallback)
	if len(opened) > 0 {
		return opened, nil
	}
	if err == nil {
		err = fallbackErr
	}
	return nil, fmt.Errorf("no console opens: %w", err)
}

func attachAll(c *Consoles, dev string, names []string) (opened []string, first error) {
	for _, name := range names {
		if len(opened) == maxConsole || !plainName(name) {
			continue
		}
		open := ttyOpener(filepath.Join(dev, name))
		f, err := open()
		if err != nil {
			if first == nil {
				first = err
			}
			continue
		}
		c.attach(f, open)
		opened = append(opened, name)
	}
	return opened, first
}

func ttyOpener(path string) func() (io.WriteCloser, error) {
	return func() (io.WriteCloser, error) {
		// Non-blocking: opening a serial port must not wait for a carrier.
		f, err := os.OpenFile(path, os.O_WRONLY|unix.O_NOCTTY|unix.O_NONBLOCK, 0)
		if err != nil {
			return nil, err
		}
		return f, nil
	}
}
