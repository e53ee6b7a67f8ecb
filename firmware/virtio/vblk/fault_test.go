// SPDX-License-Identifier: Apache-2.0

package vblk

import (
	"bytes"
	"errors"
	"fmt"
	"log/slog"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/davit-dpu/davit/firmware/disk"
	"github.com/davit-dpu/davit/firmware/disk/disktest"
	"github.com/davit-dpu/davit/firmware/virtio"
)

func faultyDevice(t *testing.T, opts Options, faults ...disktest.Fault) (*Device, *disktest.Faulty) {
	t.Helper()
	v, err := disk.NewMemory(testSize)
	if err != nil {
		t.Fatal(err)
	}
	f := disktest.New(v, faults...)
	d, err := New(f, opts)
	if err != nil {
		t.Fatal(err)
	}
	return d, f
}

// A failing volume gives failing requests, counted; the device goes on.
func TestVolumeErrors(t *testing.T) {
	t.Parallel()
	d, _ := faultyDevice(t, Options{},
		disktest.Fault{Op: disktest.Read, Err: errors.New("bad sector")},
		disktest.Fault{Op: disktest.Write, Err: errors.New("disk full")},
		disktest.Fault{Op: disktest.Flush, Err: errors.New("lost")},
		disktest.Fault{Op: disktest.Discard, Err: fmt.Errorf("hole: %w", disk.ErrNotSupported)},
		disktest.Fault{Op: disktest.WriteZeroes, Times: 1, Err: errors.New("no")})
	g := newGuest(t, d, 0, allFeatures)
	for _, tt := range []struct {
		name string
		kind uint32
		out  []byte
		room int
		want byte
	}{
		{"read", typeIn, nil, 512, statusIOErr},
		{"write", typeOut, make([]byte, 512), 0, statusIOErr},
		{"flush", typeFlush, nil, 0, statusIOErr},
		{"discard", typeDiscard, ranges([3]uint64{0, 8, 0}), 0, statusUnsupp},
		{"zero", typeWriteZeroes, ranges([3]uint64{0, 8, 1}), 0, statusIOErr},
		{"zero that works", typeWriteZeroes, ranges([3]uint64{0, 8, 0}), 0, statusOK},
	} {
		if status, _, _ := g.request(tt.kind, 0, tt.out, tt.room); status != tt.want {
			t.Errorf("%s: status %d, want %d", tt.name, status, tt.want)
		}
	}
	if got := d.Stats()[0]; got != (Stats{Discards: 1, Errors: 5}) {
		t.Errorf("got %+v", got)
	}
	if err := g.stop(); err != nil {
		t.Error(err)
	}
}

// Writes are made durable at once exactly when the driver relies on it.
func TestWriteThrough(t *testing.T) {
	t.Parallel()
	through, back := []disktest.Op{disktest.Write, disktest.Flush}, []disktest.Op{disktest.Write}
	for _, tt := range []struct {
		name     string
		features virtio.Features
		wce      []byte // written before, if not nil
		want     []disktest.Op
	}{
		{"can flush", allFeatures, nil, back},
		{"can not flush", allFeatures &^ FeatureFlush, nil, through},
		{"cache off", allFeatures | FeatureConfigWCE, []byte{0}, through},
		{"cache on", allFeatures | FeatureConfigWCE, []byte{1}, back},
	} {
		d, v := faultyDevice(t, Options{ConfigWCE: true})
		if tt.wce != nil {
			if err := d.WriteConfig(tt.wce, offWCE); err != nil {
				t.Fatal(err)
			}
		}
		g := newGuest(t, d, 0, tt.features)
		if status, _, _ := g.request(typeOut, 0, make([]byte, 512), 0); status != statusOK {
			t.Errorf("%s: status %d", tt.name, status)
		}
		var got []disktest.Op
		for _, a := range v.Take() {
			got = append(got, a.Op)
		}
		if !slices.Equal(got, tt.want) {
			t.Errorf("%s: got %v, want %v", tt.name, got, tt.want)
		}
	}
	d, _ := faultyDevice(t, Options{})
	if err := d.WriteConfig([]byte{0}, offWCE); !errors.Is(err, virtio.ErrConfig) {
		t.Errorf("cache control that was not offered: got %v", err)
	}
}

// A write-through write whose flush fails has failed.
func TestWriteThroughFails(t *testing.T) {
	t.Parallel()
	d, _ := faultyDevice(t, Options{}, disktest.Fault{Op: disktest.Flush, Err: errors.New("lost")})
	g := newGuest(t, d, 0, allFeatures&^FeatureFlush)
	if status, _, _ := g.request(typeOut, 0, make([]byte, 512), 0); status != statusIOErr {
		t.Errorf("status %d", status)
	}
}

// The guest can not fill the log.
func TestLogIsLimited(t *testing.T) {
	t.Parallel()
	var buf bytes.Buffer
	now := time.Unix(1000, 0)
	l := limitedLog{log: slog.New(slog.NewTextHandler(&buf, nil)), now: func() time.Time { return now }}
	for range 100 {
		l.failed(0, header{kind: 1, sector: 2}, errors.New("bad"))
	}
	now = now.Add(time.Second)
	l.failed(0, header{}, errors.New("bad"))
	if got := strings.Count(buf.String(), "\n"); got != 2 {
		t.Errorf("%d lines, want 2:\n%s", got, buf.String())
	}
	if !strings.Contains(buf.String(), "notlogged=99") {
		t.Errorf("the number of lines left out is missing:\n%s", buf.String())
	}
}
