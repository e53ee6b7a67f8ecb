// SPDX-License-Identifier: Apache-2.0

package nbd

import (
	"bytes"
	"errors"
	"log/slog"
	"math/rand/v2"
	"os"
	"strings"
	"sync"
	"testing"

	"github.com/davit-dpu/davit/firmware/disk"
	"github.com/davit-dpu/davit/firmware/disk/nbd"
)

const (
	workers = 6
	part    = size / workers / disk.SectorSize * disk.SectorSize
	steps   = 150
)

// exercise does random operations on the worker's part, and verifies each
// against model, the same part in memory.
func exercise(t *testing.T, v *nbd.Volume, worker int, model []byte, step func(n int)) {
	rng := rand.New(rand.NewPCG(uint64(worker), 21))
	for i := range steps {
		step(i)
		n := (1 + rng.IntN(400)) * disk.SectorSize
		rel := rng.IntN((len(model)-n)/disk.SectorSize) * disk.SectorSize
		off := int64(worker*part + rel)
		want := model[rel : rel+n]
		var err error
		switch rng.IntN(7) {
		default:
			for j := range want {
				want[j] = byte(rng.Uint32())
			}
			err = v.WriteAt(cut(want), off)
		case 4:
			clear(want)
			err = v.WriteZeroes(off, int64(n), i%2 == 0)
		case 5:
			clear(want) // a discard alone promises nothing
			err = errors.Join(v.Discard(off, int64(n)), v.WriteZeroes(off, int64(n), true))
		case 6:
			err = v.Flush()
		}
		if err != nil {
			t.Errorf("worker %d, step %d: %v", worker, i, err)
			return
		}
		got := make([]byte, n)
		if err := v.ReadAt(cut(got), off); err != nil || !bytes.Equal(got, want) {
			t.Errorf("worker %d, step %d: read of %d at %d differs, %v", worker, i, n, off, err)
			return
		}
	}
}

// cut makes a vector of pages, as a guest's is.
func cut(b []byte) [][]byte {
	var bufs [][]byte
	for len(b) > 0 {
		n := min(4096, len(b))
		bufs = append(bufs, b[:n])
		b = b[n:]
	}
	return bufs
}

// TestIO: what is read back, and what is in the server's file in the end, is what
// was written, whether the server is killed meanwhile or not.
func TestIO(t *testing.T) {
	for name, start := range servers(t) {
		for mode, kills := range map[string]int{"steady": 0, "killed": 5} {
			t.Run(name+" "+mode, func(t *testing.T) {
				s := start(t, false)
				v := s.open(t, nbd.Config{Export: export, Log: slog.New(slog.NewTextHandler(t.Output(), nil))})
				if v.Info() != (disk.Info{Size: size}) {
					t.Fatalf("got %+v", v.Info())
				}
				model := make([]byte, size)
				var wg sync.WaitGroup
				for w := range workers {
					wg.Go(func() {
						exercise(t, v, w, model[w*part:(w+1)*part], func(n int) {
							// One worker kills the server, and has it back: the
							// others are in the middle of something.
							if w == 0 && kills > 0 && n%(steps/kills) == 7 {
								s.kill()
								s.start()
							}
						})
					})
				}
				wg.Wait()
				if err := errors.Join(v.Flush(), v.Close()); err != nil {
					t.Error(err)
				}
				if got, err := os.ReadFile(s.file); err != nil || !bytes.Equal(got, model) {
					t.Errorf("the server's file differs, %v", err)
				}
			})
		}
	}
}

// TestWriteBack: a server that was killed with unflushed writes makes flushes
// fail for ever, and nothing else.
func TestWriteBack(t *testing.T) {
	for name, start := range servers(t) {
		t.Run(name, func(t *testing.T) {
			s := start(t, false)
			v := s.open(t, nbd.Config{Export: export, WriteBack: true})
			one := [][]byte{bytes.Repeat([]byte{1}, 512)}
			restart := func() {
				s.kill()
				s.start()
				if err := v.ReadAt([][]byte{make([]byte, 512)}, 0); err != nil { // the connection is another one
					t.Error(err)
				}
			}
			if err := errors.Join(v.WriteAt(one, 0), v.Flush()); err != nil {
				t.Fatal(err)
			}
			restart()
			if err := errors.Join(v.Flush(), v.WriteAt(one, 512)); err != nil {
				t.Fatal(err)
			}
			restart()
			for range 2 {
				if err := v.Flush(); err == nil {
					t.Error("flush succeeded")
				}
				if err := v.WriteAt(one, 1024); err != nil {
					t.Error(err)
				}
			}
		})
	}
}

// TestReadOnly: an export that is read-only gives no writable volume.
func TestReadOnly(t *testing.T) {
	for name, start := range servers(t) {
		t.Run(name, func(t *testing.T) {
			s := start(t, true)
			v := s.open(t, nbd.Config{Export: export, ReadOnly: true})
			if err := v.ReadAt([][]byte{make([]byte, 512)}, 0); err != nil || !v.Info().ReadOnly {
				t.Errorf("got %+v, %v", v.Info(), err)
			}
			if w, err := nbd.Open(t.Context(), nbd.Config{Dial: s.dial, Export: export}); !errors.Is(err, disk.ErrReadOnly) || w != nil {
				t.Errorf("writable: got %v", err)
			}
		})
	}
}

// TestUnknownExport: the reason is the server's. nbdkit's plugin has one export under every name.
func TestUnknownExport(t *testing.T) {
	s := servers(t)["qemu-nbd"](t, true)
	s.open(t, nbd.Config{Export: export, ReadOnly: true})
	v, err := nbd.Open(t.Context(), nbd.Config{Dial: s.dial, Export: "other", ReadOnly: true})
	if err == nil || v != nil || !strings.Contains(err.Error(), "no such export") {
		t.Errorf("got %v", err)
	}
}
