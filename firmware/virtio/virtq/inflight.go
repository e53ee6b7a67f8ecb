// SPDX-License-Identifier: Apache-2.0

package virtq

import (
	"cmp"
	"encoding/binary"
	"slices"
	"sync"
	"sync/atomic"
)

// In-flight tracking (vhost-user, "Inflight I/O tracking"): memory that outlives
// this process says which requests were taken and not handed back, so that a
// successor executes exactly those.
//
// A split queue completes in any order then. Its region is that of the protocol:
//
//	 0  features u64   8  version u16   10  desc_num u16
//	12  last_batch_head u16             14  used_idx u16
//	16  desc_num times: inflight u8, pad 5, next u16, counter u64
//
// A packed queue goes on completing in ring order: what is in flight is all from
// the used position on. That position is not in the ring, so its region keeps it:
//
//	12  position u16, wrap counter in bit 15
//	14  entries of the buffer that is being marked used, u16
const (
	inflightVersion = 1
	inflightHeader  = 16
	inflightEntry   = 16

	offVersion = 8
	offDescNum = 10
	offBatch   = 12
	offUsedIdx = 14

	offPosition = 12
	offPending  = 14

	offNext    = 6
	offCounter = 8
)

// InflightSize is the number of bytes that a queue of size descriptors needs of an
// in-flight region, a multiple of 64.
func InflightSize(size int) int { return (inflightHeader + inflightEntry*size + 63) &^ 63 }

// initInflight makes region that of a queue of size descriptors without requests
// in flight. at is where a packed ring is.
func initInflight(region []byte, size int, at Position) {
	clear(region[:InflightSize(size)])
	binary.LittleEndian.PutUint16(region[offDescNum:], uint16(size))
	binary.LittleEndian.PutUint16(region[offPosition:], uint16(at>>16)) // split: batch head 0
	binary.LittleEndian.PutUint16(region[offVersion:], inflightVersion)
}

// known says that a region was initialised for a queue of this size. A region of
// zeroes says nothing about what is in flight, least of all that nothing is.
func known(region []byte, size int) bool {
	return len(region) >= InflightSize(size) && binary.LittleEndian.Uint16(region[offVersion:]) == inflightVersion &&
		int(binary.LittleEndian.Uint16(region[offDescNum:])) == size
}

// tracker keeps the in-flight region of a split queue. The region may be shared with
// a hostile process: what is read from it is bounded, and decides about nothing
// but which of this queue's requests are executed.
type tracker struct {
	region  []byte
	size    uint16
	counter uint64   // available side
	batch   []uint16 // used side: heads put and not yet published

	// publishing is held from before the driver sees a batch until that is noted:
	// meanwhile the driver may offer the same heads again.
	publishing sync.Mutex
}

func (t *tracker) entry(head uint16) []byte {
	return t.region[inflightHeader+inflightEntry*int(head):][:inflightEntry]
}

// flag is the word of an entry that says whether it is in flight, and padding.
func (t *tracker) flag(head uint16) *uint32 { return wordAt(t.entry(head), 0) }

// begin notes that a request was taken.
func (t *tracker) begin(head uint16) {
	flag := t.flag(head)
	if atomic.LoadUint32(flag) != 0 { // its last completion is seen, and about to be noted
		t.publishing.Lock()
		defer t.publishing.Unlock()
	}
	t.counter++
	binary.LittleEndian.PutUint64(t.entry(head)[offCounter:], t.counter)
	atomic.StoreUint32(flag, 1)
}

// put notes that a request is in the used ring and not yet published.
func (t *tracker) put(head uint16) {
	last := t.region[offBatch:]
	binary.LittleEndian.PutUint16(t.entry(head)[offNext:], binary.LittleEndian.Uint16(last))
	binary.LittleEndian.PutUint16(last, head)
	t.batch = append(t.batch, head)
}

// published notes that the used index now is used.
func (t *tracker) published(used uint16) {
	for _, head := range t.batch {
		atomic.StoreUint32(t.flag(head), 0)
	}
	t.batch = t.batch[:0]
	binary.LittleEndian.PutUint16(t.region[offUsedIdx:], used)
}

// recover finds what a predecessor left in flight, in the order in which it was
// taken. used is the index in the ring.
func (t *tracker) recover(used uint16) []uint16 {
	// It died between publishing a batch and noting that.
	n := used - binary.LittleEndian.Uint16(t.region[offUsedIdx:])
	head := binary.LittleEndian.Uint16(t.region[offBatch:])
	for ; n > 0 && n <= t.size && head < t.size; n-- {
		e := t.entry(head)
		e[0] = 0
		head = binary.LittleEndian.Uint16(e[offNext:])
	}
	t.published(used)
	type taken struct {
		head    uint16
		counter uint64
	}
	var left []taken
	for head := range t.size {
		e := t.entry(head)
		if e[0] == 0 {
			continue
		}
		c := binary.LittleEndian.Uint64(e[offCounter:])
		t.counter = max(t.counter, c)
		left = append(left, taken{head, c})
	}
	slices.SortFunc(left, func(a, b taken) int { return cmp.Compare(a.counter, b.counter) })
	var heads []uint16
	for _, l := range left {
		heads = append(heads, l.head)
	}
	return heads
}
