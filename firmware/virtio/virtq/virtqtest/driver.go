// SPDX-License-Identifier: Apache-2.0

package virtqtest

import (
	"encoding/binary"
	"errors"
	"sync/atomic"
	"unsafe"

	"github.com/davit-dpu/davit/firmware/virtio/virtq"
)

// Descriptor flags (Virtio 1.2, 2.7.5).
const (
	FlagNext     = 1
	FlagWrite    = 2
	FlagIndirect = 4
)

// ErrFull says that there are not enough free descriptors.
var ErrFull = errors.New("virtqueue is full")

// Desc is one descriptor.
type Desc struct {
	Addr  uint64
	Len   uint32
	Flags uint16
	Next  uint16
}

// Options are the features that a Driver uses.
type Options struct {
	// Indirect puts each chain into an indirect table.
	Indirect bool
	// EventIdx uses the event fields instead of the flags.
	EventIdx bool
}

// Driver is the driver's side of one queue.
type Driver struct {
	mem  *Memory
	opts Options
	size uint16

	desc, avail, used Buf
	tables            []Buf // one indirect table for each head

	free     []uint16
	length   []int    // descriptors of the chain with this head
	kept     []bool   // the chain with this head stays after Collect
	next     []uint16 // private copy of the table's next fields
	flags    uint16   // avail.flags
	availIdx uint16   // next to fill
	kicked   uint16   // availIdx at the last Publish
	usedIdx  uint16   // next to collect
	usedSeen uint16   // used.idx when it was last read
	inFlight int
}

// cacheLine is what each part of a ring begins with: the two sides write
// different parts, and should not wait for each other where they need not.
const cacheLine = 64

// New lays a queue out in mem.
func New(mem *Memory, size int, opts Options) *Driver {
	d := &Driver{
		mem: mem, opts: opts, size: uint16(size),
		desc:   mem.AllocAligned(16*size, cacheLine),
		avail:  mem.AllocAligned(4+2*size+4, cacheLine),
		used:   mem.AllocAligned(4+8*size+4, cacheLine),
		length: make([]int, size),
		kept:   make([]bool, size),
		next:   make([]uint16, size),
		tables: make([]Buf, size),
	}
	for i := size - 1; i >= 0; i-- {
		d.free = append(d.free, uint16(i))
	}
	return d
}

// Addresses are the guest-physical addresses of the rings.
func (d *Driver) Addresses() virtq.Addresses {
	return virtq.Addresses{Desc: d.desc.Addr, Avail: d.avail.Addr, Used: d.used.Addr}
}

// Size is the number of descriptors.
func (d *Driver) Size() int { return int(d.size) }

// InFlight is the number of chains added and not collected.
func (d *Driver) InFlight() int { return d.inFlight }

// Add makes a chain available, readable buffers first, and returns its head. The device
// sees it after Publish. It fails with ErrFull and then changes nothing.
func (d *Driver) Add(readable, writable []Buf) (uint16, error) {
	head, err := d.write(readable, writable)
	if err != nil {
		return 0, err
	}
	d.Offer(head)
	return head, nil
}

// Prepare writes a chain as Add does, for Offer to make it available as often as
// is wanted: nothing is written or allocated for it again, and its descriptors
// are never free.
func (d *Driver) Prepare(readable, writable []Buf) (uint16, error) {
	head, err := d.write(readable, writable)
	if err != nil {
		return 0, err
	}
	d.kept[head] = true
	return head, nil
}

// Offer makes a prepared chain available, which must not be in flight. The device sees
// it after Publish.
func (d *Driver) Offer(head uint16) {
	d.SetAvail(d.availIdx, head)
	d.availIdx++
	d.inFlight++
}

// write puts a chain into the table and returns its head.
func (d *Driver) write(readable, writable []Buf) (uint16, error) {
	chain := make([]Desc, 0, len(readable)+len(writable))
	for _, b := range readable {
		chain = append(chain, Desc{Addr: b.Addr, Len: uint32(len(b.Bytes))})
	}
	for _, b := range writable {
		chain = append(chain, Desc{Addr: b.Addr, Len: uint32(len(b.Bytes)), Flags: FlagWrite})
	}
	need := len(chain)
	if d.opts.Indirect {
		need = 1
	}
	if need == 0 || need > len(d.free) {
		return 0, ErrFull
	}
	heads := d.free[len(d.free)-need:]
	d.free = d.free[:len(d.free)-need]
	head := heads[need-1]
	if d.opts.Indirect {
		d.SetDesc(head, d.table(head, chain))
	} else {
		for i, c := range chain {
			at := heads[need-1-i]
			if i < need-1 {
				c.Flags |= FlagNext
				c.Next = heads[need-2-i]
			}
			d.next[at] = c.Next
			d.SetDesc(at, c)
		}
	}
	d.length[head] = need
	return head, nil
}

