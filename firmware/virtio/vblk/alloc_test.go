// SPDX-License-Identifier: Apache-2.0

package vblk

import (
	"encoding/binary"
	"errors"
	"os"
	"path/filepath"
	"testing"

	"github.com/davit-dpu/davit/firmware/disk"
	"github.com/davit-dpu/davit/firmware/virtio/guestmem"
	"github.com/davit-dpu/davit/firmware/virtio/virtq"
	"github.com/davit-dpu/davit/firmware/virtio/virtq/virtqtest"
)

// fullRing is a queue of n requests of 4 KiB, and the server that executes them.
type fullRing struct {
	queue  *virtq.Queue
	server *server
	call   virtqtest.Bell
	chain  virtq.Chain
}

func newFullRing(tb testing.TB, volume disk.Volume, kind uint32, n int) *fullRing {
	tb.Helper()
	mem, err := virtqtest.NewMemory(16 << 20)
	if err != nil {
		tb.Fatal(err)
	}
	region, err := mem.Region()
	if err != nil {
		tb.Fatal(err)
	}
	dev, err := guestmem.New([]guestmem.Region{region})
	if err != nil {
		tb.Fatal(err)
	}
	tb.Cleanup(func() { _, _ = dev.Close(), mem.Close() })
	driver := virtqtest.New(mem, n, virtqtest.Options{Indirect: true, EventIdx: true})
	for i := range n {
		hdr, data, status := mem.Alloc(headerSize), mem.Alloc(4096), mem.Alloc(1)
		binary.LittleEndian.PutUint32(hdr.Bytes, kind)
		binary.LittleEndian.PutUint64(hdr.Bytes[8:], uint64(i%64)*8)
		readable, writable := []virtqtest.Buf{hdr, data}, []virtqtest.Buf{status}
		if kind == typeIn {
			readable, writable = readable[:1], []virtqtest.Buf{data, status}
		}
		if _, err := driver.Add(readable, writable); err != nil {
			tb.Fatal(err)
		}
	}
	driver.Publish()
	d, err := New(volume, Options{})
	if err != nil {
		tb.Fatal(err)
	}
	r := &fullRing{call: virtqtest.NewBell()}
	r.queue, err = virtq.New(virtq.Config{
		Memory: dev, Size: n, Ring: driver.Addresses(), Translate: dev.Slice,
		IndirectDesc: true, EventIdx: true, Kick: virtqtest.NewBell(), Call: r.call,
	})
	if err != nil {
		tb.Fatal(err)
	}
	r.server = &server{Device: d, features: allFeatures, stats: &d.stats[0], requests: make([]request, 1)}
	return r
}

// both is what a queue does with a request.
func (s *server) both(c *virtq.Chain) (uint32, error) {
	n, err := s.try(c)
	if errors.Is(err, virtq.ErrWouldBlock) {
		return s.handle(c)
	}
	return n, err
}

// one executes the next request.
func (r *fullRing) one(tb testing.TB) {
	if _, err := r.queue.Take(&r.chain); err != nil {
		tb.Fatal(err)
	}
	n, err := r.server.both(&r.chain)
	if err != nil {
		tb.Fatal(err)
	}
	r.queue.Complete(&r.chain, n)
}

// A request allocates nothing, whatever stores the data.
func TestNoAllocation(t *testing.T) {
	path := filepath.Join(t.TempDir(), "volume")
	if err := os.WriteFile(path, make([]byte, testSize), 0o600); err != nil {
		t.Fatal(err)
	}
	f, err := os.OpenFile(path, os.O_RDWR, 0)
	if err != nil {
		t.Fatal(err)
	}
	file, err := disk.OpenFile(f, false)
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = file.Close() }()
	memory, err := disk.NewMemory(testSize)
	if err != nil {
		t.Fatal(err)
	}
	for name, v := range map[string]disk.Volume{"memory": memory, "file": file} {
		for _, kind := range []uint32{typeIn, typeOut} {
			r := newFullRing(t, v, kind, 256)
			r.one(t) // the chain's lists grow once
			if got := testing.AllocsPerRun(200, func() { r.one(t) }); got != 0 {
				t.Errorf("%s, type %d: %v allocations for each request", name, kind, got)
			}
		}
	}
}

func BenchmarkRequest(b *testing.B) {
	memory, err := disk.NewMemory(testSize)
	if err != nil {
		b.Fatal(err)
	}
	b.ReportAllocs()
	for done := 0; done < b.N; {
		b.StopTimer()
		const n = 1024
		r := newFullRing(b, memory, typeIn, n)
		b.StartTimer()
		for range min(n, b.N-done) {
			r.one(b)
			done++
		}
	}
}
