// SPDX-License-Identifier: Apache-2.0

package guestmem

import (
	"bytes"
	"errors"
	"math"
	"os"
	"testing"

	"golang.org/x/sys/unix"
)

func memfd(t *testing.T, size int64) int {
	t.Helper()
	fd, err := unix.MemfdCreate("guest", unix.MFD_CLOEXEC)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = unix.Close(fd) })
	if err := unix.Ftruncate(fd, size); err != nil {
		t.Fatal(err)
	}
	return fd
}

func mapped(t *testing.T, fd int, phys, user, off, size uint64) Region {
	t.Helper()
	r, err := MapFD(fd, phys, user, off, size)
	if err != nil {
		t.Fatal(err)
	}
	return r
}

// threeRegions are two adjacent regions and one behind a hole.
func threeRegions(t *testing.T) *Memory {
	t.Helper()
	fd := memfd(t, 3*PageSize)
	m, err := New([]Region{
		mapped(t, fd, 8*PageSize, 1<<40, 2*PageSize, PageSize),
		mapped(t, fd, 0, 1<<41, 0, PageSize),
		mapped(t, fd, PageSize, 1<<42, PageSize, PageSize),
	})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = m.Close() })
	return m
}

func TestSlice(t *testing.T) {
	m := threeRegions(t)
	const page = PageSize
	for _, tt := range []struct {
		addr, n uint64
		ok      bool
	}{
		{0, 1, true}, {0, page, true}, {0, page + 1, false}, {page - 1, 1, true}, {page - 1, 2, false},
		{page, page, true}, {2*page - 1, 1, true}, {2 * page, 1, false}, {5 * page, 1, false},
		{8 * page, page, true}, {9*page - 1, 2, false}, {9 * page, 1, false},
		{0, math.MaxUint64, false}, {math.MaxUint64, 1, false}, {8 * page, math.MaxUint64, false},
	} {
		b, err := m.Slice(tt.addr, tt.n)
		if (err == nil) != tt.ok || (b != nil) != tt.ok {
			t.Errorf("Slice(%#x, %#x) = %d bytes, %v", tt.addr, tt.n, len(b), err)
		}
		if err == nil && (uint64(len(b)) != tt.n || cap(b) != len(b)) {
			t.Errorf("Slice(%#x, %#x): length %d, capacity %d", tt.addr, tt.n, len(b), cap(b))
		}
		if err != nil && !errors.Is(err, ErrUnmapped) {
			t.Errorf("Slice(%#x, %#x): %v", tt.addr, tt.n, err)
		}
	}
}

func TestSliceUser(t *testing.T) {
	m := threeRegions(t)
	b, err := m.SliceUser(1<<42+16, 16)
	if err != nil {
		t.Fatal(err)
	}
	copy(b, "the same memory!")
	if same, err := m.Slice(PageSize+16, 16); err != nil || string(same) != "the same memory!" {
		t.Errorf("got %q, %v", same, err)
	}
	for _, tt := range []struct{ addr, n uint64 }{
		{0, 1}, {1<<40 - 1, 1}, {1<<40 + PageSize, 1}, {1 << 40, PageSize + 1}, {math.MaxUint64, 1}, {1 << 42, math.MaxUint64},
	} {
		if b, err := m.SliceUser(tt.addr, tt.n); !errors.Is(err, ErrUnmapped) || b != nil {
			t.Errorf("SliceUser(%#x, %#x): %d bytes, %v", tt.addr, tt.n, len(b), err)
		}
	}
	empty, err := New(nil)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := empty.SliceUser(0, 1); !errors.Is(err, ErrUnmapped) {
		t.Errorf("empty table: %v", err)
	}
	if _, err := empty.Slice(0, 1); !errors.Is(err, ErrUnmapped) {
		t.Errorf("empty table: %v", err)
	}
}

