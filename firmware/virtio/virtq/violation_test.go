// SPDX-License-Identifier: Apache-2.0

package virtq_test

import (
	"errors"
	"testing"

	"github.com/davit-dpu/davit/firmware/virtio/virtq"
	"github.com/davit-dpu/davit/firmware/virtio/virtq/virtqtest"
)

// Each way to break the ring is refused with its own reason, and nothing is
// used or taken afterwards.
func TestViolations(t *testing.T) {
	t.Parallel()
	const size = 8
	type D = virtqtest.Desc
	const next, write, indirect = virtqtest.FlagNext, virtqtest.FlagWrite, virtqtest.FlagIndirect
	d := func(addr uint64, n uint32, flags, next uint16) D {
		return D{Addr: addr, Len: n, Flags: flags, Next: next}
	}
	// direct publishes a chain of descriptors 0, 1, …
	direct := func(descs ...D) func(*rig) {
		return func(r *rig) {
			for i, d := range descs {
				r.driver.SetDesc(uint16(i), d)
			}
			r.driver.SetAvail(0, 0)
			r.driver.SetAvailIdx(1)
		}
	}
	// table publishes a chain with one indirect table.
	table := func(head D, descs ...D) func(*rig) {
		return func(r *rig) {
			b := r.mem.Alloc(16 * len(descs))
			for i, d := range descs {
				virtqtest.PutDesc(b.Bytes[16*i:], d)
			}
			head.Addr = b.Addr
			if head.Len == 0 {
				head.Len = uint32(len(b.Bytes))
			}
			head.Flags |= indirect
			direct(head)(r)
		}
	}
	ok := D{Addr: 0x8000, Len: 16}
	tests := []struct {
		name  string
		setup func(*rig)
		want  virtq.Violation
	}{
		{"index jumps", func(r *rig) { r.driver.SetAvailIdx(size + 1) }, virtq.ViolationAvailIdx},
		{"index goes back", func(r *rig) { r.driver.SetAvailIdx(0xffff) }, virtq.ViolationAvailIdx},
		{"head out of table", func(r *rig) { r.driver.SetAvail(0, size); r.driver.SetAvailIdx(1) }, virtq.ViolationHead},
		{"next out of table", direct(d(0x8000, 16, next, size)), virtq.ViolationNext},
		{"next far out", direct(d(0x8000, 16, next, 0xffff)), virtq.ViolationNext},
		{"loop of one", direct(d(0x8000, 16, next, 0)), virtq.ViolationLoop},
		{"loop of two", direct(d(0x8000, 16, next, 1), d(0x8000, 16, next, 0)), virtq.ViolationLoop},
		{"readable after writable", direct(d(0x8000, 16, next|write, 1), ok), virtq.ViolationOrder},
		{"behind memory", direct(d(1<<20, 1, 0, 0)), virtq.ViolationAddress},
		{"over the end", direct(d(1<<20-1, 2, 0, 0)), virtq.ViolationAddress},
		{"address overflow", direct(d(^uint64(0), 2, 0, 0)), virtq.ViolationAddress},
		{"empty buffer", direct(d(0x8000, 0, 0, 0)), virtq.ViolationLength},
		{"nested", table(D{}, d(0x8000, 16, indirect, 0)), virtq.ViolationIndirect},
		{"indirect with next", table(D{Flags: next}, ok), virtq.ViolationIndirect},
		{"table size zero", direct(d(0x8000, 0, indirect, 0)), virtq.ViolationIndirect},
		{"table size odd", table(D{Len: 17}, ok, ok), virtq.ViolationIndirect},
		{"table too long", direct(d(0x8000, 16*(virtq.MaxIndirect+1), indirect, 0)), virtq.ViolationIndirect},
		{"table out of memory", direct(d(1<<20, 16, indirect, 0)), virtq.ViolationIndirect},
		{"table overflows", direct(d(^uint64(15), 32, indirect, 0)), virtq.ViolationIndirect},
		{"indirect loop", table(D{}, d(0x8000, 16, next, 1), d(0x8000, 16, next, 0)), virtq.ViolationLoop},
		{"indirect next", table(D{}, d(0x8000, 16, next, 7), ok), virtq.ViolationNext},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			t.Parallel()
			r := newRig(t, size, virtqtest.Options{Indirect: true})
			tt.setup(r)
			var broken *virtq.ProtocolError
			if err := r.queue.Run(t.Context(), 2, reverse); !errors.As(err, &broken) || broken.Violation != tt.want {
				t.Fatalf("got %v, want a violation of %q", err, tt.want)
			}
			if got := r.driver.UsedIdx(); got != 0 {
				t.Errorf("used index %d after a violation", got)
			}
			var c virtq.Chain
			if _, err := r.queue.Take(&c); !errors.Is(err, virtq.ErrStopped) {
				t.Errorf("take after a violation: got %v", err)
			}
		})
	}
}

