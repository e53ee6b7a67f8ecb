// SPDX-License-Identifier: Apache-2.0

package vhostuser_test

import (
	"sync/atomic"
	"testing"

	"github.com/davit-dpu/davit/firmware/virtio/vhostuser"
	"github.com/davit-dpu/davit/firmware/virtio/virtq/virtqtest"
)

const half = 1 << 19 // of a session's memory

// attachHalf negotiates and shares the first half of memory, as one slot.
func (s *session) attachHalf() {
	s.t.Helper()
	s.front.Extra = vhostuser.ProtocolMemSlots
	s.must(s.front.Negotiate(ringFeatures))
	s.must(s.front.AddRegion(s.mem, 0, half))
}

// Regions come and go under a running ring.
func TestMemSlots(t *testing.T) {
	t.Parallel()
	s := open(t)
	s.attachHalf()
	if n, err := s.front.GetU64(vhostuser.GetMaxMemSlots); n != vhostuser.MaxMemSlots || err != nil {
		t.Errorf("slots: got %d, %v", n, err)
	}
	q := s.start(0)
	s.roundTrip(q, "in the first region")
	low := s.mem.Mark()
	for i := range 3 {
		s.must(s.front.AddRegion(s.mem, half, half))
		s.mem.Free(half + uint64(i)*4096)
		s.roundTrip(q, "in the second region")
		s.must(s.front.RemoveRegion(half, half))
		s.mem.Free(low)
		s.roundTrip(q, "in the first region again")
	}
	if got := q.UsedIdx(); got != 7 {
		t.Errorf("used index %d, want 7", got)
	}
	s.mem.Free(half)
	gone := s.mem.Alloc(16)
	_, err := q.Add([]virtqtest.Buf{gone}, nil)
	s.must(err)
	s.must(q.Submit())
	for st := range s.status {
		if st.Stopped != nil {
			break
		}
	}
	s.must(s.end())
}

// A ring whose memory is taken away waits for it, and loses nothing.
func TestRingWaitsForItsMemory(t *testing.T) {
	t.Parallel()
	s := open(t)
	s.attachHalf()
	q := s.start(0)
	s.roundTrip(q, "before")
	s.must(s.front.RemoveRegion(0, half))
	b := s.mem.Alloc(16)
	_, err := q.Add([]virtqtest.Buf{b}, nil)
	s.must(err)
	q.Publish()
	s.must(q.Kick())
	if base, err := s.front.GetU64(vhostuser.GetMaxMemSlots); err != nil || base == 0 { // the session goes on
		t.Error(err)
	}
	if got := q.UsedIdx(); got != 1 {
		t.Errorf("used index %d, want 1", got)
	}
	s.must(s.front.AddRegion(s.mem, 0, 2*half))
	if _, _, err := q.Next(); err != nil {
		t.Error(err)
	}
	s.roundTrip(q, "afterwards")
	s.must(s.end())
}

// A region is not removed before what uses it has ended.
func TestRemovalWaits(t *testing.T) {
	t.Parallel()
	device := &gate{entered: make(chan byte), leave: make(chan struct{})}
	s := openDevice(t, device)
	s.attachHalf()
	q := s.start(0)
	b := s.mem.Alloc(16)
	_, err := q.Add([]virtqtest.Buf{b}, nil)
	s.must(err)
	s.must(q.Submit())
	<-device.entered
	var left atomic.Bool
	go func() {
		left.Store(true)
		device.leave <- struct{}{}
	}()
	s.must(s.front.RemoveRegion(0, half))
	if got := q.UsedIdx(); got != 1 || !left.Load() {
		t.Errorf("removed with used index %d, want 1", got)
	}
	s.must(s.end())
}

// What needs file descriptors is not offered where there are none.
func TestBusOffers(t *testing.T) {
	t.Parallel()
	mem, err := virtqtest.NewMemory(1 << 20)
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = mem.Close() }()
	r := newBusRig(t, mem, 0, 1<<20)
	r.conn.in <- vhostuser.Message{Request: vhostuser.GetProtocolFeatures, Flags: 1}
	got := (<-r.conn.out).Payload
	if want := byte(vhostuser.ProtocolMQ | vhostuser.ProtocolReplyAck); got[0] != want || got[1]>>7 != 0 {
		t.Errorf("got % x", got)
	}
	close(r.conn.closed)
	if err := <-r.result; err != nil {
		t.Error(err)
	}
}
