// SPDX-License-Identifier: Apache-2.0

package bus

import (
	"errors"
	"math"
	"os"
	"path/filepath"
	"testing"

	"github.com/davit-dpu/davit/firmware/spec"
)

func makePool(t *testing.T, size int64) string {
	t.Helper()
	path := filepath.Join(t.TempDir(), "pool")
	f, err := os.Create(path)
	if err != nil {
		t.Fatal(err)
	}
	if err := errors.Join(f.Truncate(size), f.Close()); err != nil {
		t.Fatal(err)
	}
	return path
}

func TestWindowOverPool(t *testing.T) {
	t.Parallel()
	path := makePool(t, 6<<20)
	a, err := OpenPool(path)
	if err != nil {
		t.Fatal(err)
	}
	w, err := Map(a)
	if err := errors.Join(err, a.File.Close()); err != nil {
		t.Fatal(err)
	}
	defer w.Close()
	if w.PoolOffset() != uint64(spec.PoolReserved) || w.Size() != 4<<20 {
		t.Errorf("window [%#x, +%#x)", w.PoolOffset(), w.Size())
	}
	p, err := w.Slice(3<<20, 5)
	if err != nil {
		t.Fatal(err)
	}
	copy(p, "hello")
	if cap(p) != 5 {
		t.Errorf("a slice that can grow to %d bytes", cap(p))
	}
	b, err := os.ReadFile(path)
	if err != nil || string(b[3<<20:3<<20+5]) != "hello" {
		t.Errorf("the pool holds %q, %v", b[3<<20:3<<20+5], err)
	}
	for _, c := range []struct {
		offset, length uint64
		ok             bool
	}{
		{2 << 20, 4 << 20, true}, {6 << 20, 0, true}, {6<<20 - 1, 1, true},
		{2<<20 - 1, 1, false}, {0, 0, false}, {2 << 20, 4<<20 + 1, false}, {6 << 20, 1, false},
		{math.MaxUint64, 1, false}, {3 << 20, math.MaxUint64, false}, {math.MaxUint64, math.MaxUint64, false},
	} {
		p, err := w.Slice(c.offset, c.length)
		if (err == nil) != c.ok || (err != nil) != (p == nil) || err != nil && !errors.Is(err, ErrOutside) {
			t.Errorf("slice [%#x, +%#x): %d bytes, %v", c.offset, c.length, len(p), err)
		}
	}
	if err := errors.Join(w.Close(), w.Close()); err != nil {
		t.Error(err)
	}
	if _, err := w.Slice(3<<20, 1); !errors.Is(err, ErrOutside) {
		t.Errorf("slice of a closed window: %v", err)
	}
}

func TestOpenPoolRefuses(t *testing.T) {
	t.Parallel()
	for name, path := range map[string]string{
		"missing": filepath.Join(t.TempDir(), "none"), "a directory": t.TempDir(),
		"all reserved": makePool(t, 2<<20), "odd size": makePool(t, 5<<20),
	} {
		if a, err := OpenPool(path); err == nil || a.File != nil {
			t.Errorf("%s: %v", name, err)
		}
	}
}
