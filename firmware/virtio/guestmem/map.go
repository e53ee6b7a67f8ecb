// SPDX-License-Identifier: Apache-2.0

package guestmem

import (
	"fmt"
	"math"
	"os"

	"golang.org/x/sys/unix"
)

// MapFD maps size bytes at offset of a file (a memfd, a file on hugetlbfs or
// /dev/shm, a DAX device) as a region, shared and writable. The caller keeps
// the fd, and may close it at once: the mapping stays.
func MapFD(fd int, guestPhys, userAddr, offset, size uint64) (Region, error) {
	if offset%PageSize != 0 || offset+size < offset || offset+size > math.MaxInt64 {
		return Region{}, fmt.Errorf("%w: file range %#x + %#x", ErrRegion, offset, size)
	}
	if size == 0 || size%PageSize != 0 {
		return Region{}, fmt.Errorf("%w: size %#x is not a multiple of %#x", ErrRegion, size, PageSize)
	}
	if err := checkFile(fd, offset+size); err != nil {
		return Region{}, err
	}
	// mmap wants offsets in units of the processor's page, which can be larger than ours.
	slack := offset % uint64(os.Getpagesize())
	mem, err := unix.Mmap(fd, int64(offset-slack), int(slack+size), unix.PROT_READ|unix.PROT_WRITE, unix.MAP_SHARED)
	if err != nil {
		return Region{}, fmt.Errorf("map %#x bytes at %#x: %w", size, offset, err)
	}
	release := func() error { return unix.Munmap(mem) }
	r, err := NewRegion(guestPhys, userAddr, mem[slack:], release)
	if err != nil {
		_ = unix.Munmap(mem)
		return Region{}, err
	}
	return r, nil
}

// checkFile refuses a file that can not be memory of the wanted length: an
// access behind the end of a mapped file raises SIGBUS.
func checkFile(fd int, end uint64) error {
	var st unix.Stat_t
	if err := unix.Fstat(fd, &st); err != nil {
		return fmt.Errorf("stat memory file: %w", err)
	}
	switch st.Mode & unix.S_IFMT {
	case unix.S_IFREG:
		if uint64(st.Size) < end {
			return fmt.Errorf("%w: file has %#x bytes, region ends at %#x", ErrRegion, st.Size, end)
		}
	case unix.S_IFCHR: // /dev/daxN.M checks the range in mmap
	default:
		return fmt.Errorf("%w: mode %#o is not a file that can be memory", ErrRegion, st.Mode)
	}
	return nil
}

// Window is a mapped piece of memory of which a peer may use a sub-range: the
// DMA window of a bus, or the part of a pool that belongs to one instance.
type Window struct {
	mem      []byte
	off, end uint64
}

// NewWindow allows the size bytes at off of mem. The window does not own mem,
// which must stay mapped as long as regions of it are in use.
func NewWindow(mem []byte, off, size uint64) (Window, error) {
	if off+size < off || off+size > uint64(len(mem)) {
		return Window{}, fmt.Errorf("%w: window %#x + %#x of %#x bytes", ErrRegion, off, size, len(mem))
	}
	return Window{mem: mem, off: off, end: off + size}, nil
}

// Region makes a region of the window. offset counts from the beginning of
// the mapped memory, not of the allowed range, which must hold it wholly.
func (w Window) Region(guestPhys, userAddr, offset, size uint64) (Region, error) {
	if offset < w.off || offset+size < offset || offset+size > w.end {
		return Region{}, fmt.Errorf("%w: %#x + %#x is outside of the window %#x..%#x", ErrRegion, offset, size, w.off, w.end)
	}
	return NewRegion(guestPhys, userAddr, w.mem[offset:offset+size:offset+size], nil)
}
