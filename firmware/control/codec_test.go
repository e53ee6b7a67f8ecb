// SPDX-License-Identifier: Apache-2.0

package control

import (
	"bytes"
	"reflect"
	"testing"
	"time"

	"github.com/davit-dpu/davit/firmware/spec"
)

// samples has one filled-in message of each kind.
func samples() []message {
	cond := spec.Condition{Phase: spec.PhaseReady, Reason: "front end connected", Since: time.Unix(1700000000, 123456789).UTC()}
	host := HostStatus{Condition: cond, Attached: true, Build: "b", PoolSize: 1 << 30, WindowBase: 2 << 20, WindowSize: 1 << 30, Sessions: 3, Alerts: 4}
	device := Device{
		Instance: "web", ReadOnly: true, Listen: true, Generation: testGen, MemoryOffset: 1 << 21, MemorySize: 1 << 26,
		DeviceStatus: spec.DeviceStatus{Name: "root", Kind: "virtio-blk", Capacity: 512, Condition: cond, Limits: &spec.Limits{IOPS: 1}, Queues: []spec.QueueStats{{Reads: 1, Errors: 1 << 63, Waited: 2}}},
	}
	vmm := spec.VMMStatus{Instance: "web", Generation: testGen, State: spec.VMMExited, Reason: "exit 1", Adopted: true}
	order := testOrder()
	order.Kernel = &spec.Blob{Offset: 2 * spec.MiB, Length: 5, SHA256: make([]byte, 32)}
	return []message{
		&Hello{Min: 1, Current: 7, Build: "x"},
		&HelloReply{Version: VersionCurrent, Build: "y", Started: cond.Since, Sandbox: []spec.Check{{Name: "a", Result: "failed", Detail: "d"}}},
		&AttachBus{Listen: true, WindowBase: 2 * spec.MiB, WindowSize: 4 * spec.MiB, FileOffset: 2 * spec.MiB},
		&AddDevice{Instance: "web", Name: "root", Serial: "s", Queues: 3, ReadOnly: true, MemoryOffset: 2 * spec.MiB, MemorySize: 2 * spec.MiB, Generation: testGen, Limits: &spec.Limits{IOPS: 5, Bandwidth: spec.MiB, Burst: spec.MaxBurst}},
		&AddDevice{Instance: "web", Name: "root", Queues: 1, Base: bytes.Repeat([]byte{7}, 32), MemorySize: 2 * spec.MiB},
		&LimitDevice{Instance: "web", Name: "root", Limits: &spec.Limits{IOPS: 1}}, &LimitDevice{Instance: "web", Name: "root"},
		&RemoveDevice{Instance: "web", Name: "root"},
		&StartVMM{Order: testOrder(), Kernel: true, Initrd: true},
		&StartVMMReply{Order: order},
		&StopVMM{Instance: "web", Generation: testGen, Force: true},
		&ConsoleRead{Instance: "web", From: 1 << 40},
		&ConsoleOutput{Offset: 5, Data: []byte{0, 1, 255}},
		&ConsoleWrite{Instance: "web", Data: []byte("x")},
		&DoorRead{Door: 1}, &DoorData{Data: []byte{}}, &DoorWrite{Door: 2, Data: []byte("x")}, &DoorClose{Door: 3},
		&StatusRequest{Snapshot: 9, AfterDevice: "a/b", AfterVMM: "c/d"},
		&StatusReply{Status: Status{Host: host, Devices: []Device{device}, VMMs: []spec.VMMStatus{vmm}, Doors: []uint64{1, 2}}, Snapshot: 9, More: true},
		&Shutdown{}, &Done{},
		&Event{Host: &host}, &Event{Device: &device}, &Event{VMM: &vmm}, &Event{Door: &DoorStatus{Door: 1, Open: true}},
		&Error{Code: "busy", Text: "why"},
	}
}