// A chain of 4 GiB or more can not be told in the used ring.
func TestChainTooLong(t *testing.T) {
	t.Parallel()
	const memory = 8 << 20
	for _, tt := range []struct {
		buffers int
		ok      bool
	}{{511, true}, {512, false}, {virtq.MaxIndirect, false}} {
		r := newRigSize(t, memory, 8, mode{Options: virtqtest.Options{Indirect: true}})
		b := r.mem.Alloc(16 * tt.buffers)
		for i := range tt.buffers {
			d := virtqtest.Desc{Len: memory, Flags: virtqtest.FlagWrite}
			if i < tt.buffers-1 {
				d.Flags, d.Next = d.Flags|virtqtest.FlagNext, uint16(i+1)
			}
			virtqtest.PutDesc(b.Bytes[16*i:], d)
		}
		r.driver.SetDesc(0, virtqtest.Desc{Addr: b.Addr, Len: uint32(16 * tt.buffers), Flags: virtqtest.FlagIndirect})
		r.driver.SetAvailIdx(1)
		var c virtq.Chain
		_, err := r.queue.Take(&c)
		if tt.ok && (err != nil || virtq.Len(c.Writable) != uint64(tt.buffers)*memory) {
			t.Errorf("%d buffers: got %d bytes, %v", tt.buffers, virtq.Len(c.Writable), err)
		}
		var broken *virtq.ProtocolError
		if !tt.ok && (!errors.As(err, &broken) || broken.Violation != virtq.ViolationLength) {
			t.Errorf("%d buffers: got %v", tt.buffers, err)
		}
	}
}

func TestIndirectNotNegotiated(t *testing.T) {
	t.Parallel()
	r := newRig(t, 8, virtqtest.Options{})
	b := r.mem.Alloc(16)
	virtqtest.PutDesc(b.Bytes, virtqtest.Desc{Addr: 0x8000, Len: 8})
	r.driver.SetDesc(0, virtqtest.Desc{Addr: b.Addr, Len: 16, Flags: virtqtest.FlagIndirect})
	r.driver.SetAvailIdx(1)
	var c virtq.Chain
	var broken *virtq.ProtocolError
	if _, err := r.queue.Take(&c); !errors.As(err, &broken) || broken.Violation != virtq.ViolationIndirect {
		t.Errorf("got %v", err)
	}
}

// Direct descriptors may precede the indirect one, whose write flag means nothing.
func TestDirectThenIndirect(t *testing.T) {
	t.Parallel()
	r := newRig(t, 8, virtqtest.Options{Indirect: true})
	b := r.mem.Alloc(32)
	virtqtest.PutDesc(b.Bytes, virtqtest.Desc{Addr: 0x9000, Len: 8, Flags: virtqtest.FlagNext, Next: 1})
	virtqtest.PutDesc(b.Bytes[16:], virtqtest.Desc{Addr: 0xa000, Len: 4, Flags: virtqtest.FlagWrite})
	r.driver.SetDesc(3, virtqtest.Desc{Addr: 0x8000, Len: 16, Flags: virtqtest.FlagNext, Next: 5})
	r.driver.SetDesc(5, virtqtest.Desc{Addr: b.Addr, Len: 32, Flags: virtqtest.FlagIndirect | virtqtest.FlagWrite})
	r.driver.SetAvail(0, 3)
	r.driver.SetAvailIdx(1)
	var c virtq.Chain
	if _, err := r.queue.Take(&c); err != nil {
		t.Fatal(err)
	}
	if len(c.Readable) != 2 || len(c.Writable) != 1 || virtq.Len(c.Readable) != 24 || virtq.Len(c.Writable) != 4 {
		t.Errorf("got %d readable and %d writable buffers", len(c.Readable), len(c.Writable))
	}
	r.queue.Complete(&c, 4)
	if head, n, ok := r.driver.Collect(); !ok || head != 3 || n != 4 {
		t.Errorf("got head %d, length %d, %v", head, n, ok)
	}
}

