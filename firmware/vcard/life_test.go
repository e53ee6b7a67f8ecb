// SPDX-License-Identifier: Apache-2.0

package vcard

import (
	"context"
	"errors"
	"io"
	"os"
	"runtime/debug"
	"strings"
	"sync"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/davit-dpu/davit/firmware/bus"
	"github.com/davit-dpu/davit/firmware/control"
	"github.com/davit-dpu/davit/firmware/spec"
	"github.com/davit-dpu/davit/firmware/vcard/vcardtest"
)

// TestNothingLeaks counts descriptors over whole lives of a card, with refused
// requests in them. It does not run beside other tests.
func TestNothingLeaks(t *testing.T) {
	life := func(t *testing.T) {
		path, _, stop := startCard(t)
		r := vcardtest.NewRig(t)
		c := r.Connect(path, nil)
		vol := r.Volume(1 << 20)
		addRoot(t, r, c, vol)
		bad := []control.AddDevice{
			{Instance: "web", Name: "root", Queues: 1, MemoryOffset: memOffset, MemorySize: memSize}, // exists
			{Instance: "db", Name: "a", Queues: 1, MemoryOffset: memOffset, MemorySize: 2 << 20},     // overlaps
			{Instance: "web", Name: "b", Queues: 1, MemoryOffset: memOffset, MemorySize: memSize},    // in use
			{Instance: "web", Name: "c", Queues: 1, Listen: true},                                    // not a listener
			{Instance: "web", Name: "d", Queues: 1, Base: make([]byte, 32), MemoryOffset: memOffset, MemorySize: memSize},
			{Instance: "web", Name: "e", Queues: 1, Base: make([]byte, 32), Listen: true}, // not a listener, and an overlay
		}
		for _, req := range bad {
			files := control.DeviceFiles{Volume: r.Reopen(vol)}
			if req.Listen {
				files.Listener = vol
			}
			if req.Base != nil {
				files.Base = r.Reopen(vol)
			}
			if err := c.AddDevice(r.Context(), req, files); err == nil {
				t.Errorf("%+v was accepted", req)
			}
		}
		if err := r.Attach(c); err == nil {
			t.Error("a second bus was accepted")
		}
		d := newDisk(r)
		boot(t, r, d)
		if err := d.Write(0, block(1)); err != nil {
			t.Fatal(err)
		}
		startWeb(t, r, c)
		if err := errors.Join(c.Close(), stop()); err != nil {
			t.Error(err)
		}
	}
	count := func() int {
		entries, err := os.ReadDir("/proc/self/fd")
		if err != nil {
			t.Skipf("cannot count descriptors: %v", err)
		}
		return len(entries)
	}
	defer debug.SetGCPercent(debug.SetGCPercent(-1)) // finalizers would close what was forgotten
	t.Run("warm up", life)
	before := count()
	for range 3 {
		t.Run("life", life)
	}
	if after := count(); after > before {
		t.Errorf("%d descriptors are open, %d were before", after, before)
	}
}

func TestShutdownEndsTheCard(t *testing.T) {
	t.Parallel()
	path, _, stop := startCard(t)
	r := vcardtest.NewRig(t)
	c := r.Connect(path, nil)
	vol := r.Volume(1 << 20)
	addRoot(t, r, c, vol)
	d := newDisk(r)
	boot(t, r, d)
	if err := d.Write(0, block(7)); err != nil {
		t.Fatal(err)
	}
	if err := c.Shutdown(r.Context()); err != nil {
		t.Fatal(err)
	}
	select {
	case <-c.Done():
	case <-time.After(vcardtest.Timeout):
		t.Fatal("the connection goes on")
	}
	if err := stop(); err != nil {
		t.Error(err)
	}
	if err := unix.Flock(int(r.Reopen(vol).Fd()), unix.LOCK_EX|unix.LOCK_NB); err != nil {
		t.Errorf("the volume is still locked: %v", err)
	}
}

