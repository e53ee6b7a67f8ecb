// SPDX-License-Identifier: Apache-2.0

package virtqtest

import (
	"encoding/binary"
	"sync/atomic"

	"github.com/davit-dpu/davit/firmware/virtio/virtq"
)

// Flags of a packed ring (Virtio 1.2, 2.8.1 and 2.8.10).
const (
	FlagAvail = 1 << 7
	FlagUsed  = 1 << 15

	packedWrap = 1 << 15

	eventEnable  = 0
	eventDisable = 1
	eventDesc    = 2
)

// PackedStart is where a packed ring begins: entry 0, both wrap counters 1.
const PackedStart virtq.Position = 0x80008000

// PackedDriver is the driver's side of one packed virtqueue.
type PackedDriver struct {
	mem  *Memory
	opts Options
	size uint16

	desc, driver, device Buf
	tables               []Buf // one indirect table for each id

	free     []uint16 // ids
	length   []uint16 // ring entries of the buffer with this id
	room     uint16   // ring entries that are not in flight
	next     uint16   // where the next buffer goes
	wrap     bool
	used     uint16 // where the next used entry is
	usedWrap bool
	kicked   int // next at the last Publish, less the size if the ring was lapped since
	pending  []pendingFlags
	inFlight int
}

// pendingFlags are the flags of a buffer's first entry: written last, by Publish.
type pendingFlags struct{ at, id, flags uint16 }

// NewPacked lays a packed queue out in mem.
func NewPacked(mem *Memory, size int, opts Options) *PackedDriver {
	d := &PackedDriver{
		mem: mem, opts: opts, size: uint16(size), room: uint16(size), wrap: true, usedWrap: true,
		desc:   mem.AllocAligned(16*size, cacheLine),
		driver: mem.AllocAligned(4, cacheLine),
		device: mem.AllocAligned(4, cacheLine),
		length: make([]uint16, size),
		tables: make([]Buf, size),
	}
	for i := size - 1; i >= 0; i-- {
		d.free = append(d.free, uint16(i))
	}
	return d
}

// Addresses are the guest-physical addresses of the ring and the two event areas.
func (d *PackedDriver) Addresses() virtq.Addresses {
	return virtq.Addresses{Desc: d.desc.Addr, Avail: d.driver.Addr, Used: d.device.Addr}
}

// Size is the number of descriptors.
func (d *PackedDriver) Size() int { return int(d.size) }

// Add makes a buffer available, readable parts first, and returns its id. The
// device sees it after Publish. It fails with ErrFull and then changes nothing.
func (d *PackedDriver) Add(readable, writable []Buf) (uint16, error) {
	var list []Desc
	for _, b := range readable {
		list = append(list, Desc{Addr: b.Addr, Len: uint32(len(b.Bytes))})
	}
	for _, b := range writable {
		list = append(list, Desc{Addr: b.Addr, Len: uint32(len(b.Bytes)), Flags: FlagWrite})
	}
	n := uint16(len(list))
	if d.opts.Indirect {
		n = 1
	}
	if n == 0 || n > d.room || len(d.free) == 0 {
		return 0, ErrFull
	}
	id := d.free[len(d.free)-1]
	d.free = d.free[:len(d.free)-1]
	if d.opts.Indirect {
		list = []Desc{d.table(id, list)}
	}
	for i, e := range list {
		flags := e.Flags
		if i < len(list)-1 {
			flags |= FlagNext
		}
		if d.wrap {
			flags |= FlagAvail
		} else {
			flags |= FlagUsed
		}
		entry := d.Entry(d.next)
		binary.LittleEndian.PutUint64(entry, e.Addr)
		binary.LittleEndian.PutUint32(entry[8:], e.Len)
		if i == 0 {
			d.pending = append(d.pending, pendingFlags{d.next, id, flags})
		} else {
			d.setFlags(d.next, id, flags)
		}
		if d.next++; d.next == d.size {
			d.next, d.wrap = 0, !d.wrap
			d.kicked -= int(d.size)
		}
	}
	d.length[id] = n
	d.room -= n
	d.inFlight++
	return id, nil
}

