// SPDX-License-Identifier: Apache-2.0

package disktest

import (
	"errors"
	"slices"
	"testing"
	"testing/synctest"

	"github.com/davit-dpu/davit/firmware/disk"
)

var errBad = errors.New("bad sector")

func newFaulty(t *testing.T, faults ...Fault) *Faulty {
	t.Helper()
	v, err := disk.NewMemory(1 << 20)
	if err != nil {
		t.Fatal(err)
	}
	return New(v, faults...)
}

func TestFaults(t *testing.T) {
	t.Parallel()
	type access struct {
		op   Op
		off  int64
		want error
	}
	for _, tt := range []struct {
		name  string
		fault Fault
		do    []access
	}{
		{"everything", Fault{Err: errBad}, []access{{Read, 0, errBad}, {Write, 0, errBad}, {Flush, 0, errBad}, {Discard, 0, errBad}, {WriteZeroes, 0, errBad}}},
		{"one operation", Fault{Op: Write, Err: errBad}, []access{{Read, 0, nil}, {Write, 0, errBad}, {Flush, 0, nil}, {Discard, 0, nil}, {Write, 512, errBad}}},
		{"two operations", Fault{Op: Write | Flush, Err: errBad}, []access{{Read, 0, nil}, {Write, 0, errBad}, {Flush, 0, errBad}}},
		{"after two", Fault{Op: Read, After: 2, Err: errBad}, []access{{Read, 0, nil}, {Write, 0, nil}, {Read, 0, nil}, {Read, 0, errBad}, {Read, 0, errBad}}},
		{"twice", Fault{Times: 2, Err: errBad}, []access{{Read, 0, errBad}, {Flush, 0, errBad}, {Read, 0, nil}}},
		{"range", Fault{Off: 1024, Len: 512, Err: errBad}, []access{{Read, 512, nil}, {Read, 1024, errBad}, {Write, 1535, errBad}, {Write, 1536, nil}, {Flush, 0, nil}}},
		{"no error", Fault{}, []access{{Read, 0, nil}}},
	} {
		f := newFaulty(t, tt.fault)
		var asked []Op
		for i, a := range tt.do {
			if err := do(f, a.op, a.off); !errors.Is(err, a.want) {
				t.Errorf("%s, %d: %v at %d: got %v, want %v", tt.name, i, a.op, a.off, err, a.want)
			}
			asked = append(asked, a.op)
		}
		var noted []Op
		for _, a := range f.Take() {
			noted = append(noted, a.Op)
		}
		if !slices.Equal(noted, asked) || f.Take() != nil {
			t.Errorf("%s: noted %v, want %v once", tt.name, noted, asked)
		}
		f.Repair()
		if err := do(f, Write, 1024); err != nil {
			t.Errorf("%s: after repair: %v", tt.name, err)
		}
	}
}

func do(f *Faulty, op Op, off int64) error {
	b := [][]byte{make([]byte, 256), make([]byte, 256)}
	switch op {
	case Read:
		return f.ReadAt(b, off)
	case Write:
		return f.WriteAt(b, off)
	case Flush:
		return f.Flush()
	case Discard:
		return f.Discard(off, 512)
	default:
		return f.WriteZeroes(off, 512, true)
	}
}

// An access that hangs goes on when it is released; others do not wait for it.
func TestHang(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		release := make(chan struct{})
		f := newFaulty(t, Fault{Op: Write, Times: 1, Hang: release, Err: errBad})
		done := make(chan error, 1)
		go func() { done <- do(f, Write, 0) }()
		synctest.Wait()
		if err := do(f, Write, 0); err != nil {
			t.Error(err)
		}
		select {
		case err := <-done:
			t.Errorf("did not hang: %v", err)
		default:
		}
		close(release)
		if err := <-done; !errors.Is(err, errBad) {
			t.Errorf("got %v", err)
		}
	})
}

// A volume without Trimmer stays one.
func TestPlain(t *testing.T) {
	t.Parallel()
	f := New(struct{ disk.Volume }{newFaulty(t).Volume})
	for _, op := range []Op{Discard, WriteZeroes} {
		if err := do(f, op, 0); !errors.Is(err, disk.ErrNotSupported) {
			t.Errorf("%v: got %v", op, err)
		}
	}
}
