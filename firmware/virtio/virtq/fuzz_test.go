// SPDX-License-Identifier: Apache-2.0

package virtq_test

import (
	"context"
	"errors"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/davit-dpu/davit/firmware/virtio/guestmem"
	"github.com/davit-dpu/davit/firmware/virtio/virtq"
	"github.com/davit-dpu/davit/firmware/virtio/virtq/virtqtest"
)

const fuzzMem = 2 * guestmem.PageSize

// guarded maps size bytes between two pages that nobody may touch: an access
// outside of the region is a crash.
func guarded(tb testing.TB, size int) []byte {
	b, err := unix.Mmap(-1, 0, size+2*guestmem.PageSize, unix.PROT_NONE, unix.MAP_PRIVATE|unix.MAP_ANONYMOUS)
	if err != nil {
		tb.Fatal(err)
	}
	tb.Cleanup(func() { _ = unix.Munmap(b) })
	inner := b[guestmem.PageSize : guestmem.PageSize+size : guestmem.PageSize+size]
	if err := unix.Mprotect(inner, unix.PROT_READ|unix.PROT_WRITE); err != nil {
		tb.Fatal(err)
	}
	return inner
}

// FuzzRing lets the input be the guest's whole memory, rings included: no
// access leaves the memory, and the queue ends by a violation or is idle.
func FuzzRing(f *testing.F) {
	inner := guarded(f, fuzzMem)
	region, err := guestmem.NewRegion(0, 0, inner, nil)
	if err != nil {
		f.Fatal(err)
	}
	mem, err := guestmem.New([]guestmem.Region{region})
	if err != nil {
		f.Fatal(err)
	}
	f.Add(uint16(0), uint16(0x100), uint16(0x200), uint16(0), byte(3), byte(3), []byte{})
	valid := make([]byte, 0x300)
	virtqtest.PutDesc(valid, virtqtest.Desc{Addr: 0x400, Len: 16, Flags: virtqtest.FlagNext, Next: 1})
	virtqtest.PutDesc(valid[16:], virtqtest.Desc{Addr: 0x500, Len: 64, Flags: virtqtest.FlagIndirect})
	valid[0x102] = 1 // avail.idx
	f.Add(uint16(0), uint16(0x100), uint16(0x200), uint16(0), byte(3), byte(3), valid)
	packed := make([]byte, 0x300)
	virtqtest.PutPackedDesc(packed, virtqtest.Desc{Addr: 0x400, Len: 16, Flags: virtqtest.FlagNext | virtqtest.FlagAvail})
	virtqtest.PutPackedDesc(packed[16:], virtqtest.Desc{Addr: 0x500, Len: 64, Flags: virtqtest.FlagWrite | virtqtest.FlagAvail})
	f.Add(uint16(0), uint16(0x100), uint16(0x200), uint16(1<<15), byte(3), byte(7), packed)
	f.Fuzz(func(t *testing.T, desc, avail, used, next uint16, size, flags byte, data []byte) {
		clear(inner)
		copy(inner, data)
		at := virtq.Position(next)
		if flags&4 != 0 {
			at |= at << 16
		}
		q, err := virtq.New(virtq.Config{
			Memory: mem, Packed: flags&4 != 0, Size: 1 << (size % 12), Next: at,
			Ring:      virtq.Addresses{Desc: uint64(desc), Avail: uint64(avail), Used: uint64(used)},
			Translate: mem.Slice, IndirectDesc: flags&1 != 0, EventIdx: flags&2 != 0,
			Kick: idle{}, Call: virtqtest.NewBell(),
		})
		if err != nil {
			if q != nil {
				t.Fatal("queue and error")
			}
			return
		}
		err = q.Run(context.Background(), 2, func(c *virtq.Chain) (uint32, error) {
			if n := virtq.Len(c.Readable) + virtq.Len(c.Writable); n == 0 || n > 1<<32-1 {
				t.Errorf("chain of %d bytes", n)
			}
			return reverse(c)
		})
		var broken *virtq.ProtocolError
		if !errors.As(err, &broken) && !errors.Is(err, errIdle) {
			t.Errorf("run: %v", err)
		}
	})
}

var errIdle = errors.New("idle")

// idle ends a queue that has nothing more to do.
type idle struct{}

func (idle) Wait() error { return errIdle }
func (idle) Interrupt()  {}
