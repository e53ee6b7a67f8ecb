// SPDX-License-Identifier: Apache-2.0

package bus

import (
	"context"
	"errors"
	"io"
	"net"
	"os"
	"path/filepath"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"golang.org/x/sys/unix"
)

// fakePort behaves like a virtio-serial port: end of file while no host is there.
type fakePort struct {
	net.Conn
	absent atomic.Bool
	reads  atomic.Int64
}

func (f *fakePort) Read(p []byte) (int, error) {
	f.reads.Add(1)
	if f.absent.Load() {
		return 0, io.EOF
	}
	return f.Conn.Read(p)
}

func TestPortWaitsForAHost(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		a, b := net.Pipe()
		f := &fakePort{Conn: a}
		f.absent.Store(true)
		p := &Port{f: f}
		rw, err := p.Dial(t.Context())
		if err != nil {
			t.Fatal(err)
		}
		got := make(chan error, 1)
		go func() {
			_, err := rw.Read(make([]byte, 1))
			got <- err
		}()
		time.Sleep(10 * time.Second)
		if n := f.reads.Load(); n > 60 {
			t.Errorf("%d reads in 10 s without a host", n)
		}
		f.absent.Store(false)
		if _, err := b.Write([]byte{1}); err != nil {
			t.Fatal(err)
		}
		if err := <-got; err != nil {
			t.Errorf("read after the host came: %v", err)
		}
		f.absent.Store(true)
		if _, err := rw.Read(make([]byte, 1)); err != io.EOF {
			t.Errorf("read after the host went: %v", err)
		}
		testRedial(t, p, rw, b, f)
	})
}

// testRedial: a stream is only given when the last one is closed, and closing
// one frees its reader but not the port.
func testRedial(t *testing.T, p *Port, rw io.ReadWriteCloser, b net.Conn, f *fakePort) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), time.Second)
	defer cancel()
	if _, err := p.Dial(ctx); !errors.Is(err, context.DeadlineExceeded) {
		t.Errorf("a second stream beside the first: %v", err)
	}
	f.absent.Store(false)
	got := make(chan error, 1)
	go func() {
		_, err := rw.Read(make([]byte, 1))
		got <- err
	}()
	synctest.Wait()
	if err := errors.Join(rw.Close(), rw.Close()); err != nil {
		t.Error(err)
	}
	if err := <-got; !errors.Is(err, os.ErrClosed) {
		t.Errorf("read of a closed stream: %v", err)
	}
	again, err := p.Dial(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	go func() { _, _ = b.Write([]byte{7}) }()
	buf := make([]byte, 1)
	if _, err := again.Read(buf); err != nil || buf[0] != 7 {
		t.Errorf("read of the next stream: %v, %v", buf, err)
	}
}

// TestPortFromDescriptor uses a real descriptor, so the runtime's poller.
func TestPortFromDescriptor(t *testing.T) {
	t.Parallel()
	fds, err := unix.Socketpair(unix.AF_UNIX, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		t.Fatal(err)
	}
	p, err := NewPort(fds[0])
	if err != nil {
		t.Fatal(err)
	}
	defer p.Close()
	peer := os.NewFile(uintptr(fds[1]), "peer")
	defer peer.Close()
	rw, err := p.Dial(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	got := make(chan error, 1)
	go func() {
		_, err := rw.Read(make([]byte, 1))
		got <- err
	}()
	if err := rw.Close(); err != nil {
		t.Fatal(err)
	}
	if err := <-got; !errors.Is(err, os.ErrClosed) {
		t.Errorf("a blocked read ended with %v", err)
	}
	if _, err := NewPort(func() int {
		fd, _ := unix.Open(filepath.Join(t.TempDir(), "x"), unix.O_CREAT|unix.O_RDWR, 0o600)
		return fd
	}()); err == nil {
		t.Error("a regular file was taken for a port")
	}
}

// TestRunOverUnixSockets restarts real sockets' ends.
func TestRunOverUnixSockets(t *testing.T) {
	t.Parallel()
	path := filepath.Join(t.TempDir(), "bus.sock")
	l, err := net.ListenUnix("unix", &net.UnixAddr{Name: path, Net: "unix"})
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	sessions := make(chan *Session)
	hold := func(ctx context.Context, s *Session) error {
		select {
		case sessions <- s:
		case <-ctx.Done():
		}
		<-ctx.Done()
		return nil
	}
	cardDone := make(chan error, 1)
	go func() { cardDone <- Run(ctx, Config{Role: Card}, AcceptFrom(l), hold) }()
	for range 3 {
		hctx, stop := context.WithCancel(ctx)
		done := make(chan error, 1)
		go func() {
			done <- Run(hctx, Config{Role: Host}, DialUnix(path), func(ctx context.Context, s *Session) error {
				<-ctx.Done()
				return nil
			})
		}()
		s := <-sessions
		stop()
		if err := <-done; !errors.Is(err, context.Canceled) {
			t.Errorf("the host's loop ended with %v", err)
		}
		<-s.Done()
	}
	cancel()
	if err := <-cardDone; !errors.Is(err, context.Canceled) {
		t.Errorf("the card's loop ended with %v", err)
	}
}
