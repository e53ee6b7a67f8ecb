// SPDX-License-Identifier: Apache-2.0

package vblk

import (
	"bytes"
	"context"
	"encoding/binary"
	"errors"
	"math/rand/v2"
	"os"
	"path/filepath"
	"testing"

	"github.com/davit-dpu/davit/firmware/disk"
	"github.com/davit-dpu/davit/firmware/virtio"
	"github.com/davit-dpu/davit/firmware/virtio/guestmem"
	"github.com/davit-dpu/davit/firmware/virtio/virtq"
	"github.com/davit-dpu/davit/firmware/virtio/virtq/virtqtest"
)

const (
	testSectors = 4096
	testSize    = testSectors * sectorSize
)

const allFeatures = virtio.FeatureVersion1 | virtio.FeatureEventIdx | virtio.FeatureIndirectDesc | FeatureFlush

// guest is a driver of one queue of a device.
type guest struct {
	t      *testing.T
	mem    *virtqtest.Memory
	driver *virtqtest.Driver
	kick   virtqtest.Bell
	call   virtqtest.Bell
	result chan error
	cancel context.CancelFunc
}

// wait returns the result of serving the queue, once it ends.
func (g *guest) wait() error {
	err := <-g.result
	g.result <- err
	return err
}

func (g *guest) stop() error {
	g.cancel()
	return g.wait()
}

func newGuest(t *testing.T, d *Device, index int, features virtio.Features) *guest {
	t.Helper()
	mem, err := virtqtest.NewMemory(4 << 20)
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
	g := &guest{t: t, mem: mem, kick: virtqtest.NewBell(), call: virtqtest.NewBell()}
	g.driver = virtqtest.New(mem, 64, virtqtest.Options{Indirect: true, EventIdx: true})
	q, err := virtq.New(virtq.Config{
		Memory: dev, Size: 64, Ring: g.driver.Addresses(), Translate: dev.Slice,
		IndirectDesc: true, EventIdx: true, Kick: g.kick, Call: g.call,
	})
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	g.result, g.cancel = make(chan error, 1), cancel
	go func() { g.result <- d.Serve(ctx, virtio.Queue{Queue: q, Index: index, Features: features}) }()
	t.Cleanup(func() {
		_ = g.stop()
		_, _ = dev.Close(), mem.Close()
	})
	return g
}

// request submits one request and waits for it. n is the length in the used ring.
func (g *guest) request(kind uint32, sector uint64, out []byte, room int) (status byte, in []byte, n uint32) {
	g.t.Helper()
	hdr, st := g.mem.Alloc(headerSize), g.mem.Alloc(1)
	binary.LittleEndian.PutUint32(hdr.Bytes, kind)
	binary.LittleEndian.PutUint64(hdr.Bytes[8:], sector)
	st.Bytes[0] = 0xee
	readable, writable := []virtqtest.Buf{hdr}, []virtqtest.Buf{}
	if len(out) > 0 {
		b := g.mem.Alloc(len(out))
		copy(b.Bytes, out)
		readable = append(readable, b)
	}
	var data virtqtest.Buf
	if room > 0 {
		data = g.mem.Alloc(room)
		writable = append(writable, data)
	}
	n = g.raw(readable, append(writable, st))
	return st.Bytes[0], bytes.Clone(data.Bytes), n
}

func (g *guest) raw(readable, writable []virtqtest.Buf) uint32 {
	g.t.Helper()
	if _, err := g.driver.Add(readable, writable); err != nil {
		g.t.Fatal(err)
	}
	if g.driver.Publish() {
		g.kick.Signal()
	}
	return g.collect()
}

// collect waits for a request to be used, and returns its length.
func (g *guest) collect() uint32 {
	for {
		if _, n, ok := g.driver.Collect(); ok {
			return n
		}
		if !g.driver.Arm() {
			_ = g.call.Wait()
		}
	}
}

