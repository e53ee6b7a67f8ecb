// SPDX-License-Identifier: Apache-2.0

package vblk

import (
	"bytes"
	"encoding/binary"
	"errors"
	"os"
	"path/filepath"
	"testing"

	"github.com/davit-dpu/davit/firmware/disk"
	"github.com/davit-dpu/davit/firmware/virtio"
)

func TestFeatures(t *testing.T) {
	t.Parallel()
	base := FeatureSegMax | FeatureBlkSize | FeatureFlush | FeatureTopology
	trim := FeatureDiscard | FeatureWriteZeroes
	path := filepath.Join(t.TempDir(), "volume")
	if err := os.WriteFile(path, make([]byte, testSize), 0o600); err != nil {
		t.Fatal(err)
	}
	f, err := os.Open(path)
	if err != nil {
		t.Fatal(err)
	}
	readOnly, err := disk.OpenFile(f, true)
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = readOnly.Close() }()
	memory, err := disk.NewMemory(testSize)
	if err != nil {
		t.Fatal(err)
	}
	for _, tt := range []struct {
		name   string
		volume disk.Volume
		opts   Options
		want   virtio.Features
	}{
		{"memory", memory, Options{}, base | trim},
		{"queues", memory, Options{Queues: 4}, base | trim | FeatureMQ},
		{"cache control", memory, Options{ConfigWCE: true}, base | trim | FeatureConfigWCE},
		{"read-only", readOnly, Options{}, base | FeatureReadOnly},
		{"no trim", plain{memory}, Options{}, base},
	} {
		d, err := New(tt.volume, tt.opts)
		if err != nil {
			t.Fatal(err)
		}
		if got := d.Info().Features; got != tt.want {
			t.Errorf("%s: got %#x, want %#x", tt.name, got, tt.want)
		}
	}
	d, err := New(readOnly, Options{})
	if err != nil {
		t.Fatal(err)
	}
	g := newGuest(t, d, 0, allFeatures)
	if status, _, _ := g.request(typeOut, 0, make([]byte, 512), 0); status != statusIOErr {
		t.Errorf("write to a read-only volume: status %d", status)
	}
	if status, _, _ := g.request(typeDiscard, 0, ranges([3]uint64{0, 8, 0}), 0); status != statusUnsupp {
		t.Errorf("discard on a read-only volume: status %d", status)
	}
}

// plain hides that a volume is a disk.Trimmer.
type plain struct{ disk.Volume }

func TestConfig(t *testing.T) {
	t.Parallel()
	d, _ := memoryDevice(t, Options{Queues: 3})
	c := make([]byte, virtio.MaxConfigSize)
	if err := d.ReadConfig(c, 0); err != nil {
		t.Fatal(err)
	}
	le := binary.LittleEndian
	for _, tt := range []struct {
		name      string
		got, want uint64
	}{
		{"capacity", le.Uint64(c), testSectors},
		{"size_max", uint64(le.Uint32(c[8:])), 0},
		{"seg_max", uint64(le.Uint32(c[12:])), 126},
		{"blk_size", uint64(le.Uint32(c[20:])), 512},
		{"physical_block_exp", uint64(c[24]), 3},
		{"alignment_offset", uint64(c[25]), 0},
		{"min_io_size", uint64(le.Uint16(c[26:])), 8},
		{"opt_io_size", uint64(le.Uint32(c[28:])), 0},
		{"writeback", uint64(c[32]), 1},
		{"num_queues", uint64(le.Uint16(c[34:])), 3},
		{"max_discard_sectors", uint64(le.Uint32(c[36:])), MaxDiscardSectors},
		{"max_discard_seg", uint64(le.Uint32(c[40:])), 16},
		{"discard_sector_alignment", uint64(le.Uint32(c[44:])), 8},
		{"max_write_zeroes_sectors", uint64(le.Uint32(c[48:])), MaxWriteZeroesSectors},
		{"max_write_zeroes_seg", uint64(le.Uint32(c[52:])), 1},
		{"write_zeroes_may_unmap", uint64(c[56]), 1},
	} {
		if tt.got != tt.want {
			t.Errorf("%s: got %d, want %d", tt.name, tt.got, tt.want)
		}
	}
	if rest := c[57:]; !bytes.Equal(rest, make([]byte, len(rest))) {
		t.Errorf("undefined bytes are % x", rest)
	}
}

