// SPDX-License-Identifier: Apache-2.0

package bus

import (
	"context"
	"crypto/sha256"
	"errors"
	"io"
	"log/slog"
	"net"
	"os"
	"sync"
	"testing"
	"time"

	"github.com/davit-dpu/davit/firmware/bus"
	"github.com/davit-dpu/davit/firmware/disk"
	"github.com/davit-dpu/davit/firmware/qmp"
	"github.com/davit-dpu/davit/firmware/spec"
	"github.com/davit-dpu/davit/tests/bus/testcard"
)

// card runs a testcard in this process. Stopping it and making a new one over
// the same volume is a card's restart.
type card struct {
	*testcard.Card
	t      *testing.T
	events chan spec.VMMStatus
	cancel context.CancelFunc
	done   chan struct{}

	mu   sync.Mutex
	conn io.Closer // guarded by mu; the bus's stream
}

func startCard(t *testing.T, path, pool string, volume disk.Volume) *card {
	t.Helper()
	a, err := bus.OpenPool(pool)
	if err != nil {
		t.Fatal(err)
	}
	w, err := bus.Map(a)
	if err = errors.Join(err, a.File.Close()); err != nil {
		t.Fatal(err)
	}
	if err := os.Remove(path); err != nil && !errors.Is(err, os.ErrNotExist) {
		t.Fatal(err)
	}
	l, err := net.ListenUnix("unix", &net.UnixAddr{Name: path, Net: "unix"})
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	c := &card{t: t, events: make(chan spec.VMMStatus, 64), cancel: cancel, done: make(chan struct{})}
	c.Card = &testcard.Card{Window: w, Volume: volume, Event: func(st spec.VMMStatus) { c.events <- st }, Log: slog.New(slog.NewTextHandler(t.Output(), nil))}
	go func() {
		defer close(c.done)
		defer w.Close()
		defer l.Close()
		_ = bus.Run(ctx, bus.Config{Role: bus.Card, Build: "test card"}, c.dialer(bus.AcceptFrom(l)), c.Serve)
	}()
	t.Cleanup(c.stop)
	return c
}

// dialer remembers the stream, to cut it.
func (c *card) dialer(dial bus.DialFunc) bus.DialFunc {
	return func(ctx context.Context) (io.ReadWriteCloser, error) {
		rw, err := dial(ctx)
		c.mu.Lock()
		c.conn = rw
		c.mu.Unlock()
		return rw, err
	}
}

// stop ends the card as a crash does: the stream breaks off, and nothing is
// said to the host.
func (c *card) stop() {
	c.mu.Lock()
	if c.conn != nil {
		_ = c.conn.Close()
	}
	c.mu.Unlock()
	c.cancel()
	<-c.done
}

// wait returns the session once there is one.
func (c *card) wait() *testcard.Up {
	c.t.Helper()
	ctx, cancel := context.WithTimeout(c.t.Context(), 20*time.Second)
	defer cancel()
	for {
		u, changed := c.Link.Get()
		if u != nil {
			return u
		}
		select {
		case <-changed:
		case <-ctx.Done():
			c.t.Fatal("no session with the host")
		}
	}
}

func (c *card) start(o spec.VMMOrder) (spec.VMMStatus, error) {
	ctx, cancel := context.WithTimeout(c.t.Context(), 30*time.Second)
	defer cancel()
	return c.wait().Orders.Start(ctx, o)
}

func (c *card) mustStart(o spec.VMMOrder) spec.VMMStatus {
	c.t.Helper()
	st, err := c.start(o)
	if err != nil {
		c.t.Fatal(err)
	}
	return st
}

func (c *card) kill(o spec.VMMOrder) {
	c.t.Helper()
	ctx, cancel := context.WithTimeout(c.t.Context(), 20*time.Second)
	defer cancel()
	if err := c.wait().Orders.Kill(ctx, bus.VMMRef{Instance: o.Instance, Generation: o.Generation}); err != nil {
		c.t.Fatal(err)
	}
}

func (c *card) list() []spec.VMMStatus {
	c.t.Helper()
	ctx, cancel := context.WithTimeout(c.t.Context(), 20*time.Second)
	defer cancel()
	l, err := c.wait().Orders.List(ctx)
	if err != nil {
		c.t.Fatal(err)
	}
	return l
}

// exit waits for the report of an exit.
func (c *card) exit(o spec.VMMOrder) spec.VMMStatus {
	c.t.Helper()
	for {
		select {
		case st := <-c.events:
			if st.Generation == o.Generation && st.State == spec.VMMExited {
				return st
			}
		case <-time.After(20 * time.Second):
			c.t.Fatal("no report of the VMM's exit")
		}
	}
}

func (c *card) open(kind bus.Kind, o spec.VMMOrder) *bus.Channel {
	c.t.Helper()
	ctx, cancel := context.WithTimeout(c.t.Context(), 20*time.Second)
	defer cancel()
	ch, err := c.wait().Session.Open(ctx, bus.Open{Kind: kind, Instance: o.Instance, Generation: o.Generation})
	if err != nil {
		c.t.Fatal(err)
	}
	c.t.Cleanup(func() { _ = ch.Close() })
	return ch
}

func (c *card) qmp(o spec.VMMOrder) *qmp.Client {
	c.t.Helper()
	ctx, cancel := context.WithTimeout(c.t.Context(), 20*time.Second)
	defer cancel()
	q, err := qmp.Open(ctx, c.open(bus.KindQMP, o))
	if err != nil {
		c.t.Fatal(err)
	}
	c.t.Cleanup(func() { _ = q.Close() })
	return q
}

// stage puts a boot file into an instance's memory, as a card does.
func (c *card) stage(offset spec.Bytes, data []byte) *spec.Blob {
	c.t.Helper()
	p, err := c.Window.Slice(uint64(offset), uint64(len(data)))
	if err != nil {
		c.t.Fatal(err)
	}
	copy(p, data)
	sum := sha256.Sum256(data)
	return &spec.Blob{Offset: offset, Length: spec.Bytes(len(data)), SHA256: sum[:]}
}
