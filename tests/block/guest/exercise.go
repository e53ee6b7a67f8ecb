// SPDX-License-Identifier: Apache-2.0

package main

import (
	"bufio"
	"bytes"
	"crypto/sha256"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"os"
	"runtime"
	"sync"
	"sync/atomic"

	"golang.org/x/sys/unix"
)

const (
	device  = "/dev/vda"
	sector  = 512
	page    = 4096
	maxSize = 128 << 10 // of one operation
)

// exercise has one worker for each CPU, hence queue, work on its own part of the disk.
func exercise(ops int, mode string) error {
	churn := mode != "verify"
	f, err := os.OpenFile(device, os.O_RDWR|unix.O_DIRECT, 0)
	if err != nil {
		return err
	}
	size, err := f.Seek(0, 2)
	if err != nil {
		return err
	}
	n := runtime.NumCPU()
	part := size / int64(n) / page * page
	fmt.Println("ready")
	var stop atomic.Bool
	var total atomic.Int64
	if churn {
		go obey(f, &stop)
	}
	var wg sync.WaitGroup
	failures := make([]error, n)
	parts := make([]*worker, n)
	for i := range n {
		w := &worker{f: f, base: part * int64(i), cpu: i, rng: rand.New(rand.NewPCG(uint64(i), 11))}
		w.work = w.step
		if mode == "hold" {
			w.work = w.fetch
		}
		parts[i] = w
		wg.Go(func() { failures[i] = w.run(part, ops, churn, &stop, &total) })
	}
	wg.Wait()
	if err := errors.Join(failures...); err != nil {
		return err
	}
	fmt.Printf("ops %d\n", total.Load())
	for _, w := range parts {
		if err := errors.Join(w.verify(0, len(w.model)), w.verifyHeld()); err != nil {
			return err
		}
	}
	if err := f.Sync(); err != nil {
		return fmt.Errorf("last flush: %w", err)
	}
	if size, err = f.Seek(0, io.SeekEnd); err != nil { // it may have grown
		return err
	}
	return digest(f, size)
}

// obey does what the host says on the console.
func obey(f *os.File, stop *atomic.Bool) {
	in := bufio.NewScanner(os.Stdin)
	for in.Scan() {
		switch in.Text() {
		case "stop":
			stop.Store(true)
		case "size":
			size, err := f.Seek(0, io.SeekEnd)
			if err != nil {
				fmt.Printf("failed: %v\n", err)
			}
			fmt.Printf("size %d\n", size)
		}
	}
}

// worker owns a part of the disk, whose content it knows.
type worker struct {
	f     *os.File
	base  int64
	cpu   int
	rng   *rand.Rand
	work  func() error
	model []byte
	buf   []byte
	held  held
}

func (w *worker) run(size int64, ops int, churn bool, stop *atomic.Bool, total *atomic.Int64) error {
	runtime.LockOSThread()
	var cpus unix.CPUSet
	cpus.Set(w.cpu)
	if err := unix.SchedSetaffinity(0, &cpus); err != nil {
		return fmt.Errorf("bind to cpu %d: %w", w.cpu, err)
	}
	w.model = make([]byte, size)
	var err error
	if w.buf, err = unix.Mmap(-1, 0, maxSize, unix.PROT_READ|unix.PROT_WRITE, unix.MAP_PRIVATE|unix.MAP_ANONYMOUS); err != nil {
		return fmt.Errorf("allocate buffer: %w", err)
	}
	if err := w.read(w.model); err != nil {
		return err
	}
	if w.held.pages, err = unix.Mmap(-1, 0, maxHeld*page, unix.PROT_READ|unix.PROT_WRITE, unix.MAP_PRIVATE|unix.MAP_ANONYMOUS); err != nil {
		return fmt.Errorf("allocate pages: %w", err)
	}
	for i := 0; churn && !stop.Load() || !churn && i < ops; i++ {
		if err := w.work(); err != nil {
			return fmt.Errorf("operation %d of cpu %d: %w", i, w.cpu, err)
		}
		if n := total.Add(1); churn && n%200 == 0 {
			fmt.Printf("ops %d\n", n)
		}
	}
	return nil
}

// read fills p with the part's content as it is on the disk.
func (w *worker) read(p []byte) error {
	for off := 0; off < len(p); off += maxSize {
		n := min(maxSize, len(p)-off)
		if _, err := w.f.ReadAt(w.buf[:n], w.base+int64(off)); err != nil {
			return fmt.Errorf("read %d at %d: %w", n, w.base+int64(off), err)
		}
		copy(p[off:], w.buf[:n])
	}
	return nil
}

// step does one random operation, half of them writes.
func (w *worker) step() error {
	unit := sector
	kind := w.rng.IntN(100)
	if kind >= 85 {
		unit = page // discard and zero in pages, as file systems do
	}
	n := unit * (1 + w.rng.IntN(maxSize/unit))
	off := unit * w.rng.IntN((len(w.model)-n)/unit+1)
	part := w.model[off : off+n]
	at := w.base + int64(off)
	switch {
	case kind < 50:
		w.fill(part)
		copy(w.buf, part)
		if _, err := w.f.WriteAt(w.buf[:n], at); err != nil {
			return fmt.Errorf("write %d at %d: %w", n, at, err)
		}
		return nil
	case kind < 75:
		return w.verify(off, n)
	case kind < 85:
		return w.f.Sync()
	case kind < 88:
		clear(part)
		return w.discard(at, n)
	default:
		clear(part)
		return w.zero(at, n)
	}
}

func (w *worker) fill(p []byte) {
	seed := w.rng.Uint64()
	for i := 0; i < len(p); i += 8 {
		seed = seed*6364136223846793005 + 1442695040888963407
		for j := range 8 {
			p[i+j] = byte(seed >> (8 * j))
		}
	}
}

func (w *worker) verify(off, n int) error {
	for ; n > 0; off, n = off+maxSize, n-maxSize {
		k := min(n, maxSize)
		at := w.base + int64(off)
		if _, err := w.f.ReadAt(w.buf[:k], at); err != nil {
			return fmt.Errorf("read %d at %d: %w", k, at, err)
		}
		if want := w.model[off : off+k]; !bytes.Equal(w.buf[:k], want) {
			for i := range want {
				if w.buf[i] != want[i] {
					return fmt.Errorf("byte %d of %d read at %d is %#x, want %#x", i, k, at, w.buf[i], want[i])
				}
			}
		}
	}
	return nil
}

func digest(f *os.File, size int64) error {
	buf, err := unix.Mmap(-1, 0, maxSize, unix.PROT_READ|unix.PROT_WRITE, unix.MAP_PRIVATE|unix.MAP_ANONYMOUS)
	if err != nil {
		return fmt.Errorf("allocate buffer: %w", err)
	}
	h := sha256.New()
	for off := int64(0); off < size; off += maxSize {
		n := min(maxSize, size-off)
		if _, err := f.ReadAt(buf[:n], off); err != nil {
			return fmt.Errorf("read %d at %d: %w", n, off, err)
		}
		_, _ = h.Write(buf[:n])
	}
	fmt.Printf("digest %x\n", h.Sum(nil))
	return nil
}