func TestAppend(t *testing.T) {
	m := threeRegions(t)
	bufs, err := m.Append(nil, PageSize-2, 4)
	if err != nil || len(bufs) != 2 || len(bufs[0]) != 2 || len(bufs[1]) != 2 {
		t.Fatalf("got %d slices, %v", len(bufs), err)
	}
	copy(bufs[0], "ab")
	copy(bufs[1], "cd")
	lo, _ := m.Slice(PageSize-2, 2)
	hi, _ := m.Slice(PageSize, 2)
	if !bytes.Equal(append(lo, hi...), []byte("abcd")) {
		t.Errorf("got %q %q", lo, hi)
	}
	for _, tt := range []struct{ addr, n uint64 }{
		{0, 3 * PageSize}, {2*PageSize - 1, 2}, {8*PageSize - 1, 2}, {math.MaxUint64, 2}, {1, math.MaxUint64},
	} {
		if bufs, err := m.Append(nil, tt.addr, tt.n); !errors.Is(err, ErrUnmapped) || bufs != nil {
			t.Errorf("Append(%#x, %#x): %d slices, %v", tt.addr, tt.n, len(bufs), err)
		}
	}
	if bufs, err := m.Append(nil, 1<<50, 0); err != nil || len(bufs) != 0 {
		t.Errorf("nothing: %d slices, %v", len(bufs), err)
	}
}

func TestNewRefuses(t *testing.T) {
	fd := memfd(t, 4*PageSize)
	released := 0
	region := func(phys, user, size uint64) Region {
		r := mapped(t, fd, phys, user, 0, size)
		unmap := r.mapping.release
		r.mapping.release = func() error { released++; return unmap() }
		return r
	}
	for name, regions := range map[string][]Region{
		"same":            {region(0, 0, PageSize), region(0, 1<<40, PageSize)},
		"overlap":         {region(0, 0, 2*PageSize), region(PageSize, 1<<40, PageSize)},
		"inside":          {region(PageSize, 1<<40, PageSize), region(0, 0, 4*PageSize)},
		"user overlap":    {region(0, 0, 2*PageSize), region(1<<40, PageSize, PageSize)},
		"too many":        make([]Region, MaxRegions+1),
		"empty":           {region(0, 0, PageSize), {}},
		"user and others": {region(0, 0, PageSize), region(1<<40, 1<<40, PageSize), region(1<<41, 1<<40, PageSize)},
	} {
		want := 0
		for _, r := range regions {
			if r.Size() != 0 {
				want++
			}
		}
		released = 0
		if m, err := New(regions); !errors.Is(err, ErrRegion) || m != nil {
			t.Errorf("%s: got %v, %v", name, m, err)
		}
		if released != want {
			t.Errorf("%s: %d regions released, want %d", name, released, want)
		}
	}
}

func TestMapFDRefuses(t *testing.T) {
	fd := memfd(t, 4*PageSize)
	const page = PageSize
	for _, tt := range []struct {
		name                  string
		phys, user, off, size uint64
	}{
		{"empty", 0, 0, 0, 0},
		{"part of a page", 0, 0, 0, 100},
		{"address", 1, 0, 0, page},
		{"user address", 0, 1, 0, page},
		{"offset", 0, 0, 1, page},
		{"behind the end", 0, 0, 4 * page, page},
		{"over the end", 0, 0, page, 4 * page},
		{"address overflow", math.MaxUint64 - page + 1, 0, 0, page},
		{"user overflow", 0, math.MaxUint64 - page + 1, 0, page},
		{"offset overflow", 0, 0, math.MaxUint64 - page + 1, page},
		{"negative offset", 0, 0, 1 << 63, page},
		{"size overflow", 0, 0, page, math.MaxUint64 - page + 1},
	} {
		if r, err := MapFD(fd, tt.phys, tt.user, tt.off, tt.size); !errors.Is(err, ErrRegion) || r.Size() != 0 {
			t.Errorf("%s: got %d bytes, %v", tt.name, r.Size(), err)
		}
	}
	pipe, w, err := os.Pipe()
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _, _ = pipe.Close(), w.Close() }()
	if _, err := MapFD(int(pipe.Fd()), 0, 0, 0, page); !errors.Is(err, ErrRegion) {
		t.Errorf("pipe: got %v", err)
	}
	if _, err := MapFD(-1, 0, 0, 0, page); err == nil {
		t.Error("no file was mapped")
	}
}

