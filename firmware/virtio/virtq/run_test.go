// SPDX-License-Identifier: Apache-2.0

package virtq_test

import (
	"context"
	"errors"
	"sync"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/davit-dpu/davit/firmware/virtio/virtq"
	"github.com/davit-dpu/davit/firmware/virtio/virtq/virtqtest"
)

// A queue that dies is followed by one that redoes exactly what is outstanding.
func TestResume(t *testing.T) {
	t.Parallel()
	for _, told := range []virtq.Position{0, 1, 2} { // what the front end read, which may be old
		r := newRig(t, 8, virtqtest.Options{EventIdx: true})
		var heads []uint16
		for range 5 {
			heads = append(heads, r.add(nil, []virtqtest.Buf{r.mem.Alloc(8)}))
		}
		r.publish()
		var c [3]virtq.Chain
		for i := range c {
			if _, err := r.queue.Take(&c[i]); err != nil {
				t.Fatal(err)
			}
		}
		r.queue.Complete(&c[0], 0)
		r.queue.Complete(&c[1], 0) // the third is lost with the process
		r.open(told)
		stop := r.run(2, func(*virtq.Chain) (uint32, error) { return 7, nil })
		for i, want := range heads {
			head, n := r.collect()
			if head != want || i >= 2 && n != 7 {
				t.Errorf("told %d, element %d: got head %d, length %d; want head %d", told, i, head, n, want)
			}
		}
		if err := stop(); err != nil {
			t.Error(err)
		}
		if got := r.queue.Position(); got != 5 {
			t.Errorf("used %d, want 5", got)
		}
	}
}

// Stopping waits for what was taken, and takes nothing more.
func TestStopDrains(t *testing.T) {
	t.Parallel()
	r := newRig(t, 8, virtqtest.Options{})
	for range 6 {
		r.add(nil, []virtqtest.Buf{r.mem.Alloc(8)})
	}
	r.publish()
	taken, release := make(chan struct{}, 8), make(chan struct{})
	stop := r.run(2, func(*virtq.Chain) (uint32, error) {
		taken <- struct{}{}
		<-release
		return 0, nil
	})
	<-taken
	<-taken
	result := make(chan error)
	go func() { result <- stop() }()
	select {
	case err := <-result:
		t.Fatalf("stopped with requests in flight: %v", err)
	default:
	}
	r.queue.Stop() // the same as the context, but surely before the release
	close(release)
	if err := <-result; err != nil {
		t.Fatal(err)
	}
	if got := r.driver.UsedIdx(); got != 2 {
		t.Errorf("used index %d, want the 2 that were taken", got)
	}
}

// The driver is notified when it wants to be, and once at the start.
func TestNotification(t *testing.T) {
	t.Parallel()
	for i := range 4 {
		event, packed := i&1 != 0, i&2 != 0
		r := newRigSize(t, 1<<20, 8, mode{Options: virtqtest.Options{EventIdx: event}, packed: packed})
		one := func() bool {
			r.add(nil, []virtqtest.Buf{r.mem.Alloc(8)})
			r.ring.Publish()
			var c virtq.Chain
			if _, err := r.queue.Take(&c); err != nil {
				t.Fatal(err)
			}
			r.queue.Complete(&c, 0)
			r.ring.Collect()
			return r.call.Rang()
		}
		if !one() {
			t.Errorf("event %v, packed %v: first completion was not notified", event, packed)
		}
		if !event || packed {
			r.ring.SuppressCalls()
		}
		if one() {
			t.Errorf("event %v, packed %v: notified although suppressed", event, packed)
		}
		r.ring.Arm()
		if !one() {
			t.Errorf("event %v, packed %v: not notified although armed", event, packed)
		}
		stop := r.run(1, reverse)
		if err := r.call.Wait(); err != nil {
			t.Error(err)
		}
		next := virtqtest.NewBell()
		r.queue.SetCall(next)
		if !next.Rang() {
			t.Errorf("event %v, packed %v: a new call was not signalled", event, packed)
		}
		if err := stop(); err != nil {
			t.Error(err)
		}
	}
}

// A memory file that is truncated under a running queue stops the queue.
func TestMemoryVanishes(t *testing.T) {
	t.Parallel()
	r := newRig(t, 8, virtqtest.Options{})
	result := make(chan error)
	go func() { result <- r.queue.Run(context.Background(), 2, reverse) }()
	_ = r.call.Wait() // it runs
	if err := unix.Ftruncate(r.mem.FD(), 0); err != nil {
		t.Fatal(err)
	}
	r.kick.Signal()
	var broken *virtq.ProtocolError
	if err := <-result; !errors.As(err, &broken) || broken.Violation != virtq.ViolationMemory {
		t.Errorf("got %v, want a violation of %q", err, virtq.ViolationMemory)
	}
	if _, err := virtq.New(r.config(0)); !errors.As(err, &broken) {
		t.Errorf("new queue on vanished memory: got %v, want a protocol error", err)
	}
}

// Many requests, many workers: nothing is lost, repeated or reordered.
func TestConcurrency(t *testing.T) {
	everyMode(t, func(t *testing.T, opts mode) {
		const total = 20000
		r := newRigSize(t, 1<<20, 64, opts)
		var mu sync.Mutex
		seen := make(map[byte]int)
		stop := r.run(8, func(c *virtq.Chain) (uint32, error) {
			mu.Lock()
			seen[c.Readable[0][0]]++
			mu.Unlock()
			return 1, nil
		})
		bufs := make(map[uint16]virtqtest.Buf)
		for range 64 {
			bufs[uint16(len(bufs))] = r.mem.Alloc(16)
		}
		for added, collected := 0, 0; collected < total; {
			for added < total && added-collected < len(bufs) {
				b := bufs[uint16(added)%64]
				b.Bytes[0] = byte(added)
				if _, err := r.ring.Add([]virtqtest.Buf{b}, nil); err != nil {
					break
				}
				added++
			}
			r.publish()
			r.collect()
			collected++
			for {
				if _, _, ok := r.ring.Collect(); !ok {
					break
				}
				collected++
			}
		}
		if err := stop(); err != nil {
			t.Fatal(err)
		}
		sum := 0
		for _, n := range seen {
			sum += n
		}
		if sum != total {
			t.Errorf("%d requests handled, want %d", sum, total)
		}
	})
}
