// SPDX-License-Identifier: Apache-2.0

package virtq

import (
	"encoding/binary"
)

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
)

// Addresses are the places of a split ring's three parts.
type Addresses struct {
	Desc, Avail, Used uint64
}

// ring is a split ring's three parts in this process.
type ring struct {
	size  uint16
	desc  []byte
	avail []byte // from the aligned word that holds avail.flags or avail.idx
	used  []byte

	availFlags, availIdx, usedEvent word
	usedIdx, availEvent             word
	availRing                       int // offset of ring[0] in avail
}

func newRing(size int, at Addresses, translate func(addr, n uint64) ([]byte, error)) (*ring, error) {
	if size < 1 || size > MaxSize || size&(size-1) != 0 {
		return nil, violation(ViolationLayout, "size %d is not a power of two up to %d", size, MaxSize)
	}
	if at.Desc%16 != 0 || at.Avail%2 != 0 || at.Used%4 != 0 {
		return nil, violation(ViolationLayout, "descriptors %#x, avail %#x, used %#x: not aligned", at.Desc, at.Avail, at.Used)
	}
	part := func(addr, n uint64) ([]byte, error) {
		b, err := translate(addr, n)
		if err != nil {
			return nil, &ProtocolError{Violation: ViolationLayout, Detail: "ring is not in guest memory", Err: err}
		}
		return b, nil
	}
	n := uint64(size)
	r := &ring{size: uint16(size)}
	var err error
	if r.desc, err = part(at.Desc, descSize*n); err != nil {
		return nil, err
	}
	// The event fields and an avail ring at an odd multiple of two are reached
	// through aligned words that stick out of the ring by two bytes. Regions
	// consist of whole pages, so those bytes are mapped too.
	skew := at.Avail % 4
	if r.avail, err = part(at.Avail-skew, (skew+ringHeader+2*n+2+3)&^3); err != nil {
		return nil, err
	}
	if r.used, err = part(at.Used, ringHeader+usedElemSize*n+4); err != nil {
		return nil, err
	}
	s := int(skew)
	r.availFlags, r.availIdx = field(r.avail, s), field(r.avail, s+2)
	r.availRing = s + ringHeader
	r.usedEvent = field(r.avail, r.availRing+2*size)
	r.usedIdx = field(r.used, 2)
	r.availEvent = field(r.used, ringHeader+usedElemSize*size)
	return r, nil
}

// head returns the descriptor index in slot i of the available ring.
func (r *ring) head(i uint16) uint16 {
	off := r.availRing + 2*int(i&(r.size-1))
	return field(r.avail, off).load()
}

// putUsed fills slot i of the used ring. It is seen with the next setUsedIdx.
func (r *ring) putUsed(i, head uint16, written uint32) {
	elem := r.used[ringHeader+usedElemSize*int(i&(r.size-1)):][:usedElemSize]
	binary.LittleEndian.PutUint32(elem, uint32(head))
	binary.LittleEndian.PutUint32(elem[4:], written)
}

// setUsedIdx publishes. The used.flags in the same word are ours and always 0:
// with event index they are, without it we never ask the driver not to kick.
func (r *ring) setUsedIdx(i uint16) { r.usedIdx.storeWord(uint32(i) << 16) }

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