func TestLayout(t *testing.T) {
	t.Parallel()
	good := newRig(t, 8, virtqtest.Options{}).config(0)
	tests := []struct {
		name   string
		change func(*virtq.Config)
	}{
		{"size 0", func(c *virtq.Config) { c.Size = 0 }},
		{"size 3", func(c *virtq.Config) { c.Size = 3 }},
		{"size too large", func(c *virtq.Config) { c.Size = 2 * virtq.MaxSize }},
		{"descriptors not aligned", func(c *virtq.Config) { c.Ring.Desc += 8 }},
		{"avail not aligned", func(c *virtq.Config) { c.Ring.Avail++ }},
		{"used not aligned", func(c *virtq.Config) { c.Ring.Used += 2 }},
		{"descriptors out of memory", func(c *virtq.Config) { c.Ring.Desc = 1<<20 - 16 }},
		{"avail out of memory", func(c *virtq.Config) { c.Ring.Avail = 1<<20 - 4 }},
		{"used out of memory", func(c *virtq.Config) { c.Ring.Used = 1 << 63 }},
		{"base too far", func(c *virtq.Config) { c.Next = 9 }},
		{"base too far back", func(c *virtq.Config) { c.Next = 0xfff0 }},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			cfg := good
			tt.change(&cfg)
			q, err := virtq.New(cfg)
			var broken *virtq.ProtocolError
			if !errors.As(err, &broken) || broken.Violation != virtq.ViolationLayout || q != nil {
				t.Errorf("got %v, %v", q, err)
			}
		})
	}
}

// An avail ring at an odd multiple of two works as well as any other.
func TestAvailAlignment(t *testing.T) {
	t.Parallel()
	r := newRig(t, 4, virtqtest.Options{})
	cfg := r.config(0)
	cfg.Ring.Avail += 2
	a := r.mem.Bytes()[cfg.Ring.Avail:]
	q, err := virtq.New(cfg)
	if err != nil {
		t.Fatal(err)
	}
	r.driver.SetDesc(2, virtqtest.Desc{Addr: 0x8000, Len: 5})
	a[4], a[5] = 2, 0 // ring[0]
	a[2], a[3] = 1, 0 // idx
	var c virtq.Chain
	if _, err := q.Take(&c); err != nil {
		t.Fatal(err)
	}
	if got := virtq.Len(c.Readable); got != 5 {
		t.Errorf("got %d bytes, want 5", got)
	}
}

func TestChainFraming(t *testing.T) {
	t.Parallel()
	c := virtq.Chain{
		Readable: [][]byte{{1, 2}, {3}, {4, 5, 6}},
		Writable: [][]byte{{0, 0}, {9}},
	}
	var hdr [4]byte
	if err := c.ReadHeader(hdr[:]); err != nil || hdr != [4]byte{1, 2, 3, 4} {
		t.Errorf("header: got %v, %v", hdr, err)
	}
	if got := virtq.Len(c.Readable); got != 2 {
		t.Errorf("%d readable bytes left, want 2", got)
	}
	status, err := c.TakeStatus()
	if err != nil || len(status) != 1 || status[0] != 9 || virtq.Len(c.Writable) != 2 {
		t.Errorf("status: got %v, %v, %d bytes left", status, err, virtq.Len(c.Writable))
	}
	var broken *virtq.ProtocolError
	if err := c.ReadHeader(make([]byte, 3)); !errors.As(err, &broken) || broken.Violation != virtq.ViolationRequest {
		t.Errorf("short header: got %v", err)
	}
	c.Writable = nil
	if _, err := c.TakeStatus(); !errors.As(err, &broken) || broken.Violation != virtq.ViolationRequest {
		t.Errorf("no status: got %v", err)
	}
}
