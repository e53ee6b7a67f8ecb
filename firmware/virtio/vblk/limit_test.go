// SPDX-License-Identifier: Apache-2.0

package vblk

import (
	"context"
	"encoding/binary"
	"errors"
	"math"
	"runtime"
	"slices"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/davit-dpu/davit/firmware/virtio/virtq"
	"github.com/davit-dpu/davit/firmware/virtio/virtq/virtqtest"
)

func TestBucket(t *testing.T) {
	t.Parallel()
	start := time.Unix(1_000_000, 0)
	type ask struct {
		at   time.Duration
		n    uint64
		want time.Duration // when it passes
	}
	for _, tt := range []struct {
		name  string
		rate  uint64
		burst time.Duration
		asks  []ask
	}{
		{"no limit", 0, 0, []ask{{0, math.MaxUint64, 0}, {0, 1, 0}}},
		{"one after the other", 10, 0, []ask{{0, 1, 0}, {0, 1, 100 * time.Millisecond}, {time.Second, 1, time.Second}}},
		{"a burst", 10, 200 * time.Millisecond, []ask{{0, 1, 0}, {0, 1, 0}, {0, 1, 100 * time.Millisecond}}},
		{"no more than a burst is saved", 10, 200 * time.Millisecond, []ask{{time.Hour, 2, time.Hour}, {time.Hour, 1, time.Hour + 100*time.Millisecond}}},
		{"larger than the bucket", 100, 100 * time.Millisecond, []ask{
			{0, 1, 0}, {0, 1000, 10 * time.Millisecond}, // full again
			{0, 1, 10*time.Millisecond + 10*time.Second - 90*time.Millisecond}, // the debt is paid, and one is there
		}},
		{"nothing waits for debt alone", 100, 100 * time.Millisecond, []ask{{0, 1000, 0}, {0, 0, 9900 * time.Millisecond}}},
		{"rounded up", 3, 0, []ask{{0, 1, 0}, {0, 1, 333_333_334}}},
		{"beyond all time", 1, time.Second, []ask{{0, math.MaxUint64, 0}, {0, 1, math.MaxInt64 / 4}}},
	} {
		b := bucket{rate: tt.rate, burst: tt.burst}
		for i, a := range tt.asks {
			got := max(a.at, b.opens(a.n).Sub(start))
			if got != a.want {
				t.Errorf("%s, %d: passes after %v, want %v", tt.name, i, got, a.want)
			}
			b.take(start.Add(got), a.n)
		}
	}
}

// waiters is a limiter and requests that wait for it, each in its goroutine.
type waiters struct {
	limiter
	mu     sync.Mutex
	passed []string
	group  sync.WaitGroup
}

func newWaiters(l Limits) *waiters {
	w := &waiters{limiter: limiter{now: time.Now}}
	w.set(l)
	return w
}

// ask has a request wait, behind all that were asked before it.
func (w *waiters) ask(ctx context.Context, name string, bytes uint64) {
	w.group.Go(func() {
		verdict := " left"
		if w.wait(ctx.Done(), bytes) {
			verdict = ""
		}
		w.mu.Lock()
		defer w.mu.Unlock()
		w.passed = append(w.passed, name+verdict)
	})
	synctest.Wait()
}

func (w *waiters) check(t *testing.T, want ...string) {
	t.Helper()
	synctest.Wait()
	w.mu.Lock()
	defer w.mu.Unlock()
	if !slices.Equal(w.passed, want) {
		t.Errorf("passed %q, want %q", w.passed, want)
	}
}

// Requests pass in the order in which they came, and a cheap one does not
// overtake one that has to save up.
func TestLimiterIsFair(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWaiters(Limits{IOPS: 1000, Bandwidth: 1000, Burst: time.Second})
		ctx := t.Context()
		w.ask(ctx, "a", 1000)
		w.check(t, "a")
		w.ask(ctx, "b", 1000)
		w.ask(ctx, "c", 0)
		w.ask(ctx, "d", 500)
		if w.pass(0) {
			t.Error("a request passed those that wait")
		}
		time.Sleep(999 * time.Millisecond)
		w.check(t, "a")
		time.Sleep(time.Millisecond)
		w.check(t, "a", "b", "c")
		time.Sleep(500 * time.Millisecond)
		w.check(t, "a", "b", "c", "d")
		w.group.Wait()
	})
}

// Whatever the number of queues, the rate over any time is the limit, and no less.
func TestLimiterRate(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		const iops, burst = 500, 100 * time.Millisecond
		w := newWaiters(Limits{IOPS: iops, Burst: burst})
		for w.pass(4096) { // what is saved at the beginning
		}
		ctx, cancel := context.WithCancel(t.Context())
		counts := make([]int, 8)
		for i := range counts {
			w.group.Go(func() {
				for w.wait(ctx.Done(), 4096) {
					counts[i]++
				}
			})
		}
		time.Sleep(10 * time.Second)
		cancel()
		w.group.Wait()
		total := 0
		for _, n := range counts {
			total += n
			if n < counts[0]-1 || n > counts[0]+1 {
				t.Errorf("queues got %d", counts)
				break
			}
		}
		if want := 10 * iops; total < want-1 || total > want+1 {
			t.Errorf("%d requests in 10 s, want %d", total, want)
		}
	})
}

func TestLimiterLeave(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWaiters(Limits{IOPS: 1})
		first, leaveFirst := context.WithCancel(t.Context())
		middle, leaveMiddle := context.WithCancel(t.Context())
		w.ask(t.Context(), "a", 0)
		w.ask(first, "b", 0)
		w.ask(middle, "c", 0)
		w.ask(t.Context(), "d", 0)
		leaveMiddle()
		w.check(t, "a", "c left")
		leaveFirst()
		w.check(t, "a", "c left", "b left")
		time.Sleep(time.Second) // those that left took nothing
		w.check(t, "a", "c left", "b left", "d")
	})
}

