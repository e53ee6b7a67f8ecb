// SPDX-License-Identifier: Apache-2.0

package vblk

import (
	"encoding/binary"
	"slices"
	"testing"

	"github.com/davit-dpu/davit/firmware/disk"
	"github.com/davit-dpu/davit/firmware/virtio/virtq"
	"github.com/davit-dpu/davit/firmware/virtio/virtq/virtqtest"
)

// huge is a volume that only looks at what is asked of it.
type huge struct {
	disk.Volume
	moved func(n uint64, off int64)
}

func (huge) Info() disk.Info { return disk.Info{Size: 1 << 40} }

func (h huge) ReadAt(bufs [][]byte, off int64) error {
	h.moved(virtq.Len(bufs), off)
	return nil
}

func (h huge) WriteAt(bufs [][]byte, off int64) error { return h.ReadAt(bufs, off) }

// greedy makes a request of n times the same 2 MiB buffer, from sector 8 on.
func greedy(g *guest, kind uint32, n int) (readable, writable []virtqtest.Buf) {
	hdr, st, data := g.mem.Alloc(headerSize), g.mem.Alloc(1), g.mem.Alloc(2<<20)
	binary.LittleEndian.PutUint32(hdr.Bytes, kind)
	binary.LittleEndian.PutUint64(hdr.Bytes[8:], 8)
	st.Bytes[0] = 0xee
	all := slices.Repeat([]virtqtest.Buf{data}, n)
	if kind == typeOut {
		return append([]virtqtest.Buf{hdr}, all...), []virtqtest.Buf{st}
	}
	return []virtqtest.Buf{hdr}, append(all, st)
}

type step struct {
	n   uint64
	off int64
}

// TestPieces: a request of any size is served, piece by piece.
func TestPieces(t *testing.T) {
	t.Parallel()
	for _, kind := range []uint32{typeIn, typeOut} {
		var got []step
		d, err := New(huge{moved: func(n uint64, off int64) { got = append(got, step{n, off}) }}, Options{})
		if err != nil {
			t.Fatal(err)
		}
		g := newGuest(t, d, 0, allFeatures)
		readable, writable := greedy(g, kind, 70)
		g.raw(readable, writable)
		if err := g.stop(); err != nil {
			t.Fatal(err)
		}
		want := []step{{64 << 20, 4096}, {64 << 20, 64<<20 + 4096}, {12 << 20, 128<<20 + 4096}}
		if status := writable[len(writable)-1].Bytes[0]; status != statusOK || !slices.Equal(got, want) {
			t.Errorf("type %d: status %d, pieces %v, want %v", kind, status, got, want)
		}
	}
}

// TestStopsBetweenPieces: no request, however large, holds up the end of the
// queue; it stays to be executed again.
func TestStopsBetweenPieces(t *testing.T) {
	t.Parallel()
	first := make(chan struct{})
	goOn := make(chan struct{})
	pieces := 0
	d, err := New(huge{moved: func(uint64, int64) {
		if pieces++; pieces == 1 {
			close(first)
			<-goOn
		}
	}}, Options{})
	if err != nil {
		t.Fatal(err)
	}
	g := newGuest(t, d, 0, allFeatures)
	readable, writable := greedy(g, typeIn, 1000)
	if _, err := g.driver.Add(readable, writable); err != nil {
		t.Fatal(err)
	}
	if g.driver.Publish() {
		g.kick.Signal()
	}
	<-first
	g.cancel()
	close(goOn)
	if err := g.wait(); err != nil {
		t.Fatal(err)
	}
	if status := writable[len(writable)-1].Bytes[0]; pieces != 1 || status != 0xee || g.driver.UsedIdx() != 0 {
		t.Errorf("%d pieces, status %#x, used index %d", pieces, status, g.driver.UsedIdx())
	}
}

func TestCutPiece(t *testing.T) {
	t.Parallel()
	buf := make([]byte, 2*maxPiece+1)
	for _, tt := range []struct {
		lens []int
		want []int // of the pieces
	}{
		{nil, []int{0}},
		{[]int{1, 2}, []int{3}},
		{[]int{maxPiece}, []int{maxPiece}},
		{[]int{1, maxPiece}, []int{1, maxPiece}},
		{[]int{2*maxPiece + 1}, []int{maxPiece, maxPiece, 1}},
		{[]int{512, maxPiece + 512, 512}, []int{512, maxPiece, 1024}},
	} {
		var bufs [][]byte
		for _, n := range tt.lens {
			bufs = append(bufs, buf[:n])
		}
		var got []int
		for {
			var piece [][]byte
			piece, bufs = cutPiece(bufs)
			got = append(got, int(virtq.Len(piece)))
			if len(bufs) == 0 {
				break
			}
		}
		if !slices.Equal(got, tt.want) {
			t.Errorf("%v: pieces %v, want %v", tt.lens, got, tt.want)
		}
	}
}
