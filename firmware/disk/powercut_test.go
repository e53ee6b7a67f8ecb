// SPDX-License-Identifier: Apache-2.0

package disk

import (
	"bytes"
	"encoding/binary"
	"fmt"
	"math/rand/v2"
	"slices"
	"sync"
	"testing"
)

// history is all that happened to a volume and its store, in order.
type history struct {
	mu     sync.Mutex
	events []event // guarded by mu
}

// event is a change of the store, its flush, or the begin or end of an
// operation on the volume.
type event struct {
	kind eventKind
	off  int64  // storeWrite: in the store
	data []byte // storeWrite
	op   *operation
}

type eventKind int

const (
	storeWrite eventKind = iota
	storeFlush
	opBegin
	opEnd
)

// operation is one on the volume: sectors then hold tag; a discard leaves
// them zero or as before; a flush has no sectors.
type operation struct {
	flush, discard bool
	first, n       int // sectors
	tag            uint64
}

func (h *history) add(e event) {
	h.mu.Lock()
	defer h.mu.Unlock()
	h.events = append(h.events, e)
}

// recorded is an overlay's store in memory that writes its history. With sync
// each write is durable when it ends (O_DSYNC).
type recorded struct {
	history
	sync bool
	data []byte // guarded by mu
}

func (r *recorded) Info() Info { return Info{Size: int64(len(r.data))} }

func (r *recorded) ReadAt(bufs [][]byte, off int64) error {
	r.mu.Lock()
	defer r.mu.Unlock()
	for _, b := range bufs {
		off += int64(copy(b, r.data[off:]))
	}
	return nil
}

func (r *recorded) WriteAt(bufs [][]byte, off int64) error {
	r.change(off, slices.Concat(bufs...))
	if r.sync {
		return r.Flush()
	}
	return nil
}

func (r *recorded) change(off int64, data []byte) {
	r.mu.Lock()
	defer r.mu.Unlock()
	copy(r.data[off:], data)
	r.events = append(r.events, event{kind: storeWrite, off: off, data: data})
}

func (r *recorded) Flush() error {
	r.add(event{kind: storeFlush})
	return nil
}

// Discard and WriteZeroes are never made durable by O_DSYNC.
func (r *recorded) Discard(off, n int64) error { return r.WriteZeroes(off, n, true) }

func (r *recorded) WriteZeroes(off, n int64, _ bool) error {
	r.change(off, make([]byte, n))
	return nil
}

func (r *recorded) Close() error { return nil }

// fixed is a base in memory.
type fixed struct{ *recorded }

func (f fixed) Info() Info { return Info{Size: int64(len(f.data)), ReadOnly: true} }

const (
	cutClusters = 10
	cutSectors  = cutClusters*MinClusterSize/SectorSize - 3 // the last cluster is cut
	cutBase     = cutSectors - 20
	cutWorkers  = 3
)

// tagged fills a sector with a value that can be told from all others.
func tagged(tag uint64) []byte {
	b := make([]byte, SectorSize)
	for i := 0; i < len(b); i += 8 {
		binary.LittleEndian.PutUint64(b[i:], tag)
	}
	return b
}

// work does random operations on the sectors that are the worker's own, which
// come in groups of three, so that each cluster is everybody's.
func work(t *testing.T, o *Overlay, h *history, worker, steps int) {
	rng := rand.New(rand.NewPCG(uint64(worker), 11))
	for step := range steps {
		group := rng.IntN(cutSectors/3/cutWorkers)*cutWorkers + worker
		op := &operation{first: group * 3, n: 1 + rng.IntN(3), tag: uint64(worker+1)<<32 | uint64(step+1)}
		var run func() error
		off, n := int64(op.first)*SectorSize, int64(op.n)*SectorSize
		switch rng.IntN(8) {
		default:
			data := bytes.Repeat(tagged(op.tag), op.n)
			run = func() error { return o.WriteAt([][]byte{data}, off) }
		case 5:
			op.tag = 0
			run = func() error { return o.WriteZeroes(off, n, step%2 == 0) }
		case 6:
			op.discard = true
			run = func() error { return o.Discard(off, n) }
		case 7:
			*op = operation{flush: true}
			run = o.Flush
		}
		h.add(event{kind: opBegin, op: op})
		if err := run(); err != nil {
			t.Error(err)
		}
		h.add(event{kind: opEnd, op: op})
	}
}

