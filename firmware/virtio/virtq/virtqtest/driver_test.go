// SPDX-License-Identifier: Apache-2.0

package virtqtest_test

import (
	"testing"

	"github.com/davit-dpu/davit/firmware/virtio/guestmem"
	"github.com/davit-dpu/davit/firmware/virtio/virtq"
	"github.com/davit-dpu/davit/firmware/virtio/virtq/virtqtest"
)

// newQueue connects a device's queue to a driver of 16 descriptors.
func newQueue(t *testing.T, opts virtqtest.Options) (*virtqtest.Memory, *virtqtest.Driver, *virtq.Queue) {
	t.Helper()
	mem, err := virtqtest.NewMemory(1 << 20)
	if err != nil {
		t.Fatal(err)
	}
	region, err := mem.Region()
	if err != nil {
		t.Fatal(err)
	}
	dev, err := guestmem.New([]guestmem.Region{region})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _, _ = dev.Close(), mem.Close() })
	d := virtqtest.New(mem, 16, opts)
	q, err := virtq.New(virtq.Config{
		Memory: dev, Size: d.Size(), Ring: d.Addresses(), Translate: dev.Slice,
		IndirectDesc: opts.Indirect, EventIdx: opts.EventIdx, Kick: virtqtest.NewBell(), Call: virtqtest.NewBell(),
	})
	if err != nil {
		t.Fatal(err)
	}
	return mem, d, q
}

// Prepared chains go round the ring many times, in an order of their own, with
// ordinary ones between them, and nothing is allocated.
func TestPreparedChains(t *testing.T) {
	for _, opts := range []virtqtest.Options{{}, {Indirect: true}, {EventIdx: true}} {
		mem, d, q := newQueue(t, opts)
		var heads []uint16
		for i := range 3 {
			head, err := d.Prepare([]virtqtest.Buf{mem.Alloc(16)}, []virtqtest.Buf{mem.Alloc(i + 1), mem.Alloc(1)})
			if err != nil {
				t.Fatal(err)
			}
			heads = append(heads, head)
		}
		if d.InFlight() != 0 {
			t.Errorf("%+v: %d chains in flight before any was offered", opts, d.InFlight())
		}
		if _, err := d.Add([]virtqtest.Buf{mem.Alloc(16)}, nil); err != nil {
			t.Fatal(err)
		}
		var chain virtq.Chain
		round := func() {
			for _, h := range heads {
				d.Offer(h)
			}
			d.Publish()
			for d.InFlight() > 0 {
				if _, err := q.Take(&chain); err != nil {
					t.Fatal(err)
				}
				room := virtq.Len(chain.Writable)
				q.Complete(&chain, uint32(room))
				head, n, ok := d.Collect()
				if !ok || uint64(n) != room {
					t.Fatalf("%+v: got head %d, %d of %d bytes, %v", opts, head, n, room, ok)
				}
			}
			heads[0], heads[1], heads[2] = heads[2], heads[0], heads[1]
		}
		round()
		if got := testing.AllocsPerRun(100, round); got != 0 {
			t.Errorf("%+v: %v allocations for each round", opts, got)
		}
		if _, _, ok := d.Collect(); ok {
			t.Errorf("%+v: a chain was used that nobody offered", opts)
		}
	}
}
