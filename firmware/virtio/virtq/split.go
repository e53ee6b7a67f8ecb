// SPDX-License-Identifier: Apache-2.0

package virtq

import "encoding/binary"

// MaxSize is the largest queue size accepted. The specification allows 32768;
// QEMU and Linux use up to 1024.
const MaxSize = 1024

// Descriptor flags and sizes of the structures (Virtio 1.2, 2.7.5 to 2.7.8).
const (
	flagNext     = 1
	flagWrite    = 2
	flagIndirect = 4

	descSize     = 16
	usedElemSize = 8
	ringHeader   = 4 // flags, idx

	availNoInterrupt = 1 // avail.flags
	usedNoNotify     = 1 // used.flags
)

// split is the split virtqueue (Virtio 1.2, 2.7): its three parts in this process.
type split struct {
	size     uint16
	eventIdx bool
	desc     []byte
	avail    []byte // from the aligned word that holds avail.flags or avail.idx
	used     []byte

	availFlags, availIdx, usedEvent word
	usedFlags, usedIdx, availEvent  word
	availRing                       int // offset of ring[0] in avail

	track *tracker // nil: no in-flight region
	again []uint16 // available side: heads that a predecessor took

	// available side
	next  uint16 // next available entry
	seen  uint16 // avail.idx when it was last read, at most size ahead of next
	armed bool   // kicks are asked for
	sink  byte   // what warm read

	// used side
	filled    uint16 // next used entry
	called    uint16 // filled when the driver was last asked whether it wants a call
	calledYet bool   // called is meaningful
	dirty     *dirtyPart
}

func newSplit(cfg Config) (*split, error) {
	at := cfg.Ring
	if at.Desc%16 != 0 || at.Avail%2 != 0 || at.Used%4 != 0 {
		return nil, violation(ViolationLayout, "descriptors %#x, avail %#x, used %#x: not aligned", at.Desc, at.Avail, at.Used)
	}
	n := uint64(cfg.Size)
	r := &split{size: uint16(cfg.Size), eventIdx: cfg.EventIdx, armed: true, dirty: cfg.usedPart()}
	var err error
	if r.desc, err = cfg.part(at.Desc, descSize*n); err != nil {
		return nil, err
	}
	// The event fields and an avail ring at an odd multiple of two are reached
	// through aligned words that stick out of the ring by two bytes. Regions
	// consist of whole pages, so those bytes are mapped too.
	skew := at.Avail % 4
	if r.avail, err = cfg.part(at.Avail-skew, (skew+ringHeader+2*n+2+3)&^3); err != nil {
		return nil, err
	}
	if r.used, err = cfg.part(at.Used, ringHeader+usedElemSize*n+4); err != nil {
		return nil, err
	}
	s := int(skew)
	r.availFlags, r.availIdx = field(r.avail, s), field(r.avail, s+2)
	r.availRing = s + ringHeader
	r.usedEvent = field(r.avail, r.availRing+2*cfg.Size)
	r.usedFlags, r.usedIdx = field(r.used, 0), field(r.used, 2)
	r.availEvent = field(r.used, ringHeader+usedElemSize*cfg.Size)
	if err := r.resume(cfg); err != nil {
		return nil, err
	}
	return r, nil
}

// resume finds where to go on: with an in-flight region behind what it says is
// in flight. Without, completions were published in ring order, so it is at
// used.idx. A front end that lost its back end may know an older index: it read
// used.idx while the last completions were still on their way.
func (r *split) resume(cfg Config) error {
	used := r.usedIdx.load()
	if r.usedFlags.load() != 0 { // of a predecessor that died while it polled
		r.storeFlags(0)
	}
	r.filled = used
	if known(cfg.Inflight, cfg.Size) {
		r.track = &tracker{region: cfg.Inflight, size: r.size}
		r.again = r.track.recover(used)
		r.next = used + uint16(len(r.again))
		r.seen = r.next
		return nil
	}
	r.next, r.seen = used, used
	told := uint16(cfg.Next)
	if ahead, behind := used-told, told-used; cfg.Next > 0xffff || ahead > r.size && behind > r.size {
		return violation(ViolationLayout, "used index %d, but the front end says %d of a ring of %d", used, cfg.Next, r.size)
	}
	if cfg.Inflight != nil {
		initInflight(cfg.Inflight, cfg.Size, 0)
		r.track = &tracker{region: cfg.Inflight, size: r.size}
		r.track.published(used)
	}
	return nil
}