func memoryDevice(t *testing.T, opts Options) (*Device, *disk.Memory) {
	t.Helper()
	v, err := disk.NewMemory(testSize)
	if err != nil {
		t.Fatal(err)
	}
	d, err := New(v, opts)
	if err != nil {
		t.Fatal(err)
	}
	return d, v
}

func ranges(rs ...[3]uint64) []byte {
	var b []byte
	for _, r := range rs {
		b = binary.LittleEndian.AppendUint64(b, r[0])
		b = binary.LittleEndian.AppendUint32(b, uint32(r[1]))
		b = binary.LittleEndian.AppendUint32(b, uint32(r[2]))
	}
	return b
}

// Random requests do to the volume what they do to plain bytes.
func TestModel(t *testing.T) {
	t.Parallel()
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
	for name, v := range map[string]disk.Volume{"file": file, "memory": memory} {
		t.Run(name, func(t *testing.T) {
			d, err := New(v, Options{Queues: 2})
			if err != nil {
				t.Fatal(err)
			}
			queues := []*guest{newGuest(t, d, 0, allFeatures), newGuest(t, d, 1, allFeatures)}
			model := make([]byte, testSize)
			rng := rand.New(rand.NewPCG(6, 7))
			var marks []uint64
			for _, g := range queues {
				g.request(typeFlush, 0, nil, 0) // indirect tables are in place
				g.mem.Alloc(64 * 64)
				marks = append(marks, g.mem.Mark())
			}
			for step := range 1500 {
				g := queues[step%2]
				if step > 200 {
					g.mem.Free(marks[step%2] + 64<<10)
				}
				n := 1 + rng.IntN(64)
				sector := rng.IntN(testSectors - n)
				part := model[sector*sectorSize:][:n*sectorSize]
				var status byte
				switch rng.IntN(5) {
				case 0, 1:
					for i := range part {
						part[i] = byte(rng.Uint32())
					}
					status, _, _ = g.request(typeOut, uint64(sector), part, 0)
				case 2:
					var got []byte
					status, got, _ = g.request(typeIn, uint64(sector), nil, len(part))
					if !bytes.Equal(got, part) {
						t.Fatalf("step %d: %d sectors at %d differ", step, n, sector)
					}
				case 3:
					clear(part)
					status, _, _ = g.request(typeWriteZeroes, 0, ranges([3]uint64{uint64(sector), uint64(n), uint64(rng.IntN(2))}), 0)
				case 4:
					status, _, _ = g.request(typeFlush, 0, nil, 0)
				}
				if status != statusOK {
					t.Fatalf("step %d: status %d", step, status)
				}
			}
			got := make([]byte, testSize)
			if err := v.ReadAt([][]byte{got}, 0); err != nil || !bytes.Equal(got, model) {
				t.Errorf("volume differs from the model, %v", err)
			}
			var sum Stats
			for _, s := range d.Stats() {
				sum.Reads, sum.Writes, sum.Flushes, sum.Discards = sum.Reads+s.Reads, sum.Writes+s.Writes, sum.Flushes+s.Flushes, sum.Discards+s.Discards
			}
			if total := sum.Reads + sum.Writes + sum.Flushes + sum.Discards; total != 1502 {
				t.Errorf("counted %d requests, want 1502", total)
			}
		})
	}
}

