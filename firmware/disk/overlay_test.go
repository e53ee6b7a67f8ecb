// SPDX-License-Identifier: Apache-2.0

package disk

import (
	"bytes"
	"encoding/binary"
	"errors"
	"hash/crc32"
	"io"
	"math/rand/v2"
	"os"
	"strings"
	"sync"
	"testing"

	"golang.org/x/sys/unix"
)

var testBase = BaseID{1, 2, 3}

// openBase makes a read-only volume of content.
func openBase(t *testing.T, content []byte) *File {
	t.Helper()
	path := tempFile(t, 0)
	if err := os.WriteFile(path, content, 0o600); err != nil {
		t.Fatal(err)
	}
	v, err := openPath(path, os.O_RDONLY, true)
	if err != nil {
		t.Fatal(err)
	}
	return v
}

// formatFile makes an overlay in a new file.
func formatFile(t *testing.T, h OverlayHeader) (path string) {
	t.Helper()
	path = tempFile(t, h.StoreSize())
	store, err := openPath(path, os.O_RDWR, false)
	if err != nil {
		t.Fatal(err)
	}
	if err := errors.Join(FormatOverlay(store, h), store.Close()); err != nil {
		t.Fatal(err)
	}
	return path
}

func openStore(t *testing.T, path string, readOnly bool) *File {
	t.Helper()
	v, err := openPath(path, os.O_RDWR, readOnly)
	if err != nil {
		t.Fatal(err)
	}
	return v
}

func newOverlay(t *testing.T, base []byte, size, cluster int64) *Overlay {
	t.Helper()
	h := OverlayHeader{Size: size, BaseSize: int64(len(base)), ClusterSize: cluster, Base: testBase}
	o, err := OpenOverlay(openBase(t, base), openStore(t, formatFile(t, h), false), testBase)
	if err != nil {
		t.Fatal(err)
	}
	return o
}

func randomBytes(rng *rand.Rand, n int) []byte {
	b := make([]byte, n)
	for i := range b {
		b[i] = byte(rng.Uint32())
	}
	return b
}

// Random operations on an overlay of a full base, opened anew now and then, and
// on plain bytes give the same; the base stays as it was.
func TestOverlayModel(t *testing.T) {
	t.Parallel()
	for _, tt := range []struct {
		name               string
		base, size, border int64
	}{
		{"same size", testSize, testSize, MinClusterSize},
		{"larger than its base, cut cluster", testSize/2 + 512, testSize + 1536, MinClusterSize},
		{"default clusters", testSize, testSize + 512, DefaultClusterSize},
		{"one cluster", 512, 1024, MaxClusterSize},
	} {
		t.Run(tt.name, func(t *testing.T) {
			t.Parallel()
			rng := rand.New(rand.NewPCG(6, 7))
			content := randomBytes(rng, int(tt.base))
			h := OverlayHeader{Size: tt.size, BaseSize: tt.base, ClusterSize: tt.border, Base: testBase}
			path, base := formatFile(t, h), openBase(t, content)
			model := append(bytes.Clone(content), make([]byte, tt.size-tt.base)...)
			for range 5 {
				store := openStore(t, path, false)
				o, err := OpenOverlay(base, store, testBase)
				if err != nil {
					t.Fatal(err)
				}
				compareOverlay(t, rng, o, model)
				if err := store.Close(); err != nil { // the base stays open: it is looked at in the end
					t.Fatal(err)
				}
			}
			got := make([]byte, tt.base)
			if err := base.ReadAt([][]byte{got}, 0); err != nil || !bytes.Equal(got, content) {
				t.Errorf("the base has changed, %v", err)
			}
			if err := base.Close(); err != nil {
				t.Error(err)
			}
		})
	}
}

