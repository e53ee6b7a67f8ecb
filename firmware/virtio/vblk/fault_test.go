// SPDX-License-Identifier: Apache-2.0

package vblk

import (
	"bytes"
	"errors"
	"fmt"
	"log/slog"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/davit-dpu/davit/firmware/disk"
	"github.com/davit-dpu/davit/firmware/virtio"
)

// scripted is a volume that notes what is done to it, and fails as told.
type scripted struct {
	disk.Volume
	mu  sync.Mutex
	ops []string         // guarded by mu
	err map[string]error // constant while in use
}

func (s *scripted) note(op string) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.ops = append(s.ops, op)
	return s.err[op]
}

func (s *scripted) ReadAt(bufs [][]byte, off int64) error {
	if err := s.note("read"); err != nil {
		return err
	}
	return s.Volume.ReadAt(bufs, off)
}

func (s *scripted) WriteAt(bufs [][]byte, off int64) error {
	if err := s.note("write"); err != nil {
		return err
	}
	return s.Volume.WriteAt(bufs, off)
}

func (s *scripted) Flush() error { return s.note("flush") }

func (s *scripted) Discard(off, n int64) error { return s.note("discard") }

func (s *scripted) WriteZeroes(off, n int64, unmap bool) error {
	return s.note(fmt.Sprintf("zero unmap=%v", unmap))
}

func (s *scripted) take() []string {
	s.mu.Lock()
	defer s.mu.Unlock()
	ops := s.ops
	s.ops = nil
	return ops
}

func scriptedDevice(t *testing.T, fail map[string]error, opts Options) (*Device, *scripted) {
	t.Helper()
	v, err := disk.NewMemory(testSize)
	if err != nil {
		t.Fatal(err)
	}
	s := &scripted{Volume: v, err: fail}
	d, err := New(s, opts)
	if err != nil {
		t.Fatal(err)
	}
	return d, s
}

// A failing volume gives failing requests, counted; the device goes on.
func TestVolumeErrors(t *testing.T) {
	t.Parallel()
	fail := map[string]error{
		"read": errors.New("bad sector"), "write": errors.New("disk full"), "flush": errors.New("lost"),
		"discard": fmt.Errorf("hole: %w", disk.ErrNotSupported), "zero unmap=true": errors.New("no"),
	}
	d, _ := scriptedDevice(t, fail, Options{})
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
	through, back := []string{"write", "flush"}, []string{"write"}
	for _, tt := range []struct {
		name     string
		features virtio.Features
		wce      []byte // written before, if not nil
		want     []string
	}{
		{"can flush", allFeatures, nil, back},
		{"can not flush", allFeatures &^ FeatureFlush, nil, through},
		{"cache off", allFeatures | FeatureConfigWCE, []byte{0}, through},
		{"cache on", allFeatures | FeatureConfigWCE, []byte{1}, back},
	} {
		d, v := scriptedDevice(t, nil, Options{ConfigWCE: true})
		if tt.wce != nil {
			if err := d.WriteConfig(tt.wce, offWCE); err != nil {
				t.Fatal(err)
			}
		}
		g := newGuest(t, d, 0, tt.features)
		if status, _, _ := g.request(typeOut, 0, make([]byte, 512), 0); status != statusOK {
			t.Errorf("%s: status %d", tt.name, status)
		}
		if got := v.take(); !slices.Equal(got, tt.want) {
			t.Errorf("%s: got %v, want %v", tt.name, got, tt.want)
		}
	}
	d, _ := scriptedDevice(t, nil, Options{})
	if err := d.WriteConfig([]byte{0}, offWCE); !errors.Is(err, virtio.ErrConfig) {
		t.Errorf("cache control that was not offered: got %v", err)
	}
}

// A write-through write whose flush fails has failed.
func TestWriteThroughFails(t *testing.T) {
	t.Parallel()
	d, _ := scriptedDevice(t, map[string]error{"flush": errors.New("lost")}, Options{})
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
