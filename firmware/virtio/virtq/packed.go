// SPDX-License-Identifier: Apache-2.0

package virtq

import (
	"encoding/binary"
	"sync/atomic"
)

// Flags of a packed ring (Virtio 1.2, 2.8.1 and 2.8.10).
const (
	packedAvail = 1 << 7
	packedUsed  = 1 << 15

	eventEnable  = 0
	eventDisable = 1
	eventDesc    = 2

	eventSize = 4 // of an event suppression structure: position, flags

	wrapBit = 1 << 15
)

// packed is the packed virtqueue (Virtio 1.2, 2.8): one ring of descriptors, in
// which the driver makes buffers available and the device marks them used.
//
//	          used ──────────► next ──────────► driver
//	┌────────┬────────────────┬────────────────┬────────┐
//	│ used   │ taken          │ available      │ used   │  16 bytes each
//	└────────┴────────────────┴────────────────┴────────┘
//	           addr(8) len(4) id(2) flags(2)
//
// id and flags are one aligned word: it is read and written at once, after or
// before the rest.
type packed struct {
	size     uint16
	eventIdx bool
	desc     []byte
	region   []byte  // in-flight region; nil: none
	driver   *uint32 // driver event suppression: what the driver wants
	device   *uint32 // device event suppression: what we want

	next  cursor // available side
	armed bool   // kicks are asked for; not known to be at first: a predecessor may have polled
	sink  byte   // what warm read

	filled    cursor // used side: next entry to mark used
	called    cursor // filled when the driver was last asked whether it wants a call
	calledYet bool   // called is meaningful

	dirtyDesc, dirtyDevice *dirtyPart
}

// cursor is a place in a packed ring and the wrap counter there.
type cursor struct {
	at   uint16
	wrap bool
}

func newPacked(cfg Config) (*packed, error) {
	at := cfg.Ring
	if at.Desc%16 != 0 || at.Avail%4 != 0 || at.Used%4 != 0 {
		return nil, violation(ViolationLayout, "descriptors %#x, driver event %#x, device event %#x: not aligned", at.Desc, at.Avail, at.Used)
	}
	r := &packed{size: uint16(cfg.Size), eventIdx: cfg.EventIdx}
	var err error
	if r.desc, err = cfg.part(at.Desc, descSize*uint64(cfg.Size)); err != nil {
		return nil, err
	}
	driver, err := cfg.part(at.Avail, eventSize)
	if err != nil {
		return nil, err
	}
	device, err := cfg.part(at.Used, eventSize)
	if err != nil {
		return nil, err
	}
	r.driver, r.device = wordAt(driver, 0), wordAt(device, 0)
	r.dirtyDesc, r.dirtyDevice = cfg.descPart(r.desc), cfg.usedPart()
	return r, r.resume(cfg)
}

// resume finds the used position: what was taken and not marked used is taken
// again, so both sides go on there. The ring itself does not tell; a front end that
// lost its back end only knows where it began.
func (r *packed) resume(cfg Config) error {
	bits := uint16(cfg.Next >> 16)
	if r.region = cfg.Inflight; r.region != nil {
		if !known(r.region, cfg.Size) {
			initInflight(r.region, cfg.Size, cfg.Next)
		}
		bits = binary.LittleEndian.Uint16(r.region[offPosition:])
	}
	c := cursor{at: bits &^ wrapBit, wrap: bits&wrapBit != 0}
	if c.at >= r.size {
		return violation(ViolationLayout, "entry %d of a ring of %d", c.at, r.size)
	}
	if r.region != nil {
		// It died between marking an entry used and noting that. Only a device
		// makes the used bit what the wrap counter is.
		pending := binary.LittleEndian.Uint16(r.region[offPending:])
		flags := atomic.LoadUint32(r.idFlags(c.at)) >> 16
		if pending > 0 && pending <= r.size && flags&packedUsed != 0 == c.wrap {
			c = c.plus(pending, r.size)
		}
	}
	r.next, r.filled = c, c
	r.note(0)
	return nil
}

// note keeps the used position, and how many entries are about to be marked.
func (r *packed) note(pending uint16) {
	if r.region != nil {
		atomic.StoreUint32(wordAt(r.region, offPosition), uint32(r.filled.bits())|uint32(pending)<<16)
	}
}

// idFlags returns the word that holds the id and flags of entry i.
func (r *packed) idFlags(i uint16) *uint32 { return wordAt(r.desc, int(i)*descSize+12) }

// lenIDFlags returns the second half of entry i.
func (r *packed) lenIDFlags(i uint16) *uint64 { return dwordAt(r.desc, int(i)*descSize+8) }

func (r *packed) available() (bool, error) {
	return r.next.available(uint16(atomic.LoadUint32(r.idFlags(r.next.at)) >> 16)), nil
}

// available says whether an entry with these flags is available to a device that
// is at c (2.8.1).
func (c cursor) available(flags uint16) bool {
	return flags&packedAvail != 0 == c.wrap && flags&packedUsed != 0 != c.wrap
}

// plus is the cursor n entries further on.
func (c cursor) plus(n, size uint16) cursor {
	if c.at += n; c.at >= size {
		c.at -= size
		c.wrap = !c.wrap
	}
	return c
}

