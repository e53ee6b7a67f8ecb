// SPDX-License-Identifier: Apache-2.0

package control

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"reflect"
	"testing"

	"github.com/davit-dpu/davit/firmware/spec"
)

func TestEventsAreMerged(t *testing.T) {
	release, seen := make(chan struct{}), make(chan Event, 64)
	srv, path := serve(t, &fakeCard{})
	dial(t, path, func(e Event) { <-release; seen <- e })
	for i := range 1000 {
		srv.Publish(Event{Device: &Device{Instance: "web", DeviceStatus: spec.DeviceStatus{Name: "root", Capacity: spec.Bytes(i), Condition: spec.Condition{Phase: spec.PhaseReady}}}})
	}
	srv.Publish(Event{Door: &DoorStatus{Door: 1, Open: true}})
	close(release)
	var n int
	var last spec.Bytes
	for e := range seen {
		if e.Door != nil {
			break
		}
		n, last = n+1, e.Device.Capacity
	}
	if n > 64 || last != 999 {
		t.Errorf("got %d events, the last with %d; want a few, the last with 999", n, last)
	}
}

func TestStatusPages(t *testing.T) {
	var all StatusReply
	all.Host.Phase = spec.PhasePending
	for i := range 100 {
		d := Device{Instance: "web", DeviceStatus: spec.DeviceStatus{Name: fmt.Sprintf("d%03d", i), Condition: spec.Condition{Phase: spec.PhaseReady}}}
		all.Devices = append(all.Devices, d)
	}
	for i := range 70 {
		all.VMMs = append(all.VMMs, spec.VMMStatus{Instance: fmt.Sprintf("i%03d", i), Generation: testGen, State: spec.VMMRunning})
	}
	want := all.Status
	_, path := serve(t, &fakeCard{handle: func(_ context.Context, req Request, _ *Files) (Reply, error) {
		return Page(&want, 1, req.(*StatusRequest)), nil
	}})
	got, err := dial(t, path, nil).Status(testContext(t))
	if err != nil {
		t.Fatal(err)
	}
	if !reflect.DeepEqual(*got, want) {
		t.Errorf("got %d devices, %d VMMs, want %d, %d", len(got.Devices), len(got.VMMs), len(want.Devices), len(want.VMMs))
	}
}

// TestDoor moves more than one window of data both ways through a door that
// echoes, and sees its end.
func TestDoor(t *testing.T) {
	near, far := net.Pipe()
	go func() { _, _ = io.Copy(far, far) }()
	card := &fakeCard{handle: func(_ context.Context, req Request, _ *Files) (Reply, error) {
		switch r := req.(type) {
		case *DoorRead:
			b := make([]byte, MaxData)
			n, err := near.Read(b)
			if err != nil {
				n = 0
			}
			return &DoorData{Data: b[:n]}, nil
		case *DoorWrite:
			if _, err := near.Write(r.Data); err != nil {
				return nil, ErrNotFound
			}
		case *DoorClose:
			_ = near.Close()
		}
		return &Done{}, nil
	}}
	_, path := serve(t, card)
	door := dial(t, path, nil).Door(testContext(t), 1)
	want := bytes.Repeat([]byte("0123456789abcdef"), 10*1024)
	go func() {
		if _, err := door.Write(want); err != nil {
			t.Errorf("write: %v", err)
		}
	}()
	got := make([]byte, len(want))
	if _, err := io.ReadFull(door, got); err != nil || !bytes.Equal(got, want) {
		t.Fatalf("read: %v, equal %v", err, bytes.Equal(got, want))
	}
	_ = far.Close()
	if n, err := door.Read(got); n != 0 || err != io.EOF {
		t.Errorf("at the end: %d, %v, want 0, EOF", n, err)
	}
	if err := door.Close(); err != nil {
		t.Errorf("close: %v", err)
	}
	if _, err := door.Write(want); !errors.Is(err, io.ErrClosedPipe) {
		t.Errorf("write after close: %v", err)
	}
}
