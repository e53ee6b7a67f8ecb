// SPDX-License-Identifier: Apache-2.0

package vhostuser_test

import (
	"strings"
	"testing"

	"github.com/davit-dpu/davit/firmware/virtio/vhostuser"
	"github.com/davit-dpu/davit/firmware/virtio/vhostuser/vhostusertest"
)

func (s *session) wantStatus(want uint64) {
	s.t.Helper()
	if got, err := s.front.GetU64(vhostuser.GetStatus); got != want || err != nil {
		s.t.Errorf("status: got %#x, %v; want %#x", got, err, want)
	}
}

// Both ways to reset a device leave it as it was in the beginning, but for what
// belongs to the connection.
func TestReset(t *testing.T) {
	t.Parallel()
	for name, reset := range map[string]func(*vhostusertest.FrontEnd) error{
		"device": func(f *vhostusertest.FrontEnd) error { return f.Do(vhostuser.ResetDevice, nil) },
		"status": func(f *vhostusertest.FrontEnd) error { return f.Do(vhostuser.SetStatus, vhostusertest.U64(0)) },
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			s := open(t)
			s.front.Extra = extra
			s.attach()
			s.wantStatus(0)
			q := s.start(0)
			s.must(s.front.Do(vhostuser.SetStatus, vhostusertest.U64(1|2|4|8)))
			s.wantStatus(15)
			s.roundTrip(q, "before")
			s.must(reset(s.front))
			s.wantStatus(0)
			s.must(s.front.Do(vhostuser.SetFeatures, vhostusertest.U64(1<<32|1<<30))) // others than before
			if base, err := s.front.StopQueue(0); base != 0 || err != nil {
				t.Errorf("base: got %d, %v; want 0", base, err)
			}
			last := vhostuser.Status{Running: -1}
			for len(s.status) > 0 {
				last = <-s.status
			}
			if last.Running != 0 || last.Features != 1<<32|1<<30 {
				t.Errorf("status %+v", last)
			}
			s.must(s.front.Do(vhostuser.SetFeatures, vhostusertest.U64(uint64(ringFeatures|vhostuser.FeatureProtocolFeatures))))
			s.roundTrip(s.start(0), "afterwards, with the same memory")
			s.must(s.end())
		})
	}
}

// A ring that was reset has to be set up again.
func TestResetForgetsRings(t *testing.T) {
	t.Parallel()
	s := open(t)
	s.front.Extra = extra
	s.attach()
	s.start(0)
	s.must(s.front.Do(vhostuser.ResetDevice, nil))
	kick := trap(t)
	if err := s.front.Do(vhostuser.SetVringKick, vhostusertest.U64(0), kick); err == nil {
		t.Error("a ring without size and addresses was started")
	}
	if err := <-s.result; err == nil || !strings.Contains(err.Error(), "before its memory") {
		t.Errorf("got %v", err)
	}
}

// A device that a driver's violation stopped says that it needs a reset, which
// mends it.
func TestNeedsReset(t *testing.T) {
	t.Parallel()
	s := open(t)
	s.front.Extra = extra
	s.attach()
	q := s.start(0)
	s.must(s.front.Do(vhostuser.SetStatus, vhostusertest.U64(15)))
	q.SetAvailIdx(1000)
	s.must(q.Kick())
	for st := range s.status {
		if st.Stopped != nil {
			break
		}
	}
	s.wantStatus(15 | 64)
	s.must(s.front.Do(vhostuser.SetStatus, vhostusertest.U64(15|64|128))) // as a front end adds to it
	s.wantStatus(15 | 64 | 128)
	s.must(s.front.Do(vhostuser.SetStatus, vhostusertest.U64(0)))
	s.wantStatus(0)
	s.must(s.front.Do(vhostuser.SetFeatures, vhostusertest.U64(uint64(ringFeatures|vhostuser.FeatureProtocolFeatures))))
	s.roundTrip(s.start(0), "after the reset")
	s.must(s.end())
}