// A volume that has grown is announced once, and its new part is there.
func TestGrow(t *testing.T) {
	t.Parallel()
	path := filepath.Join(t.TempDir(), "volume")
	if err := os.WriteFile(path, make([]byte, testSize), 0o600); err != nil {
		t.Fatal(err)
	}
	f, err := os.OpenFile(path, os.O_RDWR, 0)
	if err != nil {
		t.Fatal(err)
	}
	v, err := disk.OpenFile(f, false)
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = v.Close() }()
	d, err := New(v, Options{})
	if err != nil {
		t.Fatal(err)
	}
	told := 0
	stop := d.WatchConfig(func() { told++ })
	g := newGuest(t, d, 0, allFeatures)
	for _, tt := range []struct {
		size   int64
		want   uint64 // sectors
		err    error
		told   int
		status byte // of a write to the last sector of the largest size
	}{
		{testSize, testSectors, nil, 0, statusIOErr},
		{2 * testSize, 2 * testSectors, nil, 1, statusOK},
		{2 * testSize, 2 * testSectors, nil, 1, statusOK},
		{testSize, 2 * testSectors, disk.ErrShrunk, 1, statusOK},
	} {
		if err := os.Truncate(path, tt.size); err != nil {
			t.Fatal(err)
		}
		if _, err := d.Grow(); !errors.Is(err, tt.err) {
			t.Errorf("%d bytes: got %v, want %v", tt.size, err, tt.err)
		}
		var c [8]byte
		if err := d.ReadConfig(c[:], 0); err != nil {
			t.Fatal(err)
		}
		if got := binary.LittleEndian.Uint64(c[:]); got != tt.want || told != tt.told {
			t.Errorf("%d bytes: capacity %d, told %d times; want %d, %d", tt.size, got, told, tt.want, tt.told)
		}
		if status, _, _ := g.request(typeOut, 2*testSectors-1, make([]byte, 512), 0); status != tt.status {
			t.Errorf("%d bytes: status %d, want %d", tt.size, status, tt.status)
		}
	}
	stop()
	if err := os.Truncate(path, 3*testSize); err != nil {
		t.Fatal(err)
	}
	if size, err := d.Grow(); size != 3*testSize || err != nil || told != 1 {
		t.Errorf("grew to %d, %v, told %d times", size, err, told)
	}
	fixed, _ := memoryDevice(t, Options{})
	if _, err := fixed.Grow(); !errors.Is(err, disk.ErrNotSupported) {
		t.Errorf("a volume in memory: %v", err)
	}
}

func FuzzConfig(f *testing.F) {
	v, err := disk.NewMemory(testSize)
	if err != nil {
		f.Fatal(err)
	}
	d, err := New(v, Options{ConfigWCE: true})
	if err != nil {
		f.Fatal(err)
	}
	whole := make([]byte, virtio.MaxConfigSize)
	f.Add(uint32(0), []byte{1})
	f.Add(uint32(32), []byte{0})
	f.Add(uint32(255), []byte{1, 2})
	f.Add(uint32(1<<32-1), []byte{1})
	f.Fuzz(func(t *testing.T, off uint32, data []byte) {
		werr := d.WriteConfig(data, off)
		if legal := off == 32 && len(data) == 1 && data[0] <= 1; (werr == nil) != legal {
			t.Errorf("write %d bytes at %d: %v", len(data), off, werr)
		}
		if err := d.ReadConfig(whole, 0); err != nil {
			t.Fatal(err)
		}
		if werr == nil && whole[32] != data[0] {
			t.Errorf("writeback is %d, want %d", whole[32], data[0])
		}
		got := bytes.Repeat([]byte{0xcc}, len(data))
		err := d.ReadConfig(got, off)
		if inside := uint64(off)+uint64(len(data)) <= virtio.MaxConfigSize; (err == nil) != inside {
			t.Errorf("read %d bytes at %d: %v", len(data), off, err)
		}
		if err == nil && !bytes.Equal(got, whole[off:][:len(data)]) {
			t.Errorf("read %d bytes at %d differs", len(data), off)
		}
		if err != nil && !errors.Is(err, virtio.ErrConfig) {
			t.Error(err)
		}
	})
}