func (d *PackedDriver) table(id uint16, list []Desc) Desc {
	if len(d.tables[id].Bytes) < 16*len(list) {
		d.tables[id] = d.mem.Alloc(16 * len(list))
	}
	t := d.tables[id]
	for i, e := range list {
		PutPackedDesc(t.Bytes[16*i:], e)
	}
	return Desc{Addr: t.Addr, Len: uint32(16 * len(list)), Flags: FlagIndirect}
}

// Publish shows the device all buffers added, and reports whether it wants to be
// kicked.
func (d *PackedDriver) Publish() bool {
	old := d.kicked
	for i := len(d.pending) - 1; i >= 0; i-- { // the first one last: the device sees all or none
		p := d.pending[i]
		d.setFlags(p.at, p.id, p.flags)
	}
	d.pending, d.kicked = d.pending[:0], int(d.next)
	p, _ := word(d.device.Bytes, 0)
	event := atomic.LoadUint32(p)
	switch event >> 16 & 3 {
	case eventDisable:
		return false
	case eventDesc:
		at, now := int(event&^packedWrap&0xffff), int(d.next)
		if event&packedWrap != 0 != d.wrap {
			at -= int(d.size)
		}
		return uint16(now-at-1) < uint16(now-old)
	}
	return true
}

// Collect returns the id of the next buffer that the device used, if there is one.
func (d *PackedDriver) Collect() (id uint16, written uint32, ok bool) {
	if !d.ready() {
		return 0, 0, false
	}
	p, _ := word(d.desc.Bytes, 16*int(d.used)+12)
	id = uint16(atomic.LoadUint32(p))
	written = binary.LittleEndian.Uint32(d.Entry(d.used)[8:])
	n := d.length[id]
	d.length[id] = 0
	if d.used += n; d.used >= d.size {
		d.used -= d.size
		d.usedWrap = !d.usedWrap
	}
	d.room += n
	d.inFlight--
	d.free = append(d.free, id)
	return id, written, true
}

func (d *PackedDriver) ready() bool {
	p, _ := word(d.desc.Bytes, 16*int(d.used)+12)
	flags := atomic.LoadUint32(p) >> 16
	return flags&FlagAvail != 0 == d.usedWrap && flags&FlagUsed != 0 == d.usedWrap
}

// Arm asks for a call with the next used buffer, and reports whether one is there
// already: then there may be no call.
func (d *PackedDriver) Arm() bool {
	event := uint32(eventEnable << 16)
	if d.opts.EventIdx {
		event = eventDesc<<16 | uint32(d.used)
		if d.usedWrap {
			event |= packedWrap
		}
	}
	d.setEvent(event)
	return d.ready()
}

// SuppressCalls asks for no calls.
func (d *PackedDriver) SuppressCalls() { d.setEvent(eventDisable << 16) }

func (d *PackedDriver) setEvent(event uint32) {
	p, _ := word(d.driver.Bytes, 0)
	atomic.StoreUint32(p, event)
}

// Entry is ring entry i.
func (d *PackedDriver) Entry(i uint16) []byte { return d.desc.Bytes[16*int(i):][:16] }

// SetEntry makes ring entry i available on the ring's first lap, whatever is in it.
func (d *PackedDriver) SetEntry(i, id uint16, v Desc) {
	binary.LittleEndian.PutUint64(d.Entry(i), v.Addr)
	binary.LittleEndian.PutUint32(d.Entry(i)[8:], v.Len)
	d.setFlags(i, id, v.Flags|FlagAvail)
}

func (d *PackedDriver) setFlags(at, id, flags uint16) {
	p, _ := word(d.desc.Bytes, 16*int(at)+12)
	atomic.StoreUint32(p, uint32(id)|uint32(flags)<<16)
}

// PutPackedDesc writes a descriptor of an indirect table of a packed ring to b.
func PutPackedDesc(b []byte, v Desc) {
	binary.LittleEndian.PutUint64(b, v.Addr)
	binary.LittleEndian.PutUint32(b[8:], v.Len)
	binary.LittleEndian.PutUint16(b[12:], 0)
	binary.LittleEndian.PutUint16(b[14:], v.Flags)
}
