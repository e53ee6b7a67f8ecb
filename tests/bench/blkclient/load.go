// SPDX-License-Identifier: Apache-2.0

package main

import (
	"encoding/binary"
	"errors"
	"fmt"
	"math/rand/v2"
	"net"
	"runtime"
	"time"
)

const (
	// sampleEvery is how many requests there are for one whose latency is
	// taken: a look at the clock costs as much as a tenth of a request.
	sampleEvery = 17
	// maxSamples are kept, the last ones.
	maxSamples = 1 << 16
	// clockEvery is how many polls there are for one that looks at the clock.
	clockEvery = 64
	// yieldEvery is how many polls there are for one that lets other goroutines
	// run, for devices in the same process: it must be rare, for it costs more than many polls.
	yieldEvery = 1024
	// patience is how long a device may complete nothing.
	patience = 10 * time.Second
)

// load keeps a client's requests in flight.
type load struct {
	*client
	job
	blocks uint64 // of the span
	next   uint64 // block of the next request, when they are sequential
	rng    *rand.Rand

	begin   time.Time
	started [queueSize]time.Duration // of requests in flight that are samples, by head; 0: no sample
	samples []time.Duration
	taken   uint64 // samples ever taken
	offered uint64
	done    uint64
	kicks   uint64
}

// drive does a job on the device at the other end of conn, which it takes over.
func drive(conn *net.UnixConn, j job) (*result, error) {
	c, err := connect(conn, j)
	if err != nil {
		return nil, err
	}
	r, err := c.do(j)
	if err = errors.Join(err, c.close()); err != nil {
		return nil, err
	}
	return r, nil
}

func (c *client) do(j job) (*result, error) {
	span := c.size
	if j.span > 0 {
		span = min(span, j.span)
	}
	if span < int64(j.block) {
		return nil, fmt.Errorf("%d bytes of the volume hold no block of %d", span, j.block)
	}
	u, l := usageNow(), newLoad(c, j, span)
	work := l.run
	if j.op == idle {
		work = l.rest
	}
	if err := work(); err != nil {
		return nil, err
	}
	return l.result(time.Since(l.begin), usageNow()-u), nil
}

// newLoad is a load on the first span bytes of the volume. It begins now.
func newLoad(c *client, j job, span int64) *load {
	return &load{
		client: c, job: j, blocks: uint64(span) / uint64(j.block),
		rng: rand.New(rand.NewPCG(1, 2)), samples: make([]time.Duration, 0, maxSamples), begin: time.Now(),
	}
}

// run keeps all slots in flight until the time is over, and then waits for
// the last of them.
func (l *load) run() error {
	for _, head := range l.heads {
		l.offer(head)
	}
	if err := l.publish(); err != nil {
		return err
	}
	w := watch{load: l}
	for {
		more, err := w.more()
		if err != nil {
			return err
		}
		if !more {
			break
		}
		if err := l.turn(true); err != nil {
			return err
		}
	}
	return l.drain(&w)
}

// drain waits for what is in flight.
func (l *load) drain(w *watch) error {
	for l.queue.InFlight() > 0 {
		if _, err := w.more(); err != nil {
			return err
		}
		if err := l.turn(false); err != nil {
			return err
		}
	}
	return nil
}

// rest moves one block and leaves the device alone.
func (l *load) rest() error {
	l.offer(l.heads[0])
	if err := l.publish(); err != nil {
		return err
	}
	if err := l.drain(&watch{load: l}); err != nil {
		return err
	}
	time.Sleep(l.duration - time.Since(l.begin))
	return nil
}

// turn takes everything that was completed and, if again, offers it once more.
// It waits for a call first when the job is to sleep and nothing is there.
func (l *load) turn(again bool) error {
	head, _, ok := l.queue.Collect()
	if !ok && l.sleep {
		if !l.queue.Arm() {
			if err := l.queue.Wait(); err != nil {
				return err
			}
		}
		head, _, ok = l.queue.Collect()
	}
	if !ok {
		return nil
	}
	for ; ok; head, _, ok = l.queue.Collect() {
		if err := l.complete(head); err != nil {
			return err
		}
		if again {
			l.offer(head)
		}
	}
	if !again {
		return nil
	}
	return l.publish()
}

// offer makes the request of a slot available, for the next block.
func (l *load) offer(head uint16) {
	s := &l.slots[head]
	var block uint64
	if l.op == randRead || l.op == randWrite {
		block = l.rng.Uint64N(l.blocks)
	} else {
		block = l.next
		if l.next++; l.next == l.blocks {
			l.next = 0
		}
	}
	binary.LittleEndian.PutUint64(s.sector, block*uint64(l.block/sectorSize))
	if l.offered++; l.offered%sampleEvery == 1 {
		l.started[head] = time.Since(l.begin)
	}
	l.queue.Offer(head)
}

// publish shows the device what was offered, and kicks it if it asks for that.
func (l *load) publish() error {
	if !l.queue.Publish() {
		return nil
	}
	l.kicks++
	return l.queue.Kick()
}

// complete checks the status of a used chain.
func (l *load) complete(head uint16) error {
	s := &l.slots[head]
	if s.status == nil {
		return fmt.Errorf("the device used head %d, which was not offered", head)
	}
	if got := s.status[0]; got != statusOK {
		return fmt.Errorf("request %d of sector %d: status %#x", l.done, binary.LittleEndian.Uint64(s.sector), got)
	}
	s.status[0] = noStatus
	l.done++
	if start := l.started[head]; start != 0 {
		l.started[head] = 0
		l.sample(time.Since(l.begin) - start)
	}
	return nil
}

// sample keeps a latency, instead of the oldest one when there are enough.
func (l *load) sample(d time.Duration) {
	if len(l.samples) < maxSamples {
		l.samples = append(l.samples, d)
	} else {
		l.samples[l.taken%maxSamples] = d
	}
	l.taken++
}

// watch looks at the clock once in a while.
type watch struct {
	*load
	polls    uint64
	done     uint64 // at progress
	progress time.Duration
}

// more reports whether there is time left. It fails when nothing was completed
// for too long.
func (w *watch) more() (bool, error) {
	if w.polls++; w.polls%clockEvery != 0 {
		return true, nil
	}
	if w.polls%yieldEvery == 0 {
		runtime.Gosched()
	}
	now := time.Since(w.begin)
	if w.done != w.load.done {
		w.done, w.progress = w.load.done, now
	} else if now-w.progress > patience {
		return false, fmt.Errorf("nothing was completed for %v: %d requests are in flight", patience, w.queue.InFlight())
	}
	return now < w.duration, nil
}
