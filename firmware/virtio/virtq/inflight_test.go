// SPDX-License-Identifier: Apache-2.0

package virtq_test

import (
	"bytes"
	"encoding/binary"
	"fmt"
	"math/rand/v2"
	"sync"
	"testing"
	"time"

	"github.com/davit-dpu/davit/firmware/virtio/virtq"
	"github.com/davit-dpu/davit/firmware/virtio/virtq/virtqtest"
)

// life is a device that is killed again and again, and what outlives it.
type life struct {
	*rig
	rng      *rand.Rand
	region   []byte
	begin    virtq.Position // what a front end that lost its back end knows
	taken    []*virtq.Chain // by the present device, not completed
	given    int            // completed, not collected by the driver
	waiting  map[uint16]uint32
	executed map[uint32]int
	answered map[uint32]bool
	serial   uint32
}

// restart is what a new device does after the old one was killed.
func (l *life) restart() {
	l.t.Helper()
	cfg := l.config(l.begin)
	cfg.Inflight = l.region
	q, err := virtq.New(cfg)
	if err != nil {
		l.t.Fatal(err)
	}
	l.queue, l.taken = q, nil
}

// submit adds requests that carry a serial number.
func (l *life) submit(n int) {
	for range n {
		b := l.mem.Alloc(8)
		binary.LittleEndian.PutUint32(b.Bytes, l.serial)
		id, err := l.ring.Add([]virtqtest.Buf{b}, []virtqtest.Buf{l.mem.Alloc(1)})
		if err != nil {
			break // full
		}
		l.waiting[id] = l.serial
		l.serial++
	}
	l.ring.Publish()
}

func (l *life) take() {
	chains := make([]*virtq.Chain, 1+l.rng.IntN(4))
	for i := range chains {
		chains[i] = new(virtq.Chain)
	}
	n, err := l.queue.Take(chains...)
	if err != nil {
		l.t.Fatal(err)
	}
	for _, c := range chains[:n] {
		serial := binary.LittleEndian.Uint32(c.Readable[0])
		if l.answered[serial] {
			l.t.Fatalf("request %d is executed again although the driver has seen it complete", serial)
		}
		l.executed[serial]++
	}
	l.taken = append(l.taken, chains[:n]...)
}

// available says that there is a request to take.
func (l *life) available() bool { return len(l.taken)+l.given < len(l.waiting) }

// complete hands a request back, of a split ring in any order.
func (l *life) complete() {
	i := 0
	if !l.opts.packed {
		i = l.rng.IntN(len(l.taken))
	}
	c := l.taken[i]
	l.taken = append(l.taken[:i], l.taken[i+1:]...)
	serial := binary.LittleEndian.Uint32(c.Readable[0])
	before := bytes.Clone(l.region)
	l.queue.Complete(c, serial)
	l.given++
	if l.rng.IntN(4) > 0 {
		return
	}
	// killed between showing it to the driver and noting that
	after := bytes.Clone(l.region)
	copy(l.region, before)
	if l.opts.packed {
		binary.LittleEndian.PutUint16(l.region[14:], 2) // entries of the buffer
		l.restart()
		return
	}
	head := binary.LittleEndian.Uint16(after[12:])
	copy(l.region[12:14], after[12:14])
	copy(l.region[16+16*int(head)+6:][:2], after[16+16*int(head)+6:][:2])
	l.restart()
}

// collect takes what the driver has got, each request once.
func (l *life) collectAll() {
	for {
		id, n, ok := l.ring.Collect()
		if !ok {
			return
		}
		serial, known := l.waiting[id]
		if !known || n != serial || l.answered[serial] {
			l.t.Fatalf("buffer %d is answered with %d: waiting %v, for %d", id, n, known, serial)
		}
		delete(l.waiting, id)
		l.given--
		l.answered[serial] = true
	}
}

// TestInflightAcrossKills: whenever the device is killed, each request is
// completed exactly once, and none is executed that was.
func TestInflightAcrossKills(t *testing.T) {
	t.Parallel()
	for i := range 40 {
		packed := i%2 != 0
		t.Run(fmt.Sprintf("packed=%v,seed=%d", packed, i), func(t *testing.T) {
			t.Parallel()
			l := &life{
				rig: newRigSize(t, 8<<20, 16, mode{packed: packed, Options: virtqtest.Options{EventIdx: i%4 < 2}}),
				rng: rand.New(rand.NewPCG(uint64(i), 1)), region: make([]byte, virtq.InflightSize(16)),
				waiting: map[uint16]uint32{}, executed: map[uint32]int{}, answered: map[uint32]bool{},
			}
			if packed {
				l.begin = virtqtest.PackedStart
			}
			l.restart()
			kills := 0
			for l.serial < 3000 {
				if len(l.waiting) == 0 || l.rng.IntN(3) == 0 {
					l.submit(1 + l.rng.IntN(6))
				}
				switch at := l.rng.IntN(10); {
				case at == 0:
					l.restart()
					kills++
				case at < 6 && l.available():
					l.take()
				case len(l.taken) > 0:
					l.complete()
				}
				if l.rng.IntN(2) == 0 {
					l.collectAll()
				}
			}
			for l.collectAll(); len(l.waiting) > 0; l.collectAll() {
				if l.available() {
					l.take()
				}
				if len(l.taken) > 0 {
					l.complete()
				}
			}
			if len(l.answered) != int(l.serial) || kills == 0 {
				t.Errorf("%d of %d requests answered, %d kills", len(l.answered), l.serial, kills)
			}
		})
	}
}

