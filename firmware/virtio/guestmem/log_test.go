// SPDX-License-Identifier: Apache-2.0

package guestmem

import (
	"bytes"
	"errors"
	"math"
	"os"
	"sync"
	"testing"

	"golang.org/x/sys/unix"
)

func mappedLog(t testing.TB, fd int, size uint64) *Log {
	t.Helper()
	l, err := MapLog(fd, 0, size)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = l.Close() })
	return l
}

func TestLog(t *testing.T) {
	const page = PageSize
	l := mappedLog(t, memfd(t, 16), 16)
	marks := 0
	l.OnMark(func() { marks++ })
	for _, tt := range []struct {
		addr, n uint64
		want    map[int]byte // nil: refused
	}{
		{0, 0, map[int]byte{}},
		{1 << 60, 0, map[int]byte{}},
		{0, 1, map[int]byte{0: 1}},
		{page - 1, 2, map[int]byte{0: 3}},
		{9 * page, page, map[int]byte{1: 2}},
		{31 * page, 2 * page, map[int]byte{3: 0x80, 4: 1}},
		{127*page + 4095, 1, map[int]byte{15: 0x80}},
		{30 * page, 36 * page, map[int]byte{3: 0xc0, 4: 0xff, 5: 0xff, 6: 0xff, 7: 0xff, 8: 3}},
		{127 * page, page + 1, nil},
		{128 * page, 1, nil},
		{0, math.MaxUint64, nil},
		{math.MaxUint64, 2, nil},
		{math.MaxUint64, 1, nil},
	} {
		clear(l.bits)
		err := l.Mark(tt.addr, tt.n)
		if (err == nil) != (tt.want != nil) || err != nil && !errors.Is(err, ErrLog) {
			t.Errorf("Mark(%#x, %#x): %v", tt.addr, tt.n, err)
		}
		want := make([]byte, 16)
		for i, b := range tt.want {
			want[i] = b
		}
		if !bytes.Equal(l.bits, want) {
			t.Errorf("Mark(%#x, %#x): bits % x, want % x", tt.addr, tt.n, l.bits, want)
		}
	}
	if marks != 6 {
		t.Errorf("told %d times, want 6", marks)
	}
	l.OnMark(nil)
	if err := l.Mark(0, 1); err != nil || marks != 6 {
		t.Errorf("told %d times, %v", marks, err)
	}
}

// Marks of one word by many get all there.
func TestLogConcurrent(t *testing.T) {
	l := mappedLog(t, memfd(t, 8), 8)
	var wg sync.WaitGroup
	for i := range uint64(64) {
		wg.Go(func() {
			if err := l.Mark(i*PageSize, 1); err != nil {
				t.Error(err)
			}
		})
	}
	wg.Wait()
	if !bytes.Equal(l.bits, bytes.Repeat([]byte{0xff}, 8)) {
		t.Errorf("bits % x", l.bits)
	}
}

func TestMapLogRefuses(t *testing.T) {
	fd := memfd(t, 2*PageSize)
	pipe, other, err := os.Pipe()
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _, _ = pipe.Close(), other.Close() }()
	for _, tt := range []struct {
		name         string
		fd           int
		offset, size uint64
	}{
		{"empty", fd, 0, 0},
		{"half a word", fd, 0, 12},
		{"too large", fd, 0, MaxLog + 8},
		{"larger than any", fd, 0, ^uint64(7)},
		{"longer than its file", fd, PageSize, PageSize + 8},
		{"offset not aligned", fd, 8, 8},
		{"offset behind the file", fd, 2 * PageSize, 8},
		{"offset that wraps", fd, ^uint64(PageSize - 1), PageSize},
		{"a pipe", int(pipe.Fd()), 0, 8},
		{"no file", -1, 0, 8},
	} {
		if l, err := MapLog(tt.fd, tt.offset, tt.size); !errors.Is(err, ErrLog) || l != nil {
			t.Errorf("%s: got %v, %v", tt.name, l, err)
		}
	}
	l, err := MapLog(fd, PageSize, PageSize)
	if err != nil {
		t.Fatal(err)
	}
	if err := errors.Join(l.Mark(0, 1), l.Close()); err != nil {
		t.Error(err)
	}
}

// A bitmap whose file is truncated is an error, also inside of a memory's guard.
func TestLogTruncated(t *testing.T) {
	fd := memfd(t, PageSize)
	l := mappedLog(t, fd, PageSize)
	if err := unix.Ftruncate(fd, 0); err != nil {
		t.Fatal(err)
	}
	m := threeRegions(t)
	err := m.Guard(func() error { return l.Mark(0, 1) })
	var fault *FaultError
	if !errors.As(err, &fault) {
		t.Errorf("got %v", err)
	}
}

func TestLocate(t *testing.T) {
	m := threeRegions(t)
	for _, addr := range []uint64{0, 8, PageSize, 8 * PageSize, 9*PageSize - 1} {
		b, err := m.Slice(addr, 1)
		if err != nil {
			t.Fatal(err)
		}
		if got, ok := m.Locate(b); got != addr || !ok {
			t.Errorf("got %#x, %v; want %#x", got, ok, addr)
		}
	}
	if at, ok := m.Locate(make([]byte, 8)); ok {
		t.Errorf("memory of this process is at %#x", at)
	}
}

// FuzzLog compares the bits with those set one by one.
func FuzzLog(f *testing.F) {
	f.Add(uint64(0), uint64(1))
	f.Add(uint64(31*PageSize), uint64(40*PageSize))
	f.Add(uint64(math.MaxUint64), uint64(2))
	fd, err := unix.MemfdCreate("log", unix.MFD_CLOEXEC)
	if err == nil {
		err = unix.Ftruncate(fd, 64)
	}
	if err != nil {
		f.Fatal(err)
	}
	l := mappedLog(f, fd, 64)
	f.Fuzz(func(t *testing.T, addr, n uint64) {
		clear(l.bits)
		err := l.Mark(addr, n)
		inside := n == 0 || addr < 512*PageSize && n <= 512*PageSize-addr
		if (err == nil) != inside {
			t.Errorf("Mark(%#x, %#x): %v", addr, n, err)
		}
		want := make([]byte, 64)
		for p := addr / PageSize; inside && n > 0 && p <= (addr+n-1)/PageSize; p++ {
			want[p/8] |= 1 << (p % 8)
		}
		if !bytes.Equal(l.bits, want) {
			t.Errorf("Mark(%#x, %#x): bits % x, want % x", addr, n, l.bits, want)
		}
	})
}