// Truncated memory is an error for whoever is guarded, in reads, writes, copies.
func TestGuard(t *testing.T) {
	fd := memfd(t, 2*PageSize)
	m, err := New([]Region{mapped(t, fd, 0, 0, 0, 2*PageSize)})
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = m.Close() }()
	b, err := m.Slice(PageSize, PageSize)
	if err != nil {
		t.Fatal(err)
	}
	if err := m.Guard(func() error { b[0] = 1; return nil }); err != nil {
		t.Errorf("before: %v", err)
	}
	if err := unix.Ftruncate(fd, PageSize); err != nil {
		t.Fatal(err)
	}
	for name, access := range map[string]func(){
		"read":  func() { _ = bytes.IndexByte(b, 7) },
		"write": func() { b[5] = 1 },
		"copy":  func() { copy(make([]byte, PageSize), b) },
		"clear": func() { clear(b) },
	} {
		var fault *FaultError
		if err := m.Guard(func() error { access(); return nil }); !errors.As(err, &fault) || fault.Addr == 0 {
			t.Errorf("%s: got %v", name, err)
		}
	}
	want := errors.New("of the function")
	if err := m.Guard(func() error { return want }); !errors.Is(err, want) {
		t.Errorf("got %v", err)
	}
}

// Bugs of our own are not hidden.
func TestGuardLetsBugsThrough(t *testing.T) {
	m := threeRegions(t)
	var none *Memory
	for name, bug := range map[string]func(){
		"nil":   func() { _ = none.phys },
		"panic": func() { panic("bug") },
		"index": func() { _ = []byte{}[len(m.phys)] },
	} {
		func() {
			defer func() {
				if recover() == nil {
					t.Errorf("%s: was swallowed", name)
				}
			}()
			_ = m.Guard(func() error { bug(); return nil })
		}()
	}
}

func FuzzAppend(f *testing.F) {
	fd, err := unix.MemfdCreate("guest", unix.MFD_CLOEXEC)
	if err != nil {
		f.Fatal(err)
	}
	if err := unix.Ftruncate(fd, 4*PageSize); err != nil {
		f.Fatal(err)
	}
	var regions []Region
	for _, phys := range []uint64{0, PageSize, 3 * PageSize} {
		r, err := MapFD(fd, phys, phys, phys, PageSize)
		if err != nil {
			f.Fatal(err)
		}
		regions = append(regions, r)
	}
	m, err := New(regions)
	if err != nil {
		f.Fatal(err)
	}
	f.Add(uint64(0), uint64(PageSize))
	f.Add(uint64(PageSize-1), uint64(2))
	f.Add(uint64(2*PageSize), uint64(1))
	f.Add(uint64(math.MaxUint64), uint64(math.MaxUint64))
	f.Fuzz(func(t *testing.T, addr, n uint64) {
		bufs, err := m.Append(nil, addr, n)
		mapped := addr+n >= addr && (addr+n <= 2*PageSize || addr >= 3*PageSize && addr+n <= 4*PageSize) || n == 0
		if (err == nil) != mapped {
			t.Fatalf("Append(%#x, %#x): %v", addr, n, err)
		}
		if err != nil && bufs != nil {
			t.Fatal("buffers and error")
		}
		var sum uint64
		for _, b := range bufs {
			sum += uint64(len(b))
		}
		if err == nil && sum != n {
			t.Fatalf("got %d bytes, want %d", sum, n)
		}
	})
}