func (r *split) available() (bool, error) {
	if r.seen != r.next || len(r.again) > 0 {
		return true, nil
	}
	idx := r.availIdx.load()
	if n := idx - r.next; n > r.size {
		return false, violation(ViolationAvailIdx, "%d, %d ahead of %d, ring of %d", idx, n, r.next, r.size)
	}
	r.seen = idx
	return idx != r.next, nil
}

func (r *split) arm() (bool, error) {
	switch {
	case r.eventIdx:
		r.availEvent.store(r.next)
		r.dirty.wrote(ringHeader+usedElemSize*int(r.size), 2)
	case !r.armed:
		r.storeFlags(0)
	}
	r.armed = true
	return r.available()
}

// quiet needs no write with event index: the driver kicks once more when it
// passes the event that arm wrote, and then not for a long time.
func (r *split) quiet() {
	if r.armed && !r.eventIdx {
		r.storeFlags(usedNoNotify)
	}
	r.armed = false
}

// owes is about what a predecessor took. None leaves more than it takes at a time: a
// region that says so does not hold up who stops the queue.
func (r *split) owes() bool { return len(r.again) > 0 && len(r.again) <= batch }

func (r *split) storeFlags(flags uint16) {
	r.usedFlags.store(flags)
	r.dirty.wrote(0, 2)
}

func (r *split) warm(n int) {
	n = min(n, int(r.seen-r.next))
	for i := range n {
		if head := r.head(r.next + uint16(i)); head < r.size {
			r.sink += r.desc[int(head)*descSize]
		}
	}
}

func (r *split) pop(w *walker, c *Chain) error {
	var head uint16
	if len(r.again) > 0 {
		head, r.again = r.again[0], r.again[1:]
	} else {
		head = r.head(r.next)
		r.next++
	}
	if head >= r.size {
		return violation(ViolationHead, "%d of %d", head, r.size)
	}
	w.begin(c)
	if err := w.direct(r.desc, head); err != nil {
		return err
	}
	w.end(c)
	c.id, c.descs = head, 1
	if r.track != nil {
		r.track.begin(head)
	}
	return nil
}

// head returns the descriptor index in slot i of the available ring.
func (r *split) head(i uint16) uint16 {
	return field(r.avail, r.availRing+2*int(i&(r.size-1))).load()
}

// put fills the next slot of the used ring. It is seen with the next publish.
func (r *split) put(d completion) {
	off := ringHeader + usedElemSize*int(r.filled&(r.size-1))
	elem := r.used[off:][:usedElemSize]
	binary.LittleEndian.PutUint32(elem, uint32(d.id))
	binary.LittleEndian.PutUint32(elem[4:], d.written)
	r.dirty.wrote(off, usedElemSize)
	r.filled++
	if r.track != nil {
		r.track.put(d.id)
	}
}

// publish decides about the call by Virtio 1.2, 2.7.7 and 2.7.10. With event index
// both halves of the word that holds used.idx are ours: the flags are always 0.
func (r *split) publish() bool {
	if r.track != nil {
		r.track.publishing.Lock()
		defer r.track.publishing.Unlock()
	}
	if r.eventIdx {
		r.usedIdx.storeWord(uint32(r.filled) << 16)
	} else {
		r.usedIdx.store(r.filled)
	}
	r.dirty.wrote(0, ringHeader)
	if r.track != nil {
		r.track.published(r.filled)
	}
	if !r.eventIdx {
		return r.availFlags.load()&availNoInterrupt == 0
	}
	old, valid := r.called, r.calledYet
	r.called, r.calledYet = r.filled, true
	return !valid || needEvent(r.usedEvent.load(), r.filled, old)
}

// position without an in-flight region is behind the last completion: what was
// taken and not completed is taken again. With one it is behind what was taken.
func (r *split) position() Position {
	if r.track != nil {
		return Position(r.next)
	}
	return Position(r.filled)
}

// needEvent is vring_need_event (Virtio 1.2, 2.7.10): whether moving from old
// to now passes the index at which the other side wants to hear of it.
func needEvent(event, now, old uint16) bool { return now-event-1 < now-old }

// descriptor is a checked-out copy of one descriptor.
type descriptor struct {
	addr  uint64
	len   uint32
	flags uint16
	next  uint16
}

// readDescriptor copies entry i of a table. scratch keeps the copy out of
// the compiler's sight: guest memory is read exactly once.
func readDescriptor(scratch *[descSize]byte, table []byte, i int) descriptor {
	copy(scratch[:], table[i*descSize:][:descSize])
	return descriptor{
		addr:  binary.LittleEndian.Uint64(scratch[0:]),
		len:   binary.LittleEndian.Uint32(scratch[8:]),
		flags: binary.LittleEndian.Uint16(scratch[12:]),
		next:  binary.LittleEndian.Uint16(scratch[14:]),
	}
}