// bits are a cursor's 16 bits, as in event suppression and vring bases.
func (c cursor) bits() uint16 {
	if c.wrap {
		return c.at | wrapBit
	}
	return c.at
}

func (r *packed) arm() (bool, error) {
	switch {
	case r.eventIdx:
		r.storeEvent(uint32(r.next.bits()) | eventDesc<<16)
	case !r.armed:
		r.storeEvent(eventEnable << 16)
	}
	r.armed = true
	return r.available()
}

func (r *packed) quiet() {
	if r.armed {
		r.storeEvent(eventDisable << 16)
	}
	r.armed = false
}

// owes never is the case: position is at what is taken and not marked used.
func (r *packed) owes() bool { return false }

func (r *packed) storeEvent(v uint32) {
	atomic.StoreUint32(r.device, v)
	r.dirtyDevice.wrote(0, eventSize)
}

func (r *packed) warm(n int) {
	c := r.next
	for range min(n, int(r.size)) {
		r.sink += r.desc[int(c.at)*descSize]
		c = c.plus(1, r.size)
	}
}

// pop collects the list of entries from next on (2.8.6): the buffer's id is in its
// last one.
func (r *packed) pop(w *walker, c *Chain) error {
	w.begin(c)
	at := r.next
	for n := uint16(1); n <= r.size; n++ {
		d, id := r.read(at.at, &w.scratch)
		if d.flags&flagIndirect != 0 {
			if n > 1 {
				return violation(ViolationIndirect, "indirect descriptor inside a list")
			}
			if err := w.packedTable(d); err != nil {
				return err
			}
		} else if err := w.buffer(d); err != nil {
			return err
		}
		at = at.plus(1, r.size)
		if d.flags&flagNext == 0 {
			w.end(c)
			c.id, c.descs = id, n
			r.next = at
			return nil
		}
	}
	return violation(ViolationLoop, "more than %d descriptors", r.size)
}

// read copies entry i: its flags first, since they say that the rest is there.
func (r *packed) read(i uint16, scratch *[descSize]byte) (descriptor, uint16) {
	word := atomic.LoadUint32(r.idFlags(i))
	copy(scratch[:12], r.desc[int(i)*descSize:][:12])
	return descriptor{
		addr: binary.LittleEndian.Uint64(scratch[0:]), len: binary.LittleEndian.Uint32(scratch[8:]),
		flags: uint16(word >> 16),
	}, uint16(word)
}

// packedTable collects an indirect table of a packed ring: all of its entries in
// their order (2.8.8).
func (w *walker) packedTable(d descriptor) error {
	n, err := w.entries(d)
	if err != nil {
		return err
	}
	for i := range n {
		raw, err := w.entry(d.addr, i)
		if err != nil {
			return err
		}
		copy(w.scratch[:], raw)
		entry := descriptor{
			addr: binary.LittleEndian.Uint64(w.scratch[0:]), len: binary.LittleEndian.Uint32(w.scratch[8:]),
			flags: binary.LittleEndian.Uint16(w.scratch[14:]),
		}
		if entry.flags&flagIndirect != 0 {
			return violation(ViolationIndirect, "nested")
		}
		if err := w.buffer(entry); err != nil {
			return err
		}
	}
	return nil
}

// put marks one entry used and skips the others of the buffer (2.8.7). Length, id
// and flags are one store: the driver sees all of them, and who goes on after a
// kill finds the entry as the driver made it or as it is used, never half of each.
func (r *packed) put(d completion) {
	var flags uint64
	if d.written > 0 {
		flags = flagWrite
	}
	if r.filled.wrap {
		flags |= packedAvail | packedUsed
	}
	r.note(d.descs)
	atomic.StoreUint64(r.lenIDFlags(r.filled.at), uint64(d.written)|uint64(d.id)<<32|flags<<48)
	r.dirtyDesc.wrote(int(r.filled.at)*descSize, descSize)
	r.filled = r.filled.plus(d.descs, r.size)
	r.note(0)
}

// publish decides about the call (2.8.10). What was put is seen already.
func (r *packed) publish() bool {
	old, valid := r.called, r.calledYet
	r.called, r.calledYet = r.filled, true
	event := atomic.LoadUint32(r.driver)
	switch flags := event >> 16 & 3; {
	case flags == eventDisable:
		return false
	case flags == eventDesc && r.eventIdx && valid:
		return r.passes(uint16(event), old)
	}
	return true
}

// passes says whether the used side passed the entry that the driver wants to
// hear of, on its way from old to filled.
func (r *packed) passes(event uint16, old cursor) bool {
	at := int(event &^ wrapBit)
	if event&wrapBit != 0 != r.filled.wrap {
		at -= int(r.size)
	}
	return needEvent(uint16(at), r.filled.at, r.behind(old))
}

// behind is an older place, as a distance from where filled's lap began.
func (r *packed) behind(old cursor) uint16 {
	if old.wrap != r.filled.wrap {
		return old.at - r.size
	}
	return old.at
}

func (r *packed) position() Position {
	bits := Position(r.filled.bits())
	return bits<<16 | bits
}
