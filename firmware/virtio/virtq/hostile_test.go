// SPDX-License-Identifier: Apache-2.0

package virtq_test

import (
	"context"
	"errors"
	"math/rand/v2"
	"testing"

	"github.com/davit-dpu/davit/firmware/virtio/guestmem"
	"github.com/davit-dpu/davit/firmware/virtio/virtq"
	"github.com/davit-dpu/davit/firmware/virtio/virtq/virtqtest"
)

// A driver that scribbles over rings and tables while the device reads them
// stops its queue at worst. Guard pages around the memory prove that nothing
// else is touched.
func TestHostileDriver(t *testing.T) {
	t.Parallel()
	const size, memory = 16, 4 * guestmem.PageSize
	inner := guarded(t, memory)
	region, err := guestmem.NewRegion(0, 0, inner, nil)
	if err != nil {
		t.Fatal(err)
	}
	mem, err := guestmem.New([]guestmem.Region{region})
	if err != nil {
		t.Fatal(err)
	}
	ring := virtq.Addresses{Desc: 0, Avail: 0x400, Used: 0x800}
	ended := map[virtq.Violation]int{}
	for seed := range uint64(150) {
		rng := rand.New(rand.NewPCG(seed, 3))
		hostileMemory(inner, rng)
		kick := virtqtest.NewBell()
		q, err := virtq.New(virtq.Config{
			Memory: mem, Size: size, Ring: ring, Translate: mem.Slice,
			IndirectDesc: true, EventIdx: seed%2 == 0, Kick: kick,
		})
		if err != nil {
			t.Fatal(err)
		}
		ctx, cancel := context.WithCancel(t.Context())
		result := make(chan error)
		go func() { result <- q.Run(ctx, 4, reverse) }()
		for i := range 3000 {
			switch at := rng.IntN(20); {
			case at == 0: // anywhere
				inner[rng.IntN(memory)] = byte(rng.Uint32())
			case at == 1: // a descriptor or table entry
				virtqtest.PutDesc(inner[16*rng.IntN(size):], randomDesc(rng))
			case inner[0x402]-inner[0x802] >= size: // avail.idx, used.idx: full
			default: // go on as a driver would
				inner[0x404+2*(i%size)] = byte(rng.IntN(size))
				inner[0x402]++
			}
			kick.Signal()
		}
		cancel()
		err = <-result
		var broken *virtq.ProtocolError
		if errors.As(err, &broken) {
			ended[broken.Violation]++
		} else if err != nil {
			t.Fatalf("seed %d: %v", seed, err)
		}
	}
	if len(ended) < 3 {
		t.Errorf("too tame, only saw %v", ended)
	}
	t.Logf("ended by %v", ended)
}

// hostileMemory fills tables with chains that are mostly valid.
func hostileMemory(b []byte, rng *rand.Rand) {
	clear(b)
	for i := range 16 {
		virtqtest.PutDesc(b[16*i:], randomDesc(rng))
	}
	for i := range guestmem.PageSize / 16 {
		virtqtest.PutDesc(b[guestmem.PageSize+16*i:], randomDesc(rng))
	}
}

func randomDesc(rng *rand.Rand) virtqtest.Desc {
	d := virtqtest.Desc{
		Addr: 2*guestmem.PageSize + uint64(rng.IntN(guestmem.PageSize)), Len: 1 + uint32(rng.IntN(64)),
		Next: uint16(rng.IntN(16)), Flags: uint16(rng.IntN(4)),
	}
	switch rng.IntN(12) {
	case 0, 1, 2:
		d.Flags, d.Addr, d.Len = virtqtest.FlagIndirect, guestmem.PageSize+16*uint64(rng.IntN(32)), 16*uint32(1+rng.IntN(32))
	case 3:
		d.Flags |= virtqtest.FlagWrite
	case 4:
		if rng.IntN(20) == 0 {
			d.Addr = rng.Uint64()
		}
	}
	return d
}