func compareOverlay(t *testing.T, rng *rand.Rand, o *Overlay, model []byte) {
	t.Helper()
	read := func(off, n int) []byte {
		got := make([]byte, n)
		if err := o.ReadAt(vector(rng, got), int64(off)); err != nil {
			t.Fatal(err)
		}
		return got
	}
	for step := range 60 {
		n := rng.IntN(min(40000, len(model)))
		off := rng.IntN(len(model) - n)
		var err error
		switch rng.IntN(4) {
		case 0, 1:
			copy(model[off:], randomBytes(rng, n))
			err = o.WriteAt(vector(rng, model[off:off+n]), int64(off))
		case 2:
			clear(model[off : off+n])
			err = o.WriteZeroes(int64(off), int64(n), rng.IntN(2) == 0)
		case 3:
			err = o.Discard(int64(off), int64(n))
			for i, b := range read(off, n) {
				if b != 0 && b != model[off+i] {
					t.Fatalf("step %d: byte %d reads as %d after discard, was %d", step, off+i, b, model[off+i])
				}
				model[off+i] = b
			}
		}
		if err != nil {
			t.Fatalf("step %d: %v", step, err)
		}
		if !bytes.Equal(read(off, n), model[off:off+n]) {
			t.Fatalf("step %d: read of %d at %d differs", step, n, off)
		}
	}
	if !bytes.Equal(read(0, len(model)), model) {
		t.Fatal("volume differs from the model")
	}
}

// Writers that come to the same clusters for the first time together lose nothing
// of each other's, nor of the base.
func TestOverlayConcurrentWriters(t *testing.T) {
	t.Parallel()
	const writers, stride = 8, 512
	rng := rand.New(rand.NewPCG(8, 9))
	base := randomBytes(rng, testSize)
	o := newOverlay(t, base, testSize, MinClusterSize)
	defer func() { _ = o.Close() }()
	want := bytes.Clone(base)
	var wg sync.WaitGroup
	for w := range writers {
		wg.Go(func() {
			rng := rand.New(rand.NewPCG(uint64(w), 1))
			data := bytes.Repeat([]byte{byte(0xa0 + w)}, stride/2)
			for _, i := range rng.Perm(testSize / stride / writers) { // a sector of every cluster is the writer's
				off := (i*writers + w) * stride
				copy(want[off:], data) // half of the sector: the rest stays the base's
				if err := o.WriteAt([][]byte{data}, int64(off)); err != nil {
					t.Error(err)
				}
				got := make([]byte, stride)
				if err := o.ReadAt([][]byte{got}, int64(off)); err != nil || !bytes.Equal(got, want[off:off+stride]) {
					t.Errorf("writer %d does not read what it wrote at %d, %v", w, off, err)
				}
			}
		})
	}
	wg.Wait()
	got := make([]byte, testSize)
	if err := o.ReadAt([][]byte{got}, 0); err != nil || !bytes.Equal(got, want) {
		t.Errorf("volume differs from the model, %v", err)
	}
}

