// SPDX-License-Identifier: Apache-2.0

package vcardtest

import (
	"context"
	"errors"
	"io/fs"
	"log/slog"
	"net"
	"os"
	"path/filepath"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/davit-dpu/davit/firmware/bus"
	"github.com/davit-dpu/davit/firmware/control"
	"github.com/davit-dpu/davit/firmware/spec"
	"github.com/davit-dpu/davit/firmware/virtio/virtq/virtqtest"
)

// PoolSize is the size of a Rig's pool in bytes.
const PoolSize = 160 << 20

// Timeout bounds every step of a Rig.
const Timeout = 30 * time.Second

// Rig is a host with its pool, and what a controller does to bring a card to it.
type Rig struct {
	T       testing.TB
	Host    *Host
	Pool    *virtqtest.Memory
	BusPath string
}

// NewRig starts a host that tries to connect to a card's bus. It ends with the
// test.
func NewRig(t testing.TB) *Rig {
	t.Helper()
	pool, err := virtqtest.NewMemory(PoolSize)
	if err != nil {
		t.Fatal(err)
	}
	r := &Rig{T: t, Host: NewHost(), Pool: pool, BusPath: filepath.Join(t.TempDir(), "bus.sock")}
	ctx, cancel := context.WithCancel(context.Background())
	ended := make(chan struct{})
	go func() {
		defer close(ended)
		r.Host.Run(ctx, bus.DialUnix(r.BusPath), PoolSize)
	}()
	t.Cleanup(func() {
		cancel()
		<-ended
		_ = pool.Close()
	})
	return r
}

// Context is one step's.
func (r *Rig) Context() context.Context {
	ctx, cancel := context.WithTimeout(context.Background(), Timeout)
	r.T.Cleanup(cancel)
	return ctx
}

// Connect is what a controller does first: it dials the card at path, and hands
// it the bus unless it has it.
func (r *Rig) Connect(path string, on func(control.Event)) *control.Client {
	r.T.Helper()
	c, err := control.Dial(r.Context(), path, control.Options{Build: "vcardtest", OnEvent: on, Log: slog.New(slog.DiscardHandler)})
	if err != nil {
		r.T.Fatal(err)
	}
	r.T.Cleanup(func() { _ = c.Close() })
	st, err := c.Status(r.Context())
	if err != nil {
		r.T.Fatal(err)
	}
	if !st.Host.Attached {
		if err := r.Attach(c); err != nil {
			r.T.Fatal(err)
		}
	}
	r.Until(c, "the host is connected", func(st *control.Status) bool { return st.Host.Phase == spec.PhaseReady })
	return c
}

// Attach hands the card a bus listener and the pool.
func (r *Rig) Attach(c *control.Client) error {
	if err := os.Remove(r.BusPath); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	ln, err := net.ListenUnix("unix", &net.UnixAddr{Name: r.BusPath, Net: "unix"})
	if err != nil {
		return err
	}
	ln.SetUnlinkOnClose(false)
	defer ln.Close()
	f, err := ln.File()
	if err != nil {
		return err
	}
	defer f.Close()
	pool, err := r.PoolFile()
	if err != nil {
		return err
	}
	defer pool.Close()
	return c.AttachBus(r.Context(), control.AttachBus{
		Listen: true, WindowBase: spec.PoolReserved, FileOffset: spec.PoolReserved, WindowSize: PoolSize - spec.PoolReserved,
	}, f, pool)
}

// PoolFile opens the pool's file once more.
func (r *Rig) PoolFile() (*os.File, error) {
	fd, err := unix.FcntlInt(uintptr(r.Pool.FD()), unix.F_DUPFD_CLOEXEC, 0)
	if err != nil {
		return nil, err
	}
	return os.NewFile(uintptr(fd), "pool"), nil
}

// Until waits until the card's status fulfils a condition.
func (r *Rig) Until(c *control.Client, what string, ok func(*control.Status) bool) *control.Status {
	r.T.Helper()
	ctx := r.Context()
	tick := time.NewTicker(5 * time.Millisecond)
	defer tick.Stop()
	for {
		st, err := c.Status(ctx)
		if err != nil {
			r.T.Fatalf("wait until %s: %v; last status %+v", what, err, st)
		}
		if ok(st) {
			return st
		}
		select {
		case <-tick.C:
		case <-ctx.Done():
			r.T.Fatalf("wait until %s: last status %+v", what, st)
		}
	}
}

// Volume makes a volume file of the given size.
func (r *Rig) Volume(size int64) *os.File {
	r.T.Helper()
	f, err := os.OpenFile(filepath.Join(r.T.TempDir(), "volume"), os.O_RDWR|os.O_CREATE, 0o600)
	if err == nil {
		err = f.Truncate(size)
	}
	if err != nil {
		r.T.Fatal(err)
	}
	r.T.Cleanup(func() { _ = f.Close() })
	return f
}

// Reopen opens a volume's file once more: a description of its own, with a lock
// of its own.
func (r *Rig) Reopen(f *os.File) *os.File {
	r.T.Helper()
	again, err := os.OpenFile(f.Name(), os.O_RDWR, 0)
	if err != nil {
		r.T.Fatal(err)
	}
	r.T.Cleanup(func() { _ = again.Close() })
	return again
}

// Front opens a front end that lives as long as the test.
func (r *Rig) Front(instance, generation, device string) (*Front, error) {
	ctx, cancel := context.WithTimeout(context.Background(), 2*Timeout)
	r.T.Cleanup(cancel)
	return r.Host.OpenFront(ctx, instance, generation, device)
}
