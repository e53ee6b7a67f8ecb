// SPDX-License-Identifier: Apache-2.0

package guestmem

import (
	"errors"
	"testing"
)

// A table that changes shares what stays, which is released by the last table
// that has it, whatever the order.
func TestChange(t *testing.T) {
	fd := memfd(t, 3*PageSize)
	var released [3]int
	region := func(i uint64) Region {
		r := mapped(t, fd, i<<20, i<<30, i*PageSize, PageSize)
		unmap := r.mapping.release
		r.mapping.release = func() error { released[i]++; return unmap() }
		return r
	}
	want := func(what string, counts ...int) {
		t.Helper()
		if released != [3]int(counts) {
			t.Errorf("%s: released %v, want %v", what, released, counts)
		}
	}
	must := func(m *Memory, err error) *Memory {
		t.Helper()
		if err != nil {
			t.Fatal(err)
		}
		return m
	}
	first := must(New([]Region{region(0)}))
	second := must(first.With(region(1)))
	if b, err := second.Slice(0, 1); err != nil {
		t.Error(err)
	} else {
		b[0] = 42
	}
	if b, err := first.SliceUser(0, 1); err != nil || b[0] != 42 {
		t.Errorf("the mapping is not shared: %v, %v", b, err)
	}
	if m, err := second.With(region(1)); !errors.Is(err, ErrRegion) || m != nil {
		t.Errorf("overlap: got %v, %v", m, err)
	}
	want("refused", 0, 1, 0)
	released[1] = 0
	for _, r := range [][3]uint64{{0, 0, 2 * PageSize}, {0, 1 << 30, PageSize}, {1 << 20, 0, PageSize}, {1, 0, PageSize}} {
		if m, err := second.Without(r[0], r[1], r[2]); !errors.Is(err, ErrUnmapped) || m != nil {
			t.Errorf("without %#x: got %v, %v", r, m, err)
		}
	}
	third := must(second.Without(0, 0, PageSize))
	if _, err := third.Slice(0, 1); !errors.Is(err, ErrUnmapped) {
		t.Errorf("the region is still there: %v", err)
	}
	close := func(m *Memory) {
		t.Helper()
		if err := m.Close(); err != nil {
			t.Error(err)
		}
	}
	close(second)
	want("second closed", 0, 0, 0)
	close(first)
	want("first closed", 1, 0, 0)
	fourth := must(third.With(region(2)))
	close(third)
	want("third closed", 1, 0, 0)
	close(fourth)
	want("all closed", 1, 1, 1)
}
