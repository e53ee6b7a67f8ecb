// SPDX-License-Identifier: Apache-2.0

package virtq_test

import (
	"errors"
	"testing"

	"github.com/davit-dpu/davit/firmware/virtio/virtq"
	"github.com/davit-dpu/davit/firmware/virtio/virtq/virtqtest"
)

// Each way to break a packed ring is refused with its own reason, and nothing is
// used or taken afterwards.
func TestPackedViolations(t *testing.T) {
	t.Parallel()
	const size = 8
	type D = virtqtest.Desc
	const next, write, indirect = virtqtest.FlagNext, virtqtest.FlagWrite, virtqtest.FlagIndirect
	list := func(descs ...D) func(*rig, *virtqtest.PackedDriver) {
		return func(_ *rig, d *virtqtest.PackedDriver) {
			for i := len(descs) - 1; i >= 0; i-- {
				d.SetEntry(uint16(i), uint16(i), descs[i])
			}
		}
	}
	table := func(head D, descs ...D) func(*rig, *virtqtest.PackedDriver) {
		return func(r *rig, d *virtqtest.PackedDriver) {
			b := r.mem.Alloc(16 * len(descs))
			for i, e := range descs {
				virtqtest.PutPackedDesc(b.Bytes[16*i:], e)
			}
			head.Addr, head.Flags = b.Addr, head.Flags|indirect
			if head.Len == 0 {
				head.Len = uint32(len(b.Bytes))
			}
			list(head)(r, d)
		}
	}
	ok := D{Addr: 0x8000, Len: 16}
	more := D{Addr: 0x8000, Len: 16, Flags: next}
	for _, tt := range []struct {
		name  string
		setup func(*rig, *virtqtest.PackedDriver)
		want  virtq.Violation
	}{
		{"list without end", list(more, more, more, more, more, more, more, more), virtq.ViolationLoop},
		{"readable after writable", list(D{Addr: 0x8000, Len: 16, Flags: next | write}, ok), virtq.ViolationOrder},
		{"behind memory", list(D{Addr: 1 << 20, Len: 1}), virtq.ViolationAddress},
		{"address overflow", list(D{Addr: ^uint64(0), Len: 2}), virtq.ViolationAddress},
		{"empty buffer", list(D{Addr: 0x8000}), virtq.ViolationLength},
		{"indirect in a list", list(more, D{Addr: 0x8000, Len: 16, Flags: indirect}), virtq.ViolationIndirect},
		{"indirect with next", table(D{Flags: next}, ok), virtq.ViolationIndirect},
		{"nested", table(D{}, D{Addr: 0x8000, Len: 16, Flags: indirect}), virtq.ViolationIndirect},
		{"table size odd", table(D{Len: 17}, ok, ok), virtq.ViolationIndirect},
		{"table out of memory", list(D{Addr: 1 << 20, Len: 16, Flags: indirect}), virtq.ViolationIndirect},
	} {
		t.Run(tt.name, func(t *testing.T) {
			t.Parallel()
			r := newRigSize(t, 1<<20, size, mode{Options: virtqtest.Options{Indirect: true}, packed: true})
			driver := r.ring.(*virtqtest.PackedDriver)
			tt.setup(r, driver)
			var broken *virtq.ProtocolError
			if err := r.queue.Run(t.Context(), 2, reverse); !errors.As(err, &broken) || broken.Violation != tt.want {
				t.Fatalf("got %v, want a violation of %q", err, tt.want)
			}
			if id, _, ok := driver.Collect(); ok {
				t.Errorf("buffer %d is used after a violation", id)
			}
			var c virtq.Chain
			if _, err := r.queue.Take(&c); !errors.Is(err, virtq.ErrStopped) {
				t.Errorf("take after a violation: got %v", err)
			}
		})
	}
}

// A packed ring goes on where it was left, over any number of laps.
func TestPackedResume(t *testing.T) {
	t.Parallel()
	r := newRigSize(t, 1<<20, 4, mode{packed: true})
	at := virtqtest.PackedStart
	for lap := range 11 {
		for range 3 {
			r.add(nil, []virtqtest.Buf{r.mem.Alloc(8)})
		}
		r.publish()
		r.open(at)
		stop := r.run(1, func(*virtq.Chain) (uint32, error) { return uint32(lap), nil })
		for range 3 {
			if _, n := r.collect(); n != uint32(lap) {
				t.Fatalf("lap %d: got length %d", lap, n)
			}
		}
		if err := stop(); err != nil {
			t.Fatal(err)
		}
		at = r.queue.Position()
	}
	if want := virtq.Position(0x80018001); at != want { // 33 buffers: 8 laps and one
		t.Errorf("position %#x, want %#x", at, want)
	}
	for _, bad := range []virtq.Position{4 << 16, 0x8004 << 16, 0x7fff << 16} {
		cfg := r.config(bad)
		if q, err := virtq.New(cfg); err == nil || q != nil {
			t.Errorf("position %#x: got %v", bad, err)
		}
	}
}
