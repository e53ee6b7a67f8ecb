// SPDX-License-Identifier: Apache-2.0

package vblk

import (
	"math"
	"math/bits"
	"slices"
	"sync"
	"sync/atomic"
	"time"
)

// Limits are how fast a device works for its guest, over all its queues.
//
// What is not used is saved up for as long as Burst. A request that costs more than
// can be saved passes when all is, and those behind it pay for it.
type Limits struct {
	// IOPS is the number of requests a second: reads, writes, flushes, discards and
	// write-zeroes, whatever their length. 0: no limit.
	IOPS uint64
	// Bandwidth is the bytes of reads and writes a second. 0: no limit.
	Bandwidth uint64
	// Burst is not negative.
	Burst time.Duration
}

// bucket is a token bucket that measures in time. A request costs the time in
// which the rate makes up for it:
//
//	            burst
//	now ├──────────────────┤
//	    ├───────┤ full      held: burst - (full - now); in debt when full is beyond
type bucket struct {
	rate  uint64 // a second; 0: no limit
	burst time.Duration
	full  time.Time // when nothing is missing any more
}

// cost is rounded up, so that no rate is exceeded.
func (b *bucket) cost(n uint64) time.Duration {
	if b.rate == 0 {
		return 0
	}
	const most = math.MaxInt64 / 4 // years: time stays computable
	hi, lo := bits.Mul64(n, uint64(time.Second))
	if hi >= b.rate {
		return most
	}
	q, rest := bits.Div64(hi, lo, b.rate)
	if rest > 0 {
		q++
	}
	return time.Duration(min(q, most))
}

// opens is when a request for n may pass: the bucket holds its cost, or is full.
func (b *bucket) opens(n uint64) time.Time {
	return b.full.Add(min(b.cost(n), b.burst) - b.burst)
}

// take lets a request pass.
func (b *bucket) take(now time.Time, n uint64) {
	if b.full.Before(now) {
		b.full = now
	}
	b.full = b.full.Add(b.cost(n))
}

// limiter holds a device's queues to its limits. Requests that have to wait pass
// in the order in which they came, whatever their queue and their cost.
type limiter struct {
	now func() time.Time
	on  atomic.Bool // there are limits

	mu         sync.Mutex
	limits     Limits    // guarded by mu
	ops, bytes bucket    // guarded by mu
	waiting    []*waiter // guarded by mu; the first one watches the time
}

// waiter is a request that waits. wake tells it to look again: it is the first
// one now, or the limits are others.
type waiter struct {
	bytes uint64
	wake  chan struct{} // cap 1
}

// set changes the limits; those that are in force go on undisturbed. What was
// saved or owed under others is forgotten.
func (l *limiter) set(limits Limits) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if limits == l.limits {
		return
	}
	l.limits = limits
	l.ops = bucket{rate: limits.IOPS, burst: limits.Burst}
	l.bytes = bucket{rate: limits.Bandwidth, burst: limits.Burst}
	l.on.Store(limits.IOPS != 0 || limits.Bandwidth != 0)
	l.wakeFirst()
}

// pass lets a request pass if it does not have to wait.
func (l *limiter) pass(bytes uint64) bool {
	if !l.on.Load() {
		return true
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	return len(l.waiting) == 0 && l.take(bytes) <= 0
}

// wait lets a request pass in its turn. False: stop was closed before.
func (l *limiter) wait(stop <-chan struct{}, bytes uint64) bool {
	w := &waiter{bytes: bytes, wake: make(chan struct{}, 1)}
	l.mu.Lock()
	l.waiting = append(l.waiting, w)
	l.mu.Unlock()
	for {
		passed, due := l.look(w)
		if passed {
			return true
		}
		select {
		case <-w.wake:
		case <-due:
		case <-stop:
			l.mu.Lock()
			defer l.mu.Unlock()
			l.remove(w)
			return false
		}
	}
}

// look lets w pass if it can, or says when to look again; nil: when it is woken.
func (l *limiter) look(w *waiter) (passed bool, due <-chan time.Time) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.waiting[0] != w {
		return false, nil
	}
	if pause := l.take(w.bytes); pause > 0 {
		return false, time.After(pause)
	}
	l.remove(w)
	return true, nil
}

// take lets a request pass, or returns how long it has to wait for that. mu is held.
func (l *limiter) take(bytes uint64) time.Duration {
	now := l.now()
	if pause := max(l.ops.opens(1).Sub(now), l.bytes.opens(bytes).Sub(now)); pause > 0 {
		return pause
	}
	l.spend(now, bytes)
	return 0
}

// owe is for a request that passes out of turn: those that come pay for it.
func (l *limiter) owe(bytes uint64) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.spend(l.now(), bytes)
}

// spend takes a request's cost. mu is held.
func (l *limiter) spend(now time.Time, bytes uint64) {
	l.ops.take(now, 1)
	l.bytes.take(now, bytes)
}

// remove takes w off the list. mu is held.
func (l *limiter) remove(w *waiter) {
	i := slices.Index(l.waiting, w)
	l.waiting = slices.Delete(l.waiting, i, i+1)
	if i == 0 {
		l.wakeFirst()
	}
}

// wakeFirst has the first one look. mu is held.
func (l *limiter) wakeFirst() {
	if len(l.waiting) == 0 {
		return
	}
	select {
	case l.waiting[0].wake <- struct{}{}:
	default: // it is told already
	}
}
