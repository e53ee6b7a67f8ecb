// SPDX-License-Identifier: Apache-2.0

package bus

import (
	"errors"
	"fmt"
	"math"
	"os"
	"sync"

	"golang.org/x/sys/unix"

	"github.com/davit-dpu/davit/firmware/spec"
)

// ErrOutside says that a range is not inside a window.
var ErrOutside = errors.New("outside the window")

// Aperture is an open file through which a part of the host's pool can be
// mapped: pool byte PoolOffset is byte FileOffset of the file.
type Aperture struct {
	File       *os.File // owned by whoever holds the Aperture
	FileOffset uint64
	PoolOffset uint64
	Size       uint64 // bytes; a multiple of the page size
}

// OpenPool opens a pool file on this machine, for a card that is a program
// beside its host. What the emulated card's kernel reserves is left out here
// too, so that offsets mean the same on both.
func OpenPool(path string) (Aperture, error) {
	f, err := os.OpenFile(path, os.O_RDWR, 0)
	if err != nil {
		return Aperture{}, fmt.Errorf("open pool: %w", err)
	}
	st, err := f.Stat()
	if err == nil && (!st.Mode().IsRegular() || st.Size() <= int64(spec.PoolReserved) || st.Size()%int64(spec.MemoryAlign) != 0) {
		err = fmt.Errorf("pool %s: want a regular file whose size is a multiple of %s above %s", path, spec.MemoryAlign, spec.PoolReserved)
	}
	if err != nil {
		return Aperture{}, errors.Join(err, f.Close())
	}
	r := uint64(spec.PoolReserved)
	return Aperture{File: f, FileOffset: r, PoolOffset: r, Size: uint64(st.Size()) - r}, nil
}

// Window is a mapping of the host's pool. The host and its guests can change
// every byte of it at any time: copy once, then check, then use.
type Window struct {
	pool uint64 // pool offset of byte 0

	mu  sync.RWMutex
	mem []byte // guarded by mu; nil after Close
}

// Map maps an aperture, shared and writable. The file may be closed afterwards.
func Map(a Aperture) (*Window, error) {
	if a.Size == 0 || a.Size > math.MaxInt || a.FileOffset > math.MaxInt64-a.Size || a.PoolOffset > math.MaxUint64-a.Size {
		return nil, fmt.Errorf("map window: size %d at file offset %d", a.Size, a.FileOffset)
	}
	raw, err := a.File.SyscallConn() // not Fd, which would make the file blocking
	if err != nil {
		return nil, fmt.Errorf("map window: %w", err)
	}
	var mem []byte
	cerr := raw.Control(func(fd uintptr) {
		mem, err = unix.Mmap(int(fd), int64(a.FileOffset), int(a.Size), unix.PROT_READ|unix.PROT_WRITE, unix.MAP_SHARED)
	})
	if err = errors.Join(cerr, err); err != nil {
		return nil, fmt.Errorf("map window: %w", err)
	}
	return &Window{pool: a.PoolOffset, mem: mem}, nil
}

// Slice returns the bytes of a range of the pool. The slice is only valid until
// Close.
func (w *Window) Slice(poolOffset, length uint64) ([]byte, error) {
	w.mu.RLock()
	defer w.mu.RUnlock()
	size := uint64(len(w.mem))
	if poolOffset < w.pool || poolOffset-w.pool > size || length > size-(poolOffset-w.pool) {
		return nil, fmt.Errorf("pool [%#x, +%#x): %w [%#x, +%#x)", poolOffset, length, ErrOutside, w.pool, size)
	}
	from := poolOffset - w.pool
	return w.mem[from : from+length : from+length], nil
}

// PoolOffset is the pool offset of the window's first byte.
func (w *Window) PoolOffset() uint64 { return w.pool }

// Size is the window's length in bytes; 0 after Close.
func (w *Window) Size() uint64 {
	w.mu.RLock()
	defer w.mu.RUnlock()
	return uint64(len(w.mem))
}

// Close unmaps the window. Slices of it must not be used any more: a use would
// fault. A second Close does nothing.
func (w *Window) Close() error {
	w.mu.Lock()
	defer w.mu.Unlock()
	if w.mem == nil {
		return nil
	}
	err := unix.Munmap(w.mem)
	w.mem = nil
	if err != nil {
		return fmt.Errorf("unmap window: %w", err)
	}
	return nil
}