// A store that is not an overlay of this base is refused, with the reason.
func TestOpenOverlayRefuses(t *testing.T) {
	t.Parallel()
	good := OverlayHeader{Size: testSize, BaseSize: testSize, ClusterSize: MinClusterSize, Base: testBase}
	resum := func(b []byte) { binary.LittleEndian.PutUint32(b[64:], crc32.Checksum(b[:64], castagnoli)) }
	for _, tt := range []struct {
		name   string
		change func(t *testing.T, path string, head []byte)
		want   string
	}{
		{"empty", func(_ *testing.T, _ string, b []byte) { clear(b) }, "begins with"},
		{"magic", func(_ *testing.T, _ string, b []byte) { b[0]++ }, "begins with"},
		{"bit error", func(_ *testing.T, _ string, b []byte) { b[33] ^= 4 }, "checksum"},
		{"version", func(_ *testing.T, _ string, b []byte) { b[8] = 2; resum(b) }, "version 2"},
		{"cluster size", func(_ *testing.T, _ string, b []byte) { b[12] = 1; resum(b) }, "power of two"},
		{"size", func(_ *testing.T, _ string, b []byte) { b[16] = 1; resum(b) }, "multiple of 512"},
		{"larger", func(_ *testing.T, _ string, b []byte) { b[18]++; resum(b) }, "its header wants"},
		{"huge", func(_ *testing.T, _ string, b []byte) { b[22] = 1; resum(b) }, "more than"},
		{"smaller than its base", func(_ *testing.T, _ string, b []byte) { b[26]++; resum(b) }, "can not be smaller"},
		{"other base", func(_ *testing.T, _ string, b []byte) { b[32]++; resum(b) }, ErrOtherBase.Error()},
		{"base of another size", func(_ *testing.T, _ string, b []byte) { b[25] ^= 2; b[26]--; resum(b) }, ErrOtherBase.Error()},
		{"cut in the data", func(t *testing.T, path string, _ []byte) { truncate(t, path, testSize) }, "its header wants"},
		{"cut in the header", func(t *testing.T, path string, _ []byte) { truncate(t, path, 512) }, "no room for a header"},
	} {
		path := formatFile(t, good)
		f, err := os.OpenFile(path, os.O_RDWR, 0)
		if err != nil {
			t.Fatal(err)
		}
		head := make([]byte, 512)
		if _, err := f.ReadAt(head, 0); err != nil {
			t.Fatal(err)
		}
		tt.change(t, path, head)
		if _, err := f.WriteAt(head, 0); err != nil {
			t.Fatal(err)
		}
		if err := f.Close(); err != nil {
			t.Fatal(err)
		}
		base, store := openBase(t, make([]byte, testSize)), openStore(t, path, false)
		o, err := OpenOverlay(base, store, testBase)
		if err == nil || o != nil || !strings.Contains(err.Error(), tt.want) {
			t.Errorf("%s: got %v, want %q", tt.name, err, tt.want)
		}
		if errors.Is(err, ErrOtherBase) != (tt.want == ErrOtherBase.Error()) {
			t.Errorf("%s: sentinel of %v", tt.name, err)
		}
		if !errors.Is(base.Flush(), ErrClosed) || !errors.Is(store.Flush(), ErrClosed) {
			t.Errorf("%s: base or store was left open", tt.name)
		}
	}
	writable, err := NewMemory(testSize)
	if err != nil {
		t.Fatal(err)
	}
	if o, err := OpenOverlay(writable, openStore(t, formatFile(t, good), false), testBase); err == nil || o != nil {
		t.Error("a writable base was accepted")
	}
}

func truncate(t *testing.T, path string, size int64) {
	t.Helper()
	if err := os.Truncate(path, size); err != nil {
		t.Fatal(err)
	}
}

func TestFormatOverlayRefuses(t *testing.T) {
	t.Parallel()
	good := OverlayHeader{Size: testSize, BaseSize: testSize, ClusterSize: MinClusterSize}
	for name, h := range map[string]OverlayHeader{
		"no size":       {BaseSize: 512, ClusterSize: MinClusterSize},
		"no base":       {Size: 512, ClusterSize: MinClusterSize},
		"smaller":       {Size: 512, BaseSize: 1024, ClusterSize: MinClusterSize},
		"small cluster": {Size: testSize, BaseSize: testSize, ClusterSize: 512},
		"odd cluster":   {Size: testSize, BaseSize: testSize, ClusterSize: MinClusterSize + 512},
		"large cluster": {Size: testSize, BaseSize: testSize, ClusterSize: 2 * MaxClusterSize},
		"other size":    {Size: testSize + 512, BaseSize: testSize, ClusterSize: MinClusterSize},
	} {
		store, err := NewMemory(good.StoreSize())
		if err != nil {
			t.Fatal(err)
		}
		if err := FormatOverlay(store, h); err == nil {
			t.Errorf("%s: was accepted", name)
		}
	}
	store := openStore(t, formatFile(t, good), false)
	defer func() { _ = store.Close() }()
	if err := FormatOverlay(store, good); err == nil {
		t.Error("an overlay was formatted again")
	}
}

