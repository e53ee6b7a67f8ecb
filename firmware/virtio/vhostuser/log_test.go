// SPDX-License-Identifier: Apache-2.0

package vhostuser_test

import (
	"errors"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/davit-dpu/davit/firmware/virtio/guestmem"
	"github.com/davit-dpu/davit/firmware/virtio/vhostuser"
	"github.com/davit-dpu/davit/firmware/virtio/vhostuser/vhostusertest"
	"github.com/davit-dpu/davit/firmware/virtio/virtq"
	"github.com/davit-dpu/davit/firmware/virtio/virtq/virtqtest"
)

func (s *session) newLog(memory int) *vhostusertest.Log {
	s.t.Helper()
	l, err := vhostusertest.NewLog(memory)
	s.must(err)
	s.t.Cleanup(func() { _ = l.Close() })
	return l
}

// echoOnPages sends a request whose parts are on pages of their own, and returns
// those pages.
func (s *session) echoOnPages(q *vhostusertest.Queue) (out, in uint64) {
	s.t.Helper()
	o, i := s.mem.AllocAligned(guestmem.PageSize, guestmem.PageSize), s.mem.AllocAligned(guestmem.PageSize, guestmem.PageSize)
	_, err := q.Add([]virtqtest.Buf{o}, []virtqtest.Buf{i})
	s.must(err)
	s.must(q.Submit())
	_, _, err = q.Next()
	s.must(err)
	return o.Addr / guestmem.PageSize, i.Addr / guestmem.PageSize
}

// A running ring begins to log, goes on with another bitmap, and ends to log.
func TestLog(t *testing.T) {
	t.Parallel()
	s := open(t)
	s.front.Extra = extra
	s.attach()
	if !s.front.Features.Has(vhostuser.FeatureLogAll) {
		t.Fatal("logging is not offered")
	}
	q := s.start(0)
	used := q.Addresses().Used / guestmem.PageSize
	first, second := s.newLog(len(s.mem.Bytes())), s.newLog(len(s.mem.Bytes()))
	event := trap(t)
	s.must(s.front.Do(vhostuser.SetLogFD, nil, event))
	s.must(s.front.SetLog(first))
	s.echoOnPages(q)
	if got := first.Sync(); len(got) != 0 {
		t.Errorf("logged before it should: %v", got)
	}
	s.must(s.front.StartLog(ringFeatures, 0, q))
	for _, log := range []*vhostusertest.Log{first, second} {
		s.must(s.front.SetLog(log))
		out, in := s.echoOnPages(q)
		if got := log.Sync(); !got[in] || !got[used] || got[out] {
			t.Errorf("request from page %d to %d, ring on %d: logged %v", out, in, used, got)
		}
	}
	if got := first.Sync(); len(got) > 1 || len(got) == 1 && !got[used] { // what happened before it was replaced
		t.Errorf("replaced, and still logged to: %v", got)
	}
	if n, err := unix.Poll([]unix.PollFd{{Fd: int32(event), Events: unix.POLLIN}}, 10_000); n != 1 || err != nil {
		t.Errorf("the log event was not signalled: %d, %v", n, err)
	}
	s.must(s.front.StopLog(ringFeatures, 0, q))
	second.Sync()
	s.echoOnPages(q)
	if got := second.Sync(); len(got) != 0 {
		t.Errorf("logged afterwards: %v", got)
	}
	s.must(s.end())
}

// Without the ring's flag only buffers are logged.
func TestLogBuffersOnly(t *testing.T) {
	t.Parallel()
	s := open(t)
	s.front.Extra = extra
	s.attach()
	q := s.start(0)
	log := s.newLog(len(s.mem.Bytes()))
	s.must(s.front.Do(vhostuser.SetFeatures, vhostusertest.U64(uint64(ringFeatures|vhostuser.FeatureProtocolFeatures|vhostuser.FeatureLogAll))))
	s.echoOnPages(q) // no bitmap yet
	s.must(s.front.SetLog(log))
	_, in := s.echoOnPages(q)
	if got := log.Sync(); len(got) != 1 || !got[in] {
		t.Errorf("logged %v, want page %d", got, in)
	}
	s.must(s.end())
}

// A front end that migrates a guest under load finds all that the device wrote: a
// copy of the memory, brought up to date by the log, is the same in the end.
func TestLogMigration(t *testing.T) {
	t.Parallel()
	s := open(t)
	s.front.Extra = extra
	s.attach()
	q := s.start(0)
	log := s.newLog(len(s.mem.Bytes()))
	s.must(s.front.SetLog(log))
	s.must(s.front.StartLog(ringFeatures, 0, q))
	mem := s.mem.Bytes()
	copied := make([]byte, len(mem))
	copy(copied, mem)
	sync := func() {
		for page := range log.Sync() {
			at := page * guestmem.PageSize
			copy(copied[at:at+guestmem.PageSize], mem[at:])
		}
	}
	ins := make([]virtqtest.Buf, 100)
	for i := range ins {
		out := s.mem.AllocAligned(600, 16)
		ins[i] = s.mem.AllocAligned(600, 16)
		out.Bytes[0], out.Bytes[599] = byte(i), byte(i)+1
		_, err := q.Add([]virtqtest.Buf{out}, []virtqtest.Buf{ins[i]})
		s.must(err)
		s.must(q.Submit())
		_, _, err = q.Next()
		s.must(err)
		if i%10 == 0 {
			sync()
		}
	}
	_, err := s.front.StopQueue(0)
	s.must(err)
	sync()
	for i, in := range ins {
		if got := copied[in.Addr:][:600]; got[0] != byte(i) || got[599] != byte(i)+1 {
			t.Fatalf("request %d: the copy has %d, %d", i, got[0], got[599])
		}
	}
	at := q.Addresses().Used
	if got, want := copied[at+2], mem[at+2]; got != want || got != 100 {
		t.Errorf("used index %d in the copy, %d in memory", got, want)
	}
	s.must(s.end())
}

// A bitmap that is too small for a write, or was truncated, stops the device.
func TestLogFails(t *testing.T) {
	t.Parallel()
	for name, spoil := range map[string]func(s *session) *vhostusertest.Log{
		"too small": func(s *session) *vhostusertest.Log {
			s.mem.Free(100 * guestmem.PageSize)
			return s.newLog(64 * guestmem.PageSize)
		},
		"truncated": func(s *session) *vhostusertest.Log { return s.newLog(len(s.mem.Bytes())) },
	} {
		s := open(t)
		s.front.Extra = extra
		s.attach()
		q := s.start(0)
		log := spoil(s)
		s.must(s.front.SetLog(log))
		if name == "truncated" {
			s.must(unix.Ftruncate(log.FD(), 0))
		}
		s.must(s.front.Do(vhostuser.SetFeatures, vhostusertest.U64(uint64(ringFeatures|vhostuser.FeatureProtocolFeatures|vhostuser.FeatureLogAll))))
		in := s.mem.Alloc(16)
		_, err := q.Add(nil, []virtqtest.Buf{in})
		s.must(err)
		s.must(q.Submit())
		for st := range s.status {
			var broken *virtq.ProtocolError
			if st.Stopped == nil {
				continue
			}
			if !errors.As(st.Stopped, &broken) || broken.Violation != virtq.ViolationLog {
				t.Errorf("%s: stopped for %v", name, st.Stopped)
			}
			break
		}
		s.must(s.end())
	}
}