// Statuses and used lengths of requests, good and bad.
func TestStatus(t *testing.T) {
	t.Parallel()
	const maxSector = testSectors - 1
	sector := make([]byte, sectorSize)
	tests := []struct {
		name   string
		kind   uint32
		sector uint64
		out    []byte
		room   int
		status byte
		n      uint32
	}{
		{"read", typeIn, 0, nil, 1024, statusOK, 1025},
		{"read the last", typeIn, maxSector, nil, 512, statusOK, 513},
		{"read over the end", typeIn, maxSector, nil, 1024, statusIOErr, 0},
		{"read behind the end", typeIn, testSectors, nil, 512, statusIOErr, 0},
		{"read nothing at the end", typeIn, testSectors, nil, 0, statusOK, 1},
		{"read nothing behind it", typeIn, testSectors + 1, nil, 0, statusIOErr, 1},
		{"read far out", typeIn, 1<<64 - 1, nil, 512, statusIOErr, 0},
		{"read where bytes overflow", typeIn, 1 << 55, nil, 512, statusIOErr, 0},
		{"read half a sector", typeIn, 0, nil, 511, statusIOErr, 0},
		{"write", typeOut, 5, sector, 0, statusOK, 1},
		{"write over the end", typeOut, maxSector, make([]byte, 1024), 0, statusIOErr, 1},
		{"write half a sector", typeOut, 0, sector[:100], 0, statusIOErr, 1},
		{"write with room", typeOut, 0, sector, 512, statusOK, 0},
		{"flush", typeFlush, 0, nil, 0, statusOK, 1},
		{"id", typeGetID, 0, nil, 20, statusOK, 21},
		{"id with much room", typeGetID, 0, nil, 64, statusOK, 65},
		{"id without room", typeGetID, 0, nil, 19, statusIOErr, 0},
		{"unknown", 99, 0, nil, 0, statusUnsupp, 1},
		{"secure erase", 14, 0, ranges([3]uint64{0, 1, 0}), 0, statusUnsupp, 1},
		{"discard", typeDiscard, 0, ranges([3]uint64{0, 8, 0}), 0, statusOK, 1},
		{"discard many", typeDiscard, 0, ranges([3]uint64{0, 8, 0}, [3]uint64{16, 8, 0}), 0, statusOK, 1},
		{"discard unmap", typeDiscard, 0, ranges([3]uint64{0, 8, 1}), 0, statusUnsupp, 1},
		{"discard too long", typeDiscard, 0, ranges([3]uint64{0, MaxDiscardSectors + 1, 0}), 0, statusIOErr, 1},
		{"discard over the end", typeDiscard, 0, ranges([3]uint64{maxSector, 2, 0}), 0, statusIOErr, 1},
		{"discard overflow", typeDiscard, 0, ranges([3]uint64{1<<64 - 1, 2, 0}), 0, statusIOErr, 1},
		{"discard nothing", typeDiscard, 0, nil, 0, statusIOErr, 1},
		{"discard half a range", typeDiscard, 0, make([]byte, 24), 0, statusIOErr, 1},
		{"discard too many", typeDiscard, 0, make([]byte, (MaxDiscardRanges+1)*16), 0, statusIOErr, 1},
		{"zero and unmap", typeWriteZeroes, 0, ranges([3]uint64{8, 8, 1}), 0, statusOK, 1},
		{"zero too long", typeWriteZeroes, 0, ranges([3]uint64{0, MaxWriteZeroesSectors + 1, 0}), 0, statusIOErr, 1},
		{"zero with unknown flag", typeWriteZeroes, 0, ranges([3]uint64{0, 8, 2}), 0, statusUnsupp, 1},
		{"zero two ranges", typeWriteZeroes, 0, ranges([3]uint64{0, 8, 0}, [3]uint64{16, 8, 0}), 0, statusIOErr, 1},
		{"discard good and bad", typeDiscard, 0, ranges([3]uint64{0, 8, 0}, [3]uint64{maxSector, 2, 0}), 0, statusIOErr, 1},
	}
	d, v := memoryDevice(t, Options{Serial: "serial-1234"})
	g := newGuest(t, d, 0, allFeatures)
	if err := v.WriteAt([][]byte{{0xaa}}, 0); err != nil {
		t.Fatal(err)
	}
	for _, tt := range tests {
		status, _, n := g.request(tt.kind, tt.sector, tt.out, tt.room)
		if status != tt.status || n != tt.n {
			t.Errorf("%s: got status %d, length %d; want %d, %d", tt.name, status, n, tt.status, tt.n)
		}
	}
	if err := g.stop(); err != nil {
		t.Errorf("device stopped: %v", err)
	}
}

