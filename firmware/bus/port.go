// SPDX-License-Identifier: Apache-2.0

package bus

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"time"

	"golang.org/x/sys/unix"
)

// PortName is the name of the virtio-serial port that carries the bus.
const PortName = "org.davit.bus.0"

// FindPort returns the device node of the virtio-serial port with the given
// name, for example "/dev/vport1p1". os.ErrNotExist is wrapped when there is
// none (yet).
func FindPort(name string) (string, error) { return findPort("/sys", "/dev", name) }

func findPort(sys, dev, name string) (string, error) {
	names, err := filepath.Glob(filepath.Join(sys, "class/virtio-ports/*/name"))
	if err != nil {
		return "", fmt.Errorf("find port %q: %w", name, err)
	}
	for _, p := range names {
		b, err := os.ReadFile(p)
		if err != nil {
			continue // unplugged since the listing
		}
		if strings.TrimSpace(string(b)) == name {
			return filepath.Join(dev, filepath.Base(filepath.Dir(p))), nil
		}
	}
	return "", fmt.Errorf("find port %q: %w", name, os.ErrNotExist)
}

// OpenPort opens a virtio-serial port without blocking. The caller closes the
// file; only one process can have a port open.
func OpenPort(path string) (*os.File, error) {
	fd, err := unix.Open(path, unix.O_RDWR|unix.O_NONBLOCK|unix.O_CLOEXEC|unix.O_NOCTTY, 0)
	if err != nil {
		return nil, fmt.Errorf("open port %s: %w", path, err)
	}
	return os.NewFile(uintptr(fd), path), nil
}

// portFile is what Port needs of an *os.File.
type portFile interface {
	io.ReadWriteCloser
	SetReadDeadline(time.Time) error
	SetWriteDeadline(time.Time) error
}

// Port makes sessions' streams of one virtio-serial port, which stays open
// across sessions: closing and opening it again would lose bytes of the peer.
type Port struct {
	f portFile

	mu   sync.Mutex
	busy *portStream // guarded by mu; the stream in use
}

// NewPort takes ownership of the file descriptor of an open port and makes it
// non-blocking, so that the runtime's poller serves it.
func NewPort(fd int) (*Port, error) {
	if err := unix.SetNonblock(fd, true); err != nil {
		return nil, errors.Join(fmt.Errorf("adopt port: %w", err), unix.Close(fd))
	}
	f := os.NewFile(uintptr(fd), PortName)
	if err := f.SetReadDeadline(time.Time{}); err != nil {
		return nil, errors.Join(fmt.Errorf("adopt port: %w", err), f.Close())
	}
	return &Port{f: f}, nil
}

// Close closes the port and any stream over it.
func (p *Port) Close() error { return p.f.Close() }

// Dial is a DialFunc: it gives the port's one stream, after the previous one
// was closed.
func (p *Port) Dial(ctx context.Context) (io.ReadWriteCloser, error) {
	p.mu.Lock()
	prev := p.busy
	p.mu.Unlock()
	if prev != nil {
		select {
		case <-prev.closed:
		case <-ctx.Done():
			return nil, ctx.Err()
		}
	}
	if err := errors.Join(p.f.SetReadDeadline(time.Time{}), p.f.SetWriteDeadline(time.Time{})); err != nil {
		return nil, err
	}
	s := &portStream{p: p, closed: make(chan struct{})}
	p.mu.Lock()
	p.busy = s
	p.mu.Unlock()
	return s, nil
}

// portStream is the port as one session sees it. While no host is connected the
// driver answers reads with end of file at once: a stream that has never heard
// a host waits then, with a growing pause; one that has heard it ends.
type portStream struct {
	p      *Port
	heard  bool // by Read's one goroutine
	once   sync.Once
	closed chan struct{}
}

const (
	minAbsent = 5 * time.Millisecond
	maxAbsent = 250 * time.Millisecond
)

// Read implements io.Reader. io.EOF means that the host has disconnected.
func (s *portStream) Read(b []byte) (int, error) {
	for pause := minAbsent; ; pause = min(2*pause, maxAbsent) {
		n, err := s.p.f.Read(b)
		if n > 0 || s.heard || (err != nil && !errors.Is(err, io.EOF)) {
			s.heard = true
			return n, s.translate(err)
		}
		timer := time.NewTimer(pause)
		select {
		case <-timer.C:
		case <-s.closed:
			timer.Stop()
			return 0, os.ErrClosed
		}
	}
}

// Write implements io.Writer. It blocks while no host is connected.
func (s *portStream) Write(b []byte) (int, error) {
	n, err := s.p.f.Write(b)
	return n, s.translate(err)
}

// translate hides the deadline that Close uses to free blocked calls.
func (s *portStream) translate(err error) error {
	select {
	case <-s.closed:
		if err != nil {
			return os.ErrClosed
		}
	default:
	}
	return err
}

// Close frees blocked reads and writes and leaves the port open.
func (s *portStream) Close() error {
	var err error
	s.once.Do(func() {
		past := time.Unix(1, 0)
		err = errors.Join(s.p.f.SetReadDeadline(past), s.p.f.SetWriteDeadline(past))
		close(s.closed)
	})
	return err
}
