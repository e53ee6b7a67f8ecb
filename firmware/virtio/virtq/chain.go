// SPDX-License-Identifier: Apache-2.0

package virtq

import (
	"math"

	"github.com/davit-dpu/davit/firmware/virtio/guestmem"
)

// MaxIndirect is the longest indirect table accepted, in descriptors. The
// specification limits a chain to the queue size, but drivers size indirect
// tables by the device's segment limit instead (Linux does), whatever the size that
// the front end gave the ring. QEMU accepts as many.
const MaxIndirect = 1024

// Chain is one request: the buffers of one descriptor chain. It is filled by
// Take and can be used again for the next one; its slices are then reused.
//
// The buffers are guest memory: a driver may change them while they are in
// use. Copy what is to be judged, then judge the copy.
type Chain struct {
	// Readable are the buffers that the device may only read, in order.
	Readable [][]byte
	// Writable are the buffers that the device may only write, in order.
	Writable [][]byte

	slot  int    // among the chains of a service
	id    uint16 // head of the chain, or the packed ring's buffer id
	descs uint16 // packed: ring entries that the chain takes
	seq   uint16 // position in the order of taking, modulo 2^16

	// the whole lists, kept for their room: Readable and Writable shrink
	readable, writable [][]byte
	dirty              []span // writable buffers, if writes are logged
}

// Slot numbers the chains that a Service works on at a time: what a device keeps
// for a request may be kept under it until the request is handed back.
func (c *Chain) Slot() int { return c.slot }

// Len returns the number of bytes in bufs.
func Len(bufs [][]byte) uint64 {
	var n uint64
	for _, b := range bufs {
		n += uint64(len(b))
	}
	return n
}

// ReadHeader copies the first len(p) readable bytes and removes them from
// Readable, wherever the driver put buffer borders (Virtio 1.2, 2.6.4). A
// shorter chain is a violation.
func (c *Chain) ReadHeader(p []byte) error {
	n := 0
	for n < len(p) {
		if len(c.Readable) == 0 {
			return violation(ViolationRequest, "%d readable bytes, header has %d", n, len(p))
		}
		step := copy(p[n:], c.Readable[0])
		n += step
		if c.Readable[0] = c.Readable[0][step:]; len(c.Readable[0]) == 0 {
			c.Readable = c.Readable[1:]
		}
	}
	return nil
}

// TakeStatus removes the last writable byte from Writable and returns it as a
// slice to write the request's status to. A chain without one is a violation.
func (c *Chain) TakeStatus() ([]byte, error) {
	if len(c.Writable) == 0 {
		return nil, violation(ViolationRequest, "no writable byte for the status")
	}
	last := len(c.Writable) - 1
	b := c.Writable[last]
	status := b[len(b)-1:]
	if c.Writable[last] = b[:len(b)-1]; len(c.Writable[last]) == 0 {
		c.Writable = c.Writable[:last]
	}
	return status, nil
}

// walker collects one chain. It belongs to the goroutine inside Take.
type walker struct {
	mem      *guestmem.Memory
	indirect bool // negotiated
	log      *guestmem.Log

	scratch  [descSize]byte
	readable [][]byte
	writable [][]byte
	dirty    []span
	total    uint64
	sink     byte // what warm read
}

// begin starts to collect a chain, in the room that c has.
func (w *walker) begin(c *Chain) {
	w.readable, w.writable, w.dirty, w.total = c.readable[:0], c.writable[:0], c.dirty[:0], 0
}

// end gives what was collected to c.
func (w *walker) end(c *Chain) {
	c.readable, c.writable, c.dirty = w.readable, w.writable, w.dirty
	c.Readable, c.Writable = w.readable, w.writable
}

// warm reads the first and the last byte of each request, where devices have
// headers and statuses, for the same reason as layout.warm.
func (w *walker) warm(chains []*Chain) {
	for _, c := range chains {
		if len(c.Readable) > 0 {
			w.sink += c.Readable[0][0]
		}
		if n := len(c.Writable); n > 0 {
			last := c.Writable[n-1]
			w.sink += last[len(last)-1]
		}
	}
}

