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