func TestRoundTrip(t *testing.T) {
	c, err := newCodec()
	if err != nil {
		t.Fatal(err)
	}
	for _, want := range samples() {
		if err := want.check(); err != nil {
			t.Errorf("%T: %v", want, err)
		}
		b, err := c.enc.Marshal(want)
		if err != nil {
			t.Fatalf("%T: %v", want, err)
		}
		got := reflect.New(reflect.TypeOf(want).Elem()).Interface().(message)
		if err := decodeBody(c, b, got); err != nil {
			t.Fatalf("%T: %v", want, err)
		}
		if !reflect.DeepEqual(got, want) {
			t.Errorf("%T: got %+v, want %+v", want, got, want)
		}
		for i := range b {
			if err := c.decode(b[:i], got); err == nil {
				t.Errorf("%T: cut to %d of %d bytes is accepted", want, i, len(b))
			}
		}
	}
}

func TestEveryRequestHasItsName(t *testing.T) {
	for name, build := range requests {
		if got := build().op(); got != name {
			t.Errorf("%q builds a request named %q", name, got)
		}
	}
}

func TestStrictDecoding(t *testing.T) {
	c, err := newCodec()
	if err != nil {
		t.Fatal(err)
	}
	for name, b := range map[string][]byte{
		"unknown key":        {0xa2, 0x64, 'd', 'o', 'o', 'r', 0x01, 0x61, 'x', 0x01},
		"duplicate key":      {0xa2, 0x64, 'd', 'o', 'o', 'r', 0x01, 0x64, 'd', 'o', 'o', 'r', 0x01},
		"indefinite length":  {0xbf, 0x64, 'd', 'o', 'o', 'r', 0x01, 0xff},
		"long integer":       {0xa1, 0x64, 'd', 'o', 'o', 'r', 0x18, 0x01},
		"tag":                {0xa1, 0x64, 'd', 'o', 'o', 'r', 0xc2, 0x41, 0x01},
		"case of the key":    {0xa1, 0x64, 'D', 'o', 'o', 'r', 0x01},
		"negative":           {0xa1, 0x64, 'd', 'o', 'o', 'r', 0x20},
		"float":              {0xa1, 0x64, 'd', 'o', 'o', 'r', 0xf9, 0x3c, 0x00},
		"missing key":        {0xa0},
		"bytes behind":       {0xa1, 0x64, 'd', 'o', 'o', 'r', 0x01, 0x00},
		"length of 4 GiB":    {0xba, 0xff, 0xff, 0xff, 0xff},
		"text for a number":  {0xa1, 0x64, 'd', 'o', 'o', 'r', 0x61, '1'},
		"nothing":            {},
		"null":               {0xf6},
		"array for a struct": {0x81, 0x01},
	} {
		if err := decodeBody(c, b, &DoorRead{}); err == nil {
			t.Errorf("%s is accepted", name)
		}
	}
	if err := decodeBody(c, []byte{0xa1, 0x64, 'd', 'o', 'o', 'r', 0x01}, &DoorRead{}); err != nil {
		t.Errorf("the good one: %v", err)
	}
}

func FuzzFrame(f *testing.F) {
	c, err := newCodec()
	if err != nil {
		f.Fatal(err)
	}
	for _, m := range samples() {
		frames := []frame{{Kind: kindReply, ID: 1}, {Kind: kindEvent}, {Kind: kindRequest, ID: 2, Op: "start-vmm"}}
		if r, ok := m.(Request); ok {
			frames = append(frames, frame{Kind: kindRequest, ID: 2, Op: r.op()})
		}
		for _, fr := range frames {
			if b, err := c.encodeFrame(fr, m); err == nil {
				f.Add(b)
			}
		}
	}
	f.Fuzz(func(t *testing.T, packet []byte) {
		fr, err := c.decodeFrame(packet)
		if (err == nil) != (fr != nil) {
			t.Fatalf("frame %v with error %v", fr, err)
		}
		if err != nil {
			return
		}
		switch fr.Kind {
		case kindRequest:
			req, err := c.decodeRequest(fr)
			if (err == nil) != (req != nil) {
				t.Fatalf("request %v with error %v", req, err)
			}
			if err == nil {
				_ = req.check()
			}
		case kindReply, kindEvent:
			// What the client's callers get: every type against the same bytes.
			for _, into := range []message{
				&HelloReply{}, &Done{}, &StartVMMReply{}, &ConsoleOutput{}, &DoorData{}, &StatusReply{}, &Event{},
			} {
				if decodeBody(c, fr.Body, into) != nil {
					continue
				}
				if err := into.check(); err != nil {
					t.Fatalf("%T passed unchecked: %v", into, err)
				}
			}
		}
	})
}