// table writes an indirect table and returns the descriptor that refers to it.
func (d *Driver) table(head uint16, chain []Desc) Desc {
	if len(d.tables[head].Bytes) < 16*len(chain) {
		d.tables[head] = d.mem.Alloc(16 * len(chain))
	}
	t := d.tables[head]
	for i, c := range chain {
		if i < len(chain)-1 {
			c.Flags |= FlagNext
			c.Next = uint16(i + 1)
		}
		PutDesc(t.Bytes[16*i:], c)
	}
	return Desc{Addr: t.Addr, Len: uint32(16 * len(chain)), Flags: FlagIndirect}
}

// Publish shows the device all chains added, and reports whether it wants to be
// kicked.
func (d *Driver) Publish() bool {
	old := d.kicked
	d.kicked = d.availIdx
	d.SetAvailIdx(d.availIdx)
	if d.opts.EventIdx {
		event := load16(d.used.Bytes, 4+8*int(d.size))
		return d.availIdx-event-1 < d.availIdx-old
	}
	return load16(d.used.Bytes, 0)&1 == 0 // VIRTQ_USED_F_NO_NOTIFY
}

// Collect returns the next chain that the device used, if there is one.
func (d *Driver) Collect() (head uint16, written uint32, ok bool) {
	if d.usedSeen == d.usedIdx {
		if d.usedSeen = load16(d.used.Bytes, 2); d.usedSeen == d.usedIdx {
			return 0, 0, false
		}
	}
	elem := d.used.Bytes[4+8*int(d.usedIdx%d.size):]
	head = uint16(binary.LittleEndian.Uint32(elem))
	written = binary.LittleEndian.Uint32(elem[4:])
	d.usedIdx++
	d.inFlight--
	if d.kept[head] {
		return head, written, true
	}
	for at, n := head, d.length[head]; n > 0; n-- {
		d.free = append(d.free, at)
		at = d.next[at]
	}
	d.length[head] = 0
	return head, written, true
}

// Arm asks for a call with the next used chain, and reports whether one is there
// already: then there may be no call.
func (d *Driver) Arm() bool {
	if d.opts.EventIdx {
		store16(d.avail.Bytes, 4+2*int(d.size), d.usedIdx)
	} else {
		d.setAvailFlags(0)
	}
	return load16(d.used.Bytes, 2) != d.usedIdx
}

// SuppressCalls asks for no calls, where the driver has no event index. With one, a
// driver that does not Arm is called once in 65536 chains.
func (d *Driver) SuppressCalls() { d.setAvailFlags(1) }

// setAvailFlags writes avail.flags and leaves the index as it was published.
func (d *Driver) setAvailFlags(flags uint16) {
	d.flags = flags
	store16(d.avail.Bytes, 0, flags)
}

// UsedIdx is the used index as the device published it.
func (d *Driver) UsedIdx() uint16 { return load16(d.used.Bytes, 2) }

// SetUsedIdx overwrites the device's used index.
func (d *Driver) SetUsedIdx(v uint16) { store16(d.used.Bytes, 2, v) }

// SetDesc writes descriptor i.
func (d *Driver) SetDesc(i uint16, v Desc) { PutDesc(d.desc.Bytes[16*int(i):], v) }

// SetAvail writes slot i, modulo the size, of the available ring. The device
// sees it with the next index.
func (d *Driver) SetAvail(i, head uint16) {
	binary.LittleEndian.PutUint16(d.avail.Bytes[4+2*int(i%d.size):], head)
}

// SetAvailIdx publishes an available index. The flags in the same word are the
// driver's too.
func (d *Driver) SetAvailIdx(v uint16) {
	p, _ := word(d.avail.Bytes, 2)
	atomic.StoreUint32(p, uint32(v)<<16|uint32(d.flags))
}

// PutDesc writes a descriptor to b.
func PutDesc(b []byte, v Desc) {
	binary.LittleEndian.PutUint64(b, v.Addr)
	binary.LittleEndian.PutUint32(b[8:], v.Len)
	binary.LittleEndian.PutUint16(b[12:], v.Flags)
	binary.LittleEndian.PutUint16(b[14:], v.Next)
}

// word returns the aligned word that holds the 16 bits at off.
func word(b []byte, off int) (*uint32, int) {
	aligned := off &^ 3
	return (*uint32)(unsafe.Pointer(unsafe.SliceData(b[aligned : aligned+4]))), 8 * (off - aligned)
}

func load16(b []byte, off int) uint16 {
	p, shift := word(b, off)
	return uint16(atomic.LoadUint32(p) >> shift)
}

func store16(b []byte, off int, v uint16) {
	p, shift := word(b, off)
	for {
		old := atomic.LoadUint32(p)
		if atomic.CompareAndSwapUint32(p, old, old&^(0xffff<<shift)|uint32(v)<<shift) {
			return
		}
	}
}