// direct follows the chain that begins at head of a split ring's table.
func (w *walker) direct(table []byte, head uint16) error {
	size := len(table) / descSize
	at := int(head)
	for left := size; left > 0; left-- {
		if at >= size {
			return violation(ViolationNext, "%d of %d", at, size)
		}
		d := readDescriptor(&w.scratch, table, at)
		if d.flags&flagIndirect != 0 {
			return w.table(d)
		}
		if err := w.buffer(d); err != nil {
			return err
		}
		if d.flags&flagNext == 0 {
			return nil
		}
		at = int(d.next)
	}
	return violation(ViolationLoop, "more than %d descriptors", size)
}

// entries checks an indirect descriptor and returns the length of its table
// (2.7.5.3, 2.8.8).
func (w *walker) entries(d descriptor) (int, error) {
	n := int(d.len) / descSize
	switch {
	case !w.indirect:
		return 0, violation(ViolationIndirect, "not negotiated")
	case d.flags&flagNext != 0:
		return 0, violation(ViolationIndirect, "descriptor is indirect and has a next one")
	case d.len == 0 || d.len%descSize != 0:
		return 0, violation(ViolationIndirect, "%d bytes", d.len)
	case n > MaxIndirect:
		return 0, violation(ViolationIndirect, "%d descriptors, at most %d", n, MaxIndirect)
	}
	return n, nil
}

// table follows a split ring's indirect descriptor, which ends a chain.
func (w *walker) table(d descriptor) error {
	n, err := w.entries(d)
	if err != nil {
		return err
	}
	at := 0
	for left := n; left > 0; left-- {
		if at >= n {
			return violation(ViolationNext, "%d of %d in an indirect table", at, n)
		}
		raw, err := w.entry(d.addr, at)
		if err != nil {
			return err
		}
		entry := readDescriptor(&w.scratch, raw, 0)
		if entry.flags&flagIndirect != 0 {
			return violation(ViolationIndirect, "nested")
		}
		if err := w.buffer(entry); err != nil {
			return err
		}
		if entry.flags&flagNext == 0 {
			return nil
		}
		at = int(entry.next)
	}
	return violation(ViolationLoop, "more than %d indirect descriptors", n)
}

// entry finds entry i of an indirect table, which may run over the border of
// adjacent regions and has no alignment; then it is a copy.
func (w *walker) entry(table uint64, i int) ([]byte, error) {
	addr := table + uint64(i)*descSize
	if addr < table {
		return nil, violation(ViolationIndirect, "address %#x overflows", table)
	}
	if b, err := w.mem.Slice(addr, descSize); err == nil {
		return b, nil
	}
	parts, err := w.mem.Append(nil, addr, descSize)
	if err != nil {
		return nil, &ProtocolError{Violation: ViolationIndirect, Detail: "table is not in guest memory", Err: err}
	}
	var whole []byte
	for _, p := range parts {
		whole = append(whole, p...)
	}
	return whole, nil
}

func (w *walker) buffer(d descriptor) error {
	if d.len == 0 {
		return violation(ViolationLength, "empty buffer at %#x", d.addr)
	}
	if w.total += uint64(d.len); w.total > math.MaxUint32 {
		return violation(ViolationLength, "chain of %d bytes", w.total)
	}
	list := &w.readable
	if d.flags&flagWrite != 0 {
		list = &w.writable
	} else if len(w.writable) > 0 {
		return violation(ViolationOrder, "readable buffer at %#x after a writable one", d.addr)
	}
	bufs, err := w.mem.Append(*list, d.addr, uint64(d.len))
	if err != nil {
		return &ProtocolError{Violation: ViolationAddress, Detail: "buffer is not in guest memory", Err: err}
	}
	*list = bufs
	if w.log != nil && d.flags&flagWrite != 0 {
		w.dirty = append(w.dirty, span{d.addr, uint64(d.len)})
	}
	return nil
}
