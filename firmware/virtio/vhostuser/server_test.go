// SPDX-License-Identifier: Apache-2.0

package vhostuser_test

import (
	"context"
	"errors"
	"sync"
	"sync/atomic"
	"testing"

	"github.com/davit-dpu/davit/firmware/virtio"
	"github.com/davit-dpu/davit/firmware/virtio/vhostuser"
	"github.com/davit-dpu/davit/firmware/virtio/vhostuser/vhostusertest"
	"github.com/davit-dpu/davit/firmware/virtio/virtq/virtqtest"
)

// lonely is an echo that notices when a queue is served twice at a time.
type lonely struct {
	echo
	busy  [2]atomic.Int32
	twice atomic.Bool
}

func (l *lonely) Serve(ctx context.Context, q virtio.Queue) error {
	if l.busy[0].Load()+l.busy[1].Load() > 1 || l.busy[q.Index].Add(1) > 1 {
		l.twice.Store(true)
	}
	defer l.busy[q.Index].Add(-1)
	return l.echo.Serve(ctx, q)
}

// two are a front end and its successor at one device, for one guest.
func two(t *testing.T) (server *vhostuser.Server, old, next *session) {
	t.Helper()
	mem, err := virtqtest.NewMemory(1 << 20)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = mem.Close() })
	device := &lonely{}
	server = vhostuser.NewServer(device)
	old, next = connect(t, server, mem), connect(t, server, mem)
	old.attach()
	next.attach()
	t.Cleanup(func() {
		if device.twice.Load() {
			t.Error("rings of both front ends ran")
		}
	})
	return server, old, next
}

// await waits until the session's status is like this.
func (s *session) await(running, waiting int) {
	s.t.Helper()
	for st := range s.status {
		if st.Running == running && st.Waiting == waiting {
			return
		}
	}
}

// resume starts a queue that another front end runs, or ran.
func (s *session) resume(index int, d *virtqtest.Driver) *vhostusertest.Queue {
	s.t.Helper()
	q, err := s.front.StartQueue(index, d, d.UsedIdx())
	s.must(err)
	s.t.Cleanup(func() { _ = q.Close() })
	return q
}

// A successor's rings run when all of its predecessor's are stopped, and go on where
// those were, whatever stops them.
func TestSuccessor(t *testing.T) {
	t.Parallel()
	for name, stop := range map[string]func(old *session){
		"stops its rings": func(old *session) {
			for i := range 2 {
				_, err := old.front.StopQueue(i)
				old.must(err)
			}
		},
		"resets":       func(old *session) { old.must(old.front.Do(vhostuser.ResetDevice, nil)) },
		"disconnects":  func(old *session) { old.must(old.end()) },
		"breaks rules": func(old *session) { old.must(old.front.SendRaw(make([]byte, 12))) },
		"is cancelled": func(old *session) { old.cancel() },
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			mem, err := virtqtest.NewMemory(1 << 20)
			if err != nil {
				t.Fatal(err)
			}
			t.Cleanup(func() { _ = mem.Close() })
			device := &lonely{}
			server := vhostuser.NewServer(device)
			old, next := connect(t, server, mem), connect(t, server, mem)
			old.front.Extra = extra
			old.attach()
			next.attach()
			a, b := old.start(0), old.start(1)
			old.roundTrip(a, "before")
			qa, qb := next.resume(0, a.Driver), next.resume(1, b.Driver)
			next.await(0, 2)
			old.roundTrip(a, "while the successor waits")
			old.roundTrip(b, "while the successor waits")
			stop(old)
			next.await(2, 0)
			next.roundTrip(qa, "afterwards")
			next.roundTrip(qb, "afterwards")
			if got := a.UsedIdx(); got != 3 {
				t.Errorf("used index %d, want 3", got)
			}
			next.must(next.end())
			if device.twice.Load() {
				t.Error("rings of both front ends ran")
			}
		})
	}
}

// One ring that its predecessor keeps is enough to keep the successor waiting,
// whose other business goes on.
func TestPredecessorKeepsRing(t *testing.T) {
	t.Parallel()
	_, old, next := two(t)
	a, b := old.start(0), old.start(1)
	q := next.resume(0, a.Driver)
	next.await(0, 1)
	_, err := old.front.StopQueue(0)
	old.must(err)
	old.must(old.front.Do(vhostuser.SetVringEnable, vhostusertest.State(1, 0)))
	if _, err := next.front.ReadConfig(0, 4); err != nil { // and it is answered at once
		t.Error(err)
	}
	old.must(old.front.Do(vhostuser.SetVringEnable, vhostusertest.State(1, 1)))
	old.roundTrip(b, "it goes on")
	if base, err := next.front.StopQueue(0); base != 0 || err != nil { // as it was told
		t.Errorf("base: got %d, %v; want 0", base, err)
	}
	next.await(0, 0)
	_ = q.Close()
	again := next.resume(0, a.Driver)
	next.await(0, 1)
	_, err = old.front.StopQueue(1)
	old.must(err)
	next.await(1, 0)
	next.roundTrip(again, "at last")
	next.must(next.end())
	old.must(old.end())
}

// A successor that goes again leaves no trace, and another one may come. There are
// no more than two.
func TestSuccessorGoes(t *testing.T) {
	t.Parallel()
	server, old, next := two(t)
	q := old.start(0)
	next.resume(0, q.Driver)
	next.await(0, 1)
	third := connect(t, server, old.mem)
	if err := <-third.result; !errors.Is(err, vhostuser.ErrBusy) {
		t.Errorf("third front end: got %v", err)
	}
	next.must(next.end())
	old.roundTrip(q, "on it goes")
	_, err := old.front.StopQueue(0)
	old.must(err)
	q = old.resume(0, q.Driver)
	old.roundTrip(q, "and on")
	other := connect(t, server, old.mem)
	other.attach()
	successor := other.resume(0, q.Driver)
	old.must(old.end())
	other.await(1, 0)
	other.roundTrip(successor, "a guest that moved")
	other.must(other.end())
}

// Two front ends that start and stop rings as they like, each with a guest of its
// own, never run at the same time, and lose no request.
func TestTurns(t *testing.T) {
	t.Parallel()
	device := &lonely{}
	server := vhostuser.NewServer(device)
	var wg sync.WaitGroup
	for range 2 {
		mem, err := virtqtest.NewMemory(1 << 20)
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { _ = mem.Close() })
		s := connect(t, server, mem)
		s.attach()
		d := virtqtest.New(mem, 16, virtqtest.Options{Indirect: true, EventIdx: true})
		wg.Go(func() {
			for range 200 {
				for len(s.status) > 0 {
					<-s.status
				}
				q, err := s.front.StartQueue(0, d, d.UsedIdx())
				if err != nil {
					t.Error(err)
					return
				}
				s.roundTrip(q, "mine")
				if _, err := s.front.StopQueue(0); err != nil {
					t.Error(err)
				}
				_ = q.Close()
			}
		})
	}
	wg.Wait()
	if device.twice.Load() {
		t.Error("rings of both front ends ran")
	}
}