func TestLimiterSet(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		slow := Limits{Bandwidth: 1}
		w := newWaiters(slow)
		w.ask(t.Context(), "a", 3600)
		w.ask(t.Context(), "b", 1)
		w.ask(t.Context(), "c", 1)
		w.set(slow) // forgives nothing
		w.check(t, "a")
		w.set(Limits{Bandwidth: 1, Burst: time.Second})
		w.check(t, "a", "b")
		w.set(Limits{})
		w.check(t, "a", "b", "c")
		if !w.pass(math.MaxUint64) {
			t.Error("a request waits without limits")
		}
	})
}

// add submits a request without waiting for it, and returns its status byte.
func (g *guest) add(kind uint32) *byte {
	g.t.Helper()
	hdr, st := g.mem.Alloc(headerSize), g.mem.Alloc(1)
	binary.LittleEndian.PutUint32(hdr.Bytes, kind)
	st.Bytes[0] = 0xee
	if _, err := g.driver.Add([]virtqtest.Buf{hdr}, []virtqtest.Buf{st}); err != nil {
		g.t.Fatal(err)
	}
	if g.driver.Publish() {
		g.kick.Signal()
	}
	return &st.Bytes[0]
}

// awaitWaiting returns when so many requests wait for their turn.
func awaitWaiting(d *Device, queue int, n uint64) {
	for d.Stats()[queue].Waited < n {
		runtime.Gosched()
	}
}

// once is as good as no second request: the next one waits for an hour.
var once = Limits{Bandwidth: 1, Burst: time.Second}

// A queue that is to stop leaves what waits, for whoever serves it next.
func TestStopWaitsForNoTurn(t *testing.T) {
	t.Parallel()
	d, _ := memoryDevice(t, Options{Limits: once})
	g := newGuest(t, d, 0, allFeatures)
	if status, _, _ := g.request(typeIn, 0, nil, 8<<10); status != statusOK {
		t.Fatalf("status %d of the first request", status)
	}
	done := g.driver.UsedIdx()
	status := g.add(typeFlush)
	awaitWaiting(d, 0, 1)
	if err := g.stop(); err != nil {
		t.Fatal(err)
	}
	if *status != 0xee || g.driver.UsedIdx() != done {
		t.Errorf("status %#x, used index %d", *status, g.driver.UsedIdx())
	}
}

// Nor does one whose driver broke the protocol: that is told at once, and what waits is
// not executed.
func TestViolationWaitsForNoTurn(t *testing.T) {
	t.Parallel()
	d, _ := memoryDevice(t, Options{Limits: once})
	g := newGuest(t, d, 0, allFeatures)
	g.request(typeIn, 0, nil, 8<<10)
	var waits []*byte
	for range 2 {
		waits = append(waits, g.add(typeFlush))
	}
	awaitWaiting(d, 0, 2)
	g.driver.SetAvailIdx(g.driver.UsedIdx() + 1000)
	g.kick.Signal()
	select {
	case err := <-g.result:
		g.result <- err
		var broken *virtq.ProtocolError
		if !errors.As(err, &broken) || broken.Violation != virtq.ViolationAvailIdx {
			t.Errorf("it ends with %v", err)
		}
	case <-time.After(10 * time.Second):
		t.Error("a queue that has failed waits for the turns of its requests")
	}
	if got := d.Stats()[0]; *waits[0] != 0xee || *waits[1] != 0xee || got.Flushes != 0 {
		t.Errorf("requests of a queue that has failed were executed: %+v", got)
	}
}

// Requests of one queue count for the others, and go on at once when the limits do.
func TestLimitsChange(t *testing.T) {
	t.Parallel()
	d, _ := memoryDevice(t, Options{Queues: 2, Limits: once})
	a, b := newGuest(t, d, 0, allFeatures), newGuest(t, d, 1, allFeatures)
	a.request(typeIn, 0, nil, 8<<10)
	if status, _, _ := a.request(typeGetID, 0, nil, MaxSerial); status != statusOK {
		t.Errorf("status %d of a request that is no access", status)
	}
	status := b.add(typeFlush)
	awaitWaiting(d, 1, 1)
	d.SetLimits(Limits{})
	if b.collect(); *status != statusOK {
		t.Errorf("status %#x", *status)
	}
	if got := d.Stats(); got[0].Waited != 0 || got[1].Waited != 1 {
		t.Errorf("stats %+v", got)
	}
}

// Where a request may not be left, it is executed at once.
func TestStopExecutesWhatMayNotBeLeft(t *testing.T) {
	t.Parallel()
	d, _ := memoryDevice(t, Options{Limits: once})
	d.SetLimits(Limits{Bandwidth: 1 << 10})
	d.limit.pass(8 << 10)
	stop, cancel := context.WithCancel(t.Context())
	cancel()
	s := &server{Device: d, ctx: context.WithoutCancel(stop), stop: stop.Done(), failed: func() error { return nil }, stats: &d.stats[0]}
	before := d.limit.bytes.full
	if !s.wait(&request{header: header{kind: typeIn}, data: 4 << 10}) {
		t.Error("it was left")
	}
	if got := d.limit.bytes.full.Sub(before); got != 4*time.Second {
		t.Errorf("those behind it pay %v for it, want 4s", got)
	}
	s.ctx = stop
	if s.wait(&request{header: header{kind: typeFlush}}) {
		t.Error("it was not left")
	}
}
