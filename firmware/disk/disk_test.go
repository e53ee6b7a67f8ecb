// SPDX-License-Identifier: Apache-2.0

package disk

import (
	"bytes"
	"errors"
	"math/rand/v2"
	"os"
	"path/filepath"
	"testing"

	"golang.org/x/sys/unix"
)

const testSize = 1 << 20

func tempFile(t *testing.T, size int64) string {
	t.Helper()
	path := filepath.Join(t.TempDir(), "volume")
	if err := os.WriteFile(path, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	if err := os.Truncate(path, size); err != nil {
		t.Fatal(err)
	}
	return path
}

func openPath(path string, flag int, readOnly bool) (*File, error) {
	f, err := os.OpenFile(path, flag, 0)
	if err != nil {
		return nil, err
	}
	return OpenFile(f, readOnly)
}

// volumes runs a test on an empty volume of each kind.
func volumes(t *testing.T, test func(t *testing.T, v Volume)) {
	t.Run("memory", func(t *testing.T) {
		v, err := NewMemory(testSize)
		if err != nil {
			t.Fatal(err)
		}
		test(t, v)
	})
	t.Run("file", func(t *testing.T) {
		v, err := openPath(tempFile(t, testSize), os.O_RDWR, false)
		if err != nil {
			t.Fatal(err)
		}
		test(t, v)
	})
	t.Run("overlay", func(t *testing.T) {
		test(t, newOverlay(t, make([]byte, testSize/2), testSize, MinClusterSize))
	})
}

// vector cuts b into random buffers, some of them empty.
func vector(rng *rand.Rand, b []byte) [][]byte {
	var bufs [][]byte
	for len(b) > 0 {
		n := rng.IntN(min(len(b), 3000) + 1)
		bufs = append(bufs, b[:n:n])
		b = b[n:]
	}
	return bufs
}

// Random operations on a volume and on plain bytes give the same.
func TestModel(t *testing.T) {
	t.Parallel()
	volumes(t, func(t *testing.T, v Volume) {
		defer func() { _ = v.Close() }()
		rng := rand.New(rand.NewPCG(4, 5))
		model := make([]byte, testSize)
		for step := range 600 {
			n := rng.IntN(40000)
			off := rng.IntN(testSize - n)
			var err error
			switch rng.IntN(5) {
			case 0, 1:
				for i := range model[off : off+n] {
					model[off+i] = byte(rng.Uint32())
				}
				err = v.WriteAt(vector(rng, model[off:off+n]), int64(off))
			case 2:
				clear(model[off : off+n])
				err = v.(Trimmer).WriteZeroes(int64(off), int64(n), rng.IntN(2) == 0)
			case 3:
				err = v.(Trimmer).Discard(int64(off), int64(n))
				clear(model[off : off+n]) // what our stores do, though the contract allows more
			case 4:
				err = v.Flush()
			}
			if err != nil {
				t.Fatalf("step %d: %v", step, err)
			}
			got := make([]byte, n)
			if err := v.ReadAt(vector(rng, got), int64(off)); err != nil || !bytes.Equal(got, model[off:off+n]) {
				t.Fatalf("step %d: read of %d at %d differs, %v", step, n, off, err)
			}
		}
		got := make([]byte, testSize)
		if err := v.ReadAt([][]byte{got}, 0); err != nil || !bytes.Equal(got, model) {
			t.Errorf("volume differs from the model, %v", err)
		}
	})
}

// A vector longer than the kernel takes at once is transferred wholly.
func TestLongVector(t *testing.T) {
	t.Parallel()
	volumes(t, func(t *testing.T, v Volume) {
		defer func() { _ = v.Close() }()
		want := make([]byte, 3*maxVector)
		var in, out [][]byte
		got := make([]byte, len(want))
		for i := range want {
			want[i] = byte(i*7 + i/256)
			in, out = append(in, want[i:i+1]), append(out, got[i:i+1])
		}
		if err := v.WriteAt(in, 512); err != nil {
			t.Fatal(err)
		}
		if err := v.ReadAt(out, 512); err != nil || !bytes.Equal(got, want) {
			t.Errorf("read differs, %v", err)
		}
	})
}

func TestRange(t *testing.T) {
	t.Parallel()
	volumes(t, checkAccess)
	t.Run("null", func(t *testing.T) {
		v, err := NewNull(testSize)
		if err != nil {
			t.Fatal(err)
		}
		checkAccess(t, v)
	})
}

// checkAccess checks that a volume refuses what is outside of it, and everything
// once it is closed.
func checkAccess(t *testing.T, v Volume) {
	t.Helper()
	b := [][]byte{make([]byte, 512), make([]byte, 512)}
	for _, off := range []int64{-1, -512, testSize - 1023, testSize, testSize + 1, 1<<63 - 1} {
		for what, err := range map[string]error{
			"read": v.ReadAt(b, off), "write": v.WriteAt(b, off),
			"discard": v.(Trimmer).Discard(off, 1024), "zero": v.(Trimmer).WriteZeroes(off, 1024, true),
		} {
			if !errors.Is(err, ErrRange) {
				t.Errorf("%s at %d: got %v", what, off, err)
			}
		}
	}
	if err := v.(Trimmer).WriteZeroes(0, -1, false); !errors.Is(err, ErrRange) {
		t.Errorf("negative length: got %v", err)
	}
	if err := v.WriteAt(b, testSize-1024); err != nil {
		t.Errorf("last bytes: %v", err)
	}
	if err := v.Close(); err != nil {
		t.Error(err)
	}
	for what, err := range map[string]error{
		"read": v.ReadAt(b, 0), "write": v.WriteAt(b, 0), "flush": v.Flush(), "close": v.Close(),
		"discard": v.(Trimmer).Discard(0, 512),
	} {
		if !errors.Is(err, ErrClosed) {
			t.Errorf("%s after close: got %v", what, err)
		}
	}
}

func TestSizes(t *testing.T) {
	t.Parallel()
	for _, size := range []int64{-512, 0, 1, 511, 513} {
		if v, err := NewMemory(size); err == nil || v != nil {
			t.Errorf("memory of %d bytes: got %v, %v", size, v, err)
		}
		if size < 0 {
			continue
		}
		if v, err := openPath(tempFile(t, size), os.O_RDWR, false); err == nil || v != nil {
			t.Errorf("file of %d bytes: got %v, %v", size, v, err)
		}
	}
}

// A volume grows with its file, and never shrinks.
func TestGrow(t *testing.T) {
	t.Parallel()
	for _, readOnly := range []bool{false, true} {
		path := tempFile(t, testSize)
		v, err := openPath(path, os.O_RDWR, readOnly)
		if err != nil {
			t.Fatal(err)
		}
		b := make([]byte, 512)
		for _, tt := range []struct {
			file int64
			want int64
			err  error // nil: any
			ok   bool
		}{
			{testSize, testSize, nil, true},
			{2 * testSize, 2 * testSize, nil, true},
			{2*testSize + 1, 2 * testSize, nil, false},
			{testSize, 2 * testSize, ErrShrunk, false},
			{0, 2 * testSize, nil, false},
			{2*testSize + 512, 2*testSize + 512, nil, true},
		} {
			if err := os.Truncate(path, tt.file); err != nil {
				t.Fatal(err)
			}
			size, err := v.Grow()
			if (err == nil) != tt.ok || tt.err != nil && !errors.Is(err, tt.err) || err != nil && size != 0 {
				t.Errorf("file of %d bytes: got %d, %v", tt.file, size, err)
			}
			if got := v.Info().Size; got != tt.want {
				t.Errorf("file of %d bytes: size %d, want %d", tt.file, got, tt.want)
			}
			if err := v.ReadAt([][]byte{b}, v.Info().Size-512); tt.ok && err != nil {
				t.Errorf("file of %d bytes: read its end: %v", tt.file, err)
			}
		}
		if err := v.Close(); err != nil {
			t.Error(err)
		}
		if _, err := v.Grow(); !errors.Is(err, ErrClosed) {
			t.Errorf("after close: got %v", err)
		}
	}
}

// One writer, or many readers.
func TestLock(t *testing.T) {
	t.Parallel()
	path := tempFile(t, testSize)
	w, err := openPath(path, os.O_RDWR, false)
	if err != nil {
		t.Fatal(err)
	}
	for _, readOnly := range []bool{false, true} {
		if v, err := openPath(path, os.O_RDWR, readOnly); !errors.Is(err, ErrInUse) || v != nil {
			t.Errorf("second open, readOnly %v: got %v", readOnly, err)
		}
	}
	if err := w.Close(); err != nil {
		t.Fatal(err)
	}
	r1, err1 := openPath(path, os.O_RDONLY, true)
	r2, err2 := openPath(path, os.O_RDONLY, true)
	if err := errors.Join(err1, err2); err != nil {
		t.Fatal(err)
	}
	if _, err := openPath(path, os.O_RDWR, false); !errors.Is(err, ErrInUse) {
		t.Errorf("writer beside readers: got %v", err)
	}
	if err := errors.Join(r1.Close(), r2.Close()); err != nil {
		t.Error(err)
	}
}

func TestReadOnly(t *testing.T) {
	t.Parallel()
	v, err := openPath(tempFile(t, testSize), os.O_RDONLY, true)
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = v.Close() }()
	for what, err := range map[string]error{
		"write": v.WriteAt([][]byte{make([]byte, 512)}, 0), "discard": v.Discard(0, 512), "zero": v.WriteZeroes(0, 512, false),
	} {
		if !errors.Is(err, ErrReadOnly) {
			t.Errorf("%s: got %v", what, err)
		}
	}
	if err := v.Flush(); err != nil {
		t.Errorf("flush: %v", err)
	}
	if !v.Info().ReadOnly || v.Info().Size != testSize {
		t.Errorf("got %+v", v.Info())
	}
}