// A region that says anything does no harm but to its own queue.
func FuzzInflight(f *testing.F) {
	region := make([]byte, virtq.InflightSize(8))
	binary.LittleEndian.PutUint16(region[8:], 1)
	binary.LittleEndian.PutUint16(region[10:], 8)
	f.Add(region, uint16(0), false)
	f.Add(region, uint16(1), true)
	f.Fuzz(func(t *testing.T, content []byte, told uint16, packed bool) {
		mem, err := virtqtest.NewMemory(1 << 16)
		if err != nil {
			t.Fatal(err)
		}
		defer mem.Close()
		r := attach(t, mem, 8, mode{packed: packed})
		defer r.dev.Close()
		region := make([]byte, virtq.InflightSize(8))
		copy(region, content)
		cfg := r.config(virtq.Position(told) << 16)
		if !packed {
			cfg.Next = virtq.Position(told)
		}
		cfg.Inflight, cfg.Kick = region, idle{}
		q, err := virtq.New(cfg)
		if err != nil {
			if q != nil {
				t.Fatal("queue and error")
			}
			return
		}
		r.add(nil, []virtqtest.Buf{mem.Alloc(8)})
		r.ring.Publish()
		if err := q.Run(t.Context(), 2, reverse); err == nil {
			t.Error("a queue that is idle went on")
		}
	})
}

// TestInflightReoffered: a driver may offer a head again as soon as used.idx says so,
// before the device has noted that: the request that is taken then is in flight.
func TestInflightReoffered(t *testing.T) {
	t.Parallel()
	r := newRig(t, 8, virtqtest.Options{})
	r.logTo(8)
	cfg := r.config(0)
	cfg.Inflight = make([]byte, virtq.InflightSize(8))
	q, err := virtq.New(cfg)
	if err != nil {
		t.Fatal(err)
	}
	r.queue = q
	head, err := r.driver.Prepare(nil, []virtqtest.Buf{r.mem.Alloc(8)})
	if err != nil {
		t.Fatal(err)
	}
	again, release := make(chan struct{}), make(chan struct{})
	var once sync.Once
	r.log.OnMark(func() { // of used.idx, of which is noted afterwards that it was published
		if r.driver.UsedIdx() == 0 {
			return
		}
		once.Do(func() {
			r.collect()
			r.driver.Offer(head)
			r.publish()
			select {
			case <-again:
			case <-time.After(100 * time.Millisecond): // taken only when that is noted
			}
		})
	})
	r.driver.Offer(head)
	r.publish()
	first := true // one after the other
	stop := r.run(2, func(*virtq.Chain) (uint32, error) {
		if first {
			first = false
			return 0, nil
		}
		close(again)
		<-release
		return 0, nil
	})
	<-again
	q.SetCall(r.call) // waits for the completion that is under way
	if cfg.Inflight[16+16*int(head)] != 1 {
		t.Error("a request that is executed is not in flight according to the region")
	}
	close(release)
	if err := stop(); err != nil {
		t.Error(err)
	}
}

// TestInflightStopped: a queue that is stopped before it began leaves nothing that its
// position does not tell of: who goes on elsewhere does not get the region.
func TestInflightStopped(t *testing.T) {
	t.Parallel()
	r := newRig(t, 8, virtqtest.Options{})
	for range 3 {
		r.add(nil, []virtqtest.Buf{r.mem.Alloc(8)})
	}
	r.publish()
	cfg := r.config(0)
	cfg.Inflight = make([]byte, virtq.InflightSize(8))
	reopen := func() *virtq.Queue {
		q, err := virtq.New(cfg)
		if err != nil {
			t.Fatal(err)
		}
		return q
	}
	first, lost := reopen(), new(virtq.Chain)
	done := new(virtq.Chain)
	if n, err := first.Take(lost, done); n != 2 || err != nil {
		t.Fatal(n, err)
	}
	first.Complete(done, 0)
	second := reopen()
	second.Stop()
	if err := second.Run(t.Context(), 1, reverse); err != nil {
		t.Fatal(err)
	}
	if used, at := r.driver.UsedIdx(), second.Position(); used != 2 || at != 2 {
		t.Errorf("used index %d, position %d: want 2 and 2", used, at)
	}
}