func TestReadOverlayHeader(t *testing.T) {
	want := OverlayHeader{Size: 2 << 20, BaseSize: 1 << 20, ClusterSize: DefaultClusterSize, Base: BaseID{9}}
	path := formatFile(t, want)
	store := openStore(t, path, false) // in use
	defer store.Close()
	f, err := os.Open(path)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	if got, err := ReadOverlayHeader(f); err != nil || got != want {
		t.Errorf("got %+v, %v, want %+v", got, err, want)
	}
	if err := store.WriteAt([][]byte{{0}}, 0); err != nil {
		t.Fatal(err)
	}
	if got, err := ReadOverlayHeader(f); err == nil {
		t.Errorf("a torn header: %+v", got)
	}
	if err := os.Truncate(path, headerLen-1); err != nil {
		t.Fatal(err)
	}
	if got, err := ReadOverlayHeader(f); !errors.Is(err, io.EOF) {
		t.Errorf("a cut header: %+v, %v", got, err)
	}
}

func TestOverlayReadOnly(t *testing.T) {
	t.Parallel()
	h := OverlayHeader{Size: testSize, BaseSize: testSize, ClusterSize: MinClusterSize, Base: testBase}
	o, err := OpenOverlay(openBase(t, make([]byte, testSize)), openStore(t, formatFile(t, h), true), testBase)
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = o.Close() }()
	for what, err := range map[string]error{
		"write": o.WriteAt([][]byte{make([]byte, 512)}, 0), "discard": o.Discard(0, 512), "zero": o.WriteZeroes(0, 512, false),
	} {
		if !errors.Is(err, ErrReadOnly) {
			t.Errorf("%s: got %v", what, err)
		}
	}
	if !o.Info().ReadOnly {
		t.Error("volume says that it is writable")
	}
}

// What an overlay does not hold takes no room, and zeroes are holes.
func TestOverlaySparse(t *testing.T) {
	t.Parallel()
	const size = 64 << 20
	h := OverlayHeader{Size: size, BaseSize: testSize, ClusterSize: DefaultClusterSize, Base: testBase}
	path := formatFile(t, h)
	o, err := OpenOverlay(openBase(t, make([]byte, testSize)), openStore(t, path, false), testBase)
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = o.Close() }()
	if err := errors.Join(o.WriteZeroes(100, size-200, true), o.WriteAt([][]byte{{1}}, size/2), o.Flush()); err != nil {
		t.Fatal(err)
	}
	var st unix.Stat_t
	if err := unix.Stat(path, &st); err != nil {
		t.Fatal(err)
	}
	if got := st.Blocks * 512; got > 1<<20 {
		t.Errorf("takes %d bytes", got)
	}
}

func FuzzOverlayHeader(f *testing.F) {
	h := OverlayHeader{Size: 1 << 30, BaseSize: 1 << 20, ClusterSize: DefaultClusterSize, Base: testBase}
	good := h.encode()
	f.Add(good[:], true)
	f.Add(good[:40], true)
	f.Fuzz(func(t *testing.T, in []byte, resum bool) {
		var b [headerLen]byte
		copy(b[:], in)
		if resum { // let it look behind the checksum
			binary.LittleEndian.PutUint32(b[64:], crc32.Checksum(b[:64], castagnoli))
		}
		h, err := parseOverlayHeader(b)
		if (err == nil) == (h == OverlayHeader{}) {
			t.Fatalf("got %+v, %v", h, err)
		}
		if err != nil {
			return
		}
		if h.encode() != b {
			t.Errorf("%+v is encoded otherwise", h)
		}
		if h.StoreSize() <= h.Size || h.bitmapSize() > MaxClusters/8 || h.bitmapSize()*8 < h.clusters() || h.dataOffset()%h.ClusterSize != 0 {
			t.Errorf("%+v: %d clusters, bitmap of %d, data at %d of %d", h, h.clusters(), h.bitmapSize(), h.dataOffset(), h.StoreSize())
		}
	})
}
