// SPDX-License-Identifier: Apache-2.0

package vcard

import (
	"bytes"
	"context"
	"errors"
	"io"
	"log/slog"
	"net"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/davit-dpu/davit/firmware/control"
	"github.com/davit-dpu/davit/firmware/spec"
	"github.com/davit-dpu/davit/firmware/vcard/vcardtest"
	"github.com/davit-dpu/davit/firmware/virtio/virtq/virtqtest"
)

// TestLocalFrontEnd: a VMM on this machine connects to the device's own socket
// and brings its memory as file descriptors; no bus, no pool.
func TestLocalFrontEnd(t *testing.T) {
	t.Parallel()
	path, _, _ := startCard(t)
	r := vcardtest.NewRig(t)
	c, err := control.Dial(r.Context(), path, control.Options{})
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	sock, unlisten := addLocal(t, r, c)
	mem, err := virtqtest.NewMemory(1 << 20)
	if err != nil {
		t.Fatal(err)
	}
	defer mem.Close()
	d := vcardtest.NewDisk(mem, 16, 8, 4096)
	for i := range byte(3) { // connect, use, leave, again
		f := dialLocal(t, sock, mem)
		q, err := f.StartQueue(0, d.Driver, d.Driver.UsedIdx())
		if err != nil {
			t.Fatal(err)
		}
		d.Kick, d.Wait = func() { _ = q.Kick() }, q.Wait
		if err := d.Write(uint64(i)*8, block(i)); err != nil {
			t.Fatal(err)
		}
		if got, err := d.Read(0); err != nil || !bytes.Equal(got, block(0)) {
			t.Errorf("block 0: %v, equal %v", err, bytes.Equal(got, block(0)))
		}
		r.Until(c, "ready", func(st *control.Status) bool { return phaseOf(st, "root") == spec.PhaseReady })
		if err := errors.Join(f.Close(), q.Close()); err != nil {
			t.Fatal(err)
		}
		r.Until(c, "waiting", func(st *control.Status) bool { return phaseOf(st, "root") == spec.PhasePending })
	}
	if err := c.RemoveDevice(r.Context(), "web", "root"); err != nil {
		t.Fatal(err)
	}
	unlisten()
	if conn, err := net.Dial("unix", sock); err == nil {
		_ = conn.Close()
		t.Error("the socket of a removed device listens")
	}
}

func TestConsoleRing(t *testing.T) {
	t.Parallel()
	con := newConsole()
	if out, more, err := con.read(0, 10); out != nil || more == nil || err != nil {
		t.Errorf("empty: %v, %v", out, err)
	}
	con.write([]byte("hello"))
	if out, _, err := con.read(1, 2); err != nil || out.Offset != 1 || string(out.Data) != "el" {
		t.Errorf("part: %+v, %v", out, err)
	}
	con.write(bytes.Repeat([]byte("x"), consoleBacklog))
	if out, _, err := con.read(0, 10); err != nil || out.Offset != 5 || string(out.Data) != "xxxxxxxxxx" {
		t.Errorf("after an overflow: %+v, %v", out, err)
	}
	if _, _, err := con.read(consoleBacklog+6, 1); !errors.Is(err, control.ErrInvalid) {
		t.Errorf("behind the end: %v", err)
	}
	_, more, err := con.read(consoleBacklog+5, 1)
	if err != nil {
		t.Fatal(err)
	}
	con.forget()
	<-more
	if _, _, err := con.read(0, 1); !errors.Is(err, control.ErrNotFound) {
		t.Errorf("forgotten: %v", err)
	}
}

func TestConsolesAreBounded(t *testing.T) {
	t.Parallel()
	c := New(Config{Log: slog.New(slog.DiscardHandler)})
	c.mu.Lock()
	defer c.mu.Unlock()
	for i := range 3 * maxConsoles {
		if c.consoleLocked(strings.Repeat("a", 1+i%60)+string(rune('a'+i/60))) == nil {
			t.Fatalf("no console for instance %d, and no other is used", i)
		}
	}
	if len(c.consoles) > maxConsoles {
		t.Errorf("%d consoles", len(c.consoles))
	}
}

func TestLogLimit(t *testing.T) {
	t.Parallel()
	now := time.Unix(1000, 0)
	var out bytes.Buffer
	h := limitLog(slog.NewTextHandler(&out, nil), func() time.Time { return now })
	log, other := slog.New(h), slog.New(h).With("a", 1).WithGroup("g")
	for range 100 {
		log.Info("line")
		other.Info("line")
	}
	if got := strings.Count(out.String(), "\n"); got != logBurst {
		t.Errorf("%d lines passed at once, want %d", got, logBurst)
	}
	now = now.Add(time.Second / logPerSec)
	out.Reset()
	log.Info("later")
	log.Info("later")
	if got := out.String(); strings.Count(got, "\n") != 1 || !strings.Contains(got, "dropped=180") {
		t.Errorf("after an interval: %q", got)
	}
}

// TestLogSinkNeverBlocks: a reader that has stopped costs lines, not time.
func TestLogSinkNeverBlocks(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r, w := io.Pipe()
		s := NewLogSink(w, 4)
		for range 100 {
			if n, err := s.Write([]byte("line\n")); n != 5 || err != nil {
				t.Fatalf("write: %d, %v", n, err)
			}
		}
		synctest.Wait()
		got := make(chan string)
		go func() {
			b, _ := io.ReadAll(r)
			got <- string(b)
		}()
		s.Close(time.Minute)
		_ = w.Close()
		out := <-got
		if !strings.Contains(out, "log lines dropped") || strings.Count(out, "line\n") < 4 || strings.Count(out, "\n") > 7 {
			t.Errorf("output %q", out)
		}
	})
	synctest.Test(t, func(t *testing.T) {
		_, w := io.Pipe() // nobody reads
		s := NewLogSink(w, 1)
		for range 10 {
			_, _ = s.Write([]byte("line\n"))
		}
		began := time.Now()
		s.Close(time.Second)
		if took := time.Since(began); took != time.Second {
			t.Errorf("Close took %v, want its limit", took)
		}
		_ = w.Close()
	})
}

func TestDialOnce(t *testing.T) {
	t.Parallel()
	a, b := net.Pipe()
	defer a.Close()
	defer b.Close()
	dial := dialOnce(a)
	if got, err := dial(context.Background()); err != nil || got != a {
		t.Errorf("first: %v, %v", got, err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	cancel()
	if got, err := dial(ctx); err == nil {
		t.Errorf("second: %v", got)
	}
}

func TestDialerRefusesFiles(t *testing.T) {
	t.Parallel()
	r := vcardtest.NewRig(t)
	f := r.Volume(512)
	for _, listen := range []bool{true, false} {
		if _, _, err := dialer(listen, f); !errors.Is(err, control.ErrInvalid) {
			t.Errorf("listen %v: got %v, want ErrInvalid", listen, err)
		}
	}
}