func TestOpenRefuses(t *testing.T) {
	t.Parallel()
	path := tempFile(t, testSize)
	if _, err := openPath(path, os.O_RDONLY, false); !errors.Is(err, os.ErrPermission) {
		t.Errorf("read-only file for writing: got %v", err)
	}
	if _, err := openPath(path, os.O_WRONLY, true); !errors.Is(err, os.ErrPermission) {
		t.Errorf("write-only file: got %v", err)
	}
	if _, err := openPath(t.TempDir(), os.O_RDONLY, true); err == nil {
		t.Error("a directory was opened")
	}
	if _, err := openPath("/dev/zero", os.O_RDWR, false); err == nil {
		t.Error("a character device was opened")
	}
	r, w, err := os.Pipe()
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = w.Close() }()
	if _, err := OpenFile(r, true); err == nil {
		t.Error("a pipe was opened")
	}
}

// A file that shrinks under the volume gives errors, not endless loops.
func TestTruncated(t *testing.T) {
	t.Parallel()
	path := tempFile(t, testSize)
	v, err := openPath(path, os.O_RDWR, false)
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = v.Close() }()
	if err := os.Truncate(path, 1000); err != nil {
		t.Fatal(err)
	}
	if err := v.ReadAt([][]byte{make([]byte, 2048)}, 0); err == nil {
		t.Error("read over the end succeeded")
	}
}