// TestPowerCut replays every beginning of the history of an overlay's store,
// each with different parts of what was not flushed lost, and looks for all that
// was flushed, and for nothing that nobody wrote.
func TestPowerCut(t *testing.T) {
	t.Parallel()
	for _, tt := range []struct {
		name           string
		workers, steps int
		sync           bool
	}{
		{"one writer", 1, 60, false},
		{"one writer, O_DSYNC", 1, 60, true},
		{"concurrent", cutWorkers, 20, false},
		{"concurrent, O_DSYNC", cutWorkers, 20, true},
	} {
		t.Run(tt.name, func(t *testing.T) {
			t.Parallel()
			base := fixed{&recorded{}}
			for i := range cutBase {
				base.data = append(base.data, tagged(uint64(i+1))...)
			}
			h := OverlayHeader{Size: cutSectors * SectorSize, BaseSize: int64(len(base.data)), ClusterSize: MinClusterSize, Base: testBase}
			store := &recorded{sync: tt.sync, data: make([]byte, h.StoreSize())}
			if err := FormatOverlay(store, h); err != nil {
				t.Fatal(err)
			}
			empty := bytes.Clone(store.data)
			store.events = nil
			o, err := OpenOverlay(base, store, testBase)
			if err != nil {
				t.Fatal(err)
			}
			var wg sync.WaitGroup
			for w := range tt.workers {
				wg.Go(func() { work(t, o, &store.history, w, tt.steps) })
			}
			wg.Wait()
			c := cut{base: base, empty: empty, data: h.dataOffset(), sync: tt.sync}
			for k := range len(store.events) + 1 {
				if err := c.check(store.events[:k]); err != nil {
					t.Fatalf("after %d of %d events: %v", k, len(store.events), err)
				}
			}
		})
	}
}

// cut replays histories.
type cut struct {
	base  fixed
	empty []byte // the store before the history
	data  int64  // where its clusters begin
	sync  bool
}

// check cuts the power after the events, in several ways.
func (c cut) check(events []event) error {
	rng := rand.New(rand.NewPCG(uint64(len(events)), 12))
	for name, keeps := range map[string]func() bool{
		"nothing unflushed kept": func() bool { return false },
		"half of it kept":        func() bool { return rng.IntN(2) == 0 },
		"most of it kept":        func() bool { return rng.IntN(8) != 0 },
		"little of it kept":      func() bool { return rng.IntN(8) == 0 },
	} {
		if err := c.look(c.replay(events, keeps), allowed(events, c.writeIsDurable)); err != nil {
			return fmt.Errorf("power cut, %s: %w", name, err)
		}
	}
	// A process that is killed leaves all of it to the kernel, and must have
	// lost nothing that has ended.
	if err := c.look(c.replay(events, func() bool { return true }), allowed(events, func(*operation) bool { return true })); err != nil {
		return fmt.Errorf("kill: %w", err)
	}
	return nil
}

// replay is the store after the events. Of what came after its last flush it
// has what keeps says, sector by sector, and byte by byte in the bitmap.
func (c cut) replay(events []event, keeps func() bool) []byte {
	flushed := 0
	for i, e := range events {
		if e.kind == storeFlush {
			flushed = i
		}
	}
	img := bytes.Clone(c.empty)
	for i, e := range events {
		unit := SectorSize
		if e.off < c.data {
			unit = 1
		}
		for at := 0; at < len(e.data); at += unit {
			if i < flushed || keeps() {
				copy(img[e.off+int64(at):], e.data[at:min(at+unit, len(e.data))])
			}
		}
	}
	return img
}

// writeIsDurable reports whether an operation is durable when it ends.
func (c cut) writeIsDurable(op *operation) bool { return c.sync && op.tag != 0 }

// allowed is the tags that each sector may have after the events. All that ended
// before the last complete flush began is durable, and all that has ended and is durable then.
func allowed(events []event, durableThen func(*operation) bool) [cutSectors][]uint64 {
	ends, durable := map[*operation]int{}, 0
	begins := map[*operation]int{}
	for i, e := range events {
		switch e.kind {
		case opBegin:
			begins[e.op] = i
		case opEnd:
			ends[e.op] = i
			if e.op.flush {
				durable = max(durable, begins[e.op])
			}
		}
	}
	var tags [cutSectors][]uint64
	for i := range cutBase {
		tags[i] = []uint64{uint64(i + 1)}
	}
	for i := cutBase; i < cutSectors; i++ {
		tags[i] = []uint64{0}
	}
	for _, e := range events {
		if e.kind != opBegin {
			continue
		}
		end, done := ends[e.op]
		sure := done && (end < durable || durableThen(e.op))
		for s := e.op.first; s < e.op.first+e.op.n; s++ {
			switch {
			case e.op.discard:
				tags[s] = append(tags[s], 0)
			case sure:
				tags[s] = []uint64{e.op.tag}
			default:
				tags[s] = append(tags[s], e.op.tag)
			}
		}
	}
	return tags
}

// look opens the overlay in a store's image and compares it.
func (c cut) look(img []byte, allowed [cutSectors][]uint64) error {
	o, err := OpenOverlay(c.base, &recorded{data: img}, testBase)
	if err != nil {
		return err
	}
	got := make([]byte, cutSectors*SectorSize)
	if err := o.ReadAt([][]byte{got}, 0); err != nil {
		return err
	}
	for s, tags := range allowed {
		sector := got[s*SectorSize:][:SectorSize]
		tag := binary.LittleEndian.Uint64(sector)
		if !bytes.Equal(sector, tagged(tag)) || !slices.Contains(tags, tag) {
			return fmt.Errorf("sector %d reads as %#x, may be %#x", s, tag, tags)
		}
	}
	return nil
}