// A bad range keeps the good ones before it from being executed.
func TestRangesAllOrNothing(t *testing.T) {
	t.Parallel()
	d, v := memoryDevice(t, Options{})
	g := newGuest(t, d, 0, allFeatures)
	if err := v.WriteAt([][]byte{{1}}, 0); err != nil {
		t.Fatal(err)
	}
	g.request(typeDiscard, 0, ranges([3]uint64{0, 1, 0}, [3]uint64{testSectors, 1, 0}), 0)
	got := make([]byte, 1)
	if err := v.ReadAt([][]byte{got}, 0); err != nil || got[0] != 1 {
		t.Errorf("got %v, %v", got, err)
	}
}

func TestSerial(t *testing.T) {
	t.Parallel()
	for _, serial := range []string{"", "x", "12345678901234567890"} {
		d, _ := memoryDevice(t, Options{Serial: serial})
		g := newGuest(t, d, 0, allFeatures)
		_, got, _ := g.request(typeGetID, 0, nil, 20)
		want := make([]byte, 20)
		copy(want, serial)
		if !bytes.Equal(got, want) {
			t.Errorf("got %q, want %q", got, want)
		}
	}
	v, err := disk.NewMemory(testSize)
	if err != nil {
		t.Fatal(err)
	}
	for _, bad := range []Options{
		{Serial: "123456789012345678901"}, {Serial: "tab\t"}, {Serial: "é"}, {Queues: 257}, {Queues: -1}, {Depth: -1}, {Depth: 1025},
	} {
		if d, err := New(v, bad); err == nil || d != nil {
			t.Errorf("%+v: got %v, %v", bad, d, err)
		}
	}
}

// Requests without header or status break the protocol: the queue ends.
func TestFramingViolations(t *testing.T) {
	t.Parallel()
	for _, tt := range []struct{ readable, writable int }{{0, 1}, {15, 1}, {16, 0}} {
		d, _ := memoryDevice(t, Options{})
		g := newGuest(t, d, 0, allFeatures)
		var readable, writable []virtqtest.Buf
		if tt.readable > 0 {
			readable = append(readable, g.mem.Alloc(tt.readable))
		}
		if tt.writable > 0 {
			writable = append(writable, g.mem.Alloc(tt.writable))
		}
		if _, err := g.driver.Add(readable, writable); err != nil {
			t.Fatal(err)
		}
		g.driver.Publish()
		g.kick.Signal()
		var broken *virtq.ProtocolError
		if err := g.wait(); !errors.As(err, &broken) || broken.Violation != virtq.ViolationRequest {
			t.Errorf("%+v: got %v", tt, err)
		}
		if g.driver.UsedIdx() != 0 {
			t.Errorf("%+v: request was completed", tt)
		}
	}
}

// Header, data and status may be cut anywhere (Virtio 1.2, 2.6.4).
func TestAnyLayout(t *testing.T) {
	t.Parallel()
	d, v := memoryDevice(t, Options{})
	g := newGuest(t, d, 0, allFeatures)
	want := bytes.Repeat([]byte("layout"), 2*sectorSize)[:2*sectorSize]
	whole := make([]byte, headerSize, headerSize+len(want))
	binary.LittleEndian.PutUint32(whole, typeOut)
	whole[8] = 3
	whole = append(whole, want...)
	for step := range 50 {
		rng := rand.New(rand.NewPCG(uint64(step), 8))
		var readable, writable []virtqtest.Buf
		for rest := whole; len(rest) > 0; {
			n := 1 + rng.IntN(len(rest))
			b := g.mem.Alloc(n)
			copy(b.Bytes, rest)
			readable, rest = append(readable, b), rest[n:]
		}
		st := g.mem.Alloc(1)
		st.Bytes[0] = 9
		g.raw(readable, append(writable, st))
		got := make([]byte, len(want))
		if err := v.ReadAt([][]byte{got}, 3*sectorSize); err != nil || st.Bytes[0] != 0 || !bytes.Equal(got, want) {
			t.Fatalf("layout %d: status %d, %v", step, st.Bytes[0], err)
		}
		if err := v.Discard(0, testSize); err != nil {
			t.Fatal(err)
		}
	}
}