// Discard and unmapping zeroes give space back.
func TestPunchesHoles(t *testing.T) {
	t.Parallel()
	path := tempFile(t, testSize)
	v, err := openPath(path, os.O_RDWR, false)
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = v.Close() }()
	blocks := func() int64 {
		var st unix.Stat_t
		if err := errors.Join(v.Flush(), unix.Stat(path, &st)); err != nil {
			t.Fatal(err)
		}
		return st.Blocks
	}
	for name, op := range map[string]func() error{
		"discard": func() error { return v.Discard(0, testSize) },
		"unmap":   func() error { return v.WriteZeroes(0, testSize, true) },
	} {
		if err := v.WriteAt([][]byte{bytes.Repeat([]byte{7}, testSize)}, 0); err != nil {
			t.Fatal(err)
		}
		full := blocks()
		if err := op(); errors.Is(err, ErrNotSupported) {
			t.Skip("the file system of the temporary directory has no holes")
		} else if err != nil {
			t.Fatal(err)
		}
		if now := blocks(); now >= full {
			t.Errorf("%s: %d blocks, %d before", name, now, full)
		}
	}
}

// Zero is the fallback of file systems without a fast way.
func TestWriteZeroesFallback(t *testing.T) {
	t.Parallel()
	const size = 9 << 20
	v, err := openPath(tempFile(t, size), os.O_RDWR, false)
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = v.Close() }()
	want := bytes.Repeat([]byte{9}, size)
	if err := v.WriteAt([][]byte{want}, 0); err != nil {
		t.Fatal(err)
	}
	clear(want[512 : size-1024])
	if err := Zero(v, 512, size-1024-512); err != nil {
		t.Fatal(err)
	}
	got := make([]byte, size)
	if err := v.ReadAt([][]byte{got}, 0); err != nil || !bytes.Equal(got, want) {
		t.Errorf("content differs, %v", err)
	}
}

// Zeroes are as durable as writes where the file is open for that.
func TestZeroesWriteThrough(t *testing.T) {
	t.Parallel()
	for flag, want := range map[int]int{0: 0, unix.O_DSYNC: 2, unix.O_SYNC: 2} {
		v, err := openPath(tempFile(t, testSize), os.O_RDWR|flag, false)
		if err != nil {
			t.Fatal(err)
		}
		syncs := 0
		v.sync = func(fd int) error {
			syncs++
			return unix.Fdatasync(fd)
		}
		if err := errors.Join(v.WriteZeroes(0, 4096, true), v.WriteZeroes(4096, 4096, false)); err != nil {
			t.Fatal(err)
		}
		if syncs != want {
			t.Errorf("flags %#x: %d syncs, want %d", flag, syncs, want)
		}
		if err := v.Close(); err != nil {
			t.Error(err)
		}
	}
}

// A lost write is never forgotten.
func TestFlushFailsForEver(t *testing.T) {
	t.Parallel()
	v, err := openPath(tempFile(t, testSize), os.O_RDWR, false)
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = v.Close() }()
	fd := v.fd
	v.fd = -1
	first := v.Flush()
	v.fd = fd
	if second := v.Flush(); first == nil || second == nil {
		t.Errorf("got %v, then %v", first, second)
	}
}