// TestShutdownThatFails: the card goes on and takes devices again.
func TestShutdownThatFails(t *testing.T) {
	t.Parallel()
	card, path, _, _ := runCard(t)
	r := vcardtest.NewRig(t)
	c := r.Connect(path, nil)
	addRoot(t, r, c, r.Volume(1<<20))
	card.mu.Lock()
	d := card.devices["web/root"]
	card.mu.Unlock()
	d.turn <- struct{}{} // as if a request hung
	complete := sync.OnceFunc(func() { <-d.turn })
	t.Cleanup(complete)
	ctx, cancel := context.WithTimeout(r.Context(), 50*time.Millisecond)
	defer cancel()
	if err := c.Shutdown(ctx); err == nil {
		t.Fatal("shut down with a request in flight")
	}
	r.Until(c, "it has given up", func(*control.Status) bool {
		card.mu.Lock()
		defer card.mu.Unlock()
		return !card.closing
	})
	complete()
	if err := c.RemoveDevice(r.Context(), "web", "root"); err != nil {
		t.Fatal(err)
	}
	addRoot(t, r, c, r.Volume(1<<20))
	if err := c.Shutdown(r.Context()); err != nil {
		t.Error(err)
	}
}

func TestDoors(t *testing.T) {
	t.Parallel()
	path, _, _ := startCard(t)
	r := vcardtest.NewRig(t)
	opened := make(chan uint64, 4)
	c := r.Connect(path, func(e control.Event) {
		if e.Door != nil && e.Door.Open {
			opened <- e.Door.Door
		}
	})
	s, err := r.Host.Session(r.Context())
	if err != nil {
		t.Fatal(err)
	}
	client, err := s.Open(r.Context(), bus.Open{Kind: bus.KindDoor})
	if err != nil {
		t.Fatal(err)
	}
	door := c.Door(r.Context(), <-opened)
	want := strings.Repeat("envelope ", 20000)
	echoed := make(chan struct{})
	go func() {
		defer close(echoed)
		_, _ = io.Copy(door, io.LimitReader(door, int64(len(want))))
	}()
	go func() { _, _ = client.Write([]byte(want)) }()
	got := make([]byte, len(want))
	if _, err := io.ReadFull(client, got); err != nil || string(got) != want {
		t.Fatalf("echo: %v, equal %v", err, string(got) == want)
	}
	<-echoed // one reader at a time
	_ = client.Close()
	if n, err := door.Read(got); n != 0 || err != io.EOF {
		t.Errorf("after the host's client left: %d, %v, want EOF", n, err)
	}
	// Doors end with the controller, and none open without one.
	if client, err = s.Open(r.Context(), bus.Open{Kind: bus.KindDoor}); err != nil {
		t.Fatal(err)
	}
	<-opened
	_ = c.Close()
	if _, err := client.Read(got); err == nil {
		t.Error("a door outlived its controller")
	}
	var refused *bus.RefusedError
	if _, err = s.Open(r.Context(), bus.Open{Kind: bus.KindDoor}); !errors.As(err, &refused) {
		t.Errorf("door without a controller: %v, want a refusal", err)
	}
}

// TestControllerComesAndGoes: I/O does not notice, and the next controller
// finds the truth.
func TestControllerComesAndGoes(t *testing.T) {
	t.Parallel()
	path, _, _ := startCard(t)
	r := vcardtest.NewRig(t)
	c := r.Connect(path, nil)
	addRoot(t, r, c, r.Volume(1<<20))
	d := newDisk(r)
	boot(t, r, d)
	for i := range byte(10) {
		if err := d.Write(uint64(i)*8, block(i)); err != nil {
			t.Fatal(err)
		}
		if i == 3 {
			_ = c.Close()
		}
		if i == 6 {
			c = r.Connect(path, nil)
		}
	}
	st, err := c.Status(r.Context())
	if err != nil {
		t.Fatal(err)
	}
	if dev := deviceOf(st, "root"); dev == nil || dev.Phase != spec.PhaseReady || dev.Queues[0].Writes != 10 || st.Host.Sessions != 1 {
		t.Errorf("status %+v", st)
	}
}
