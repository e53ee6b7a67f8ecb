// SPDX-License-Identifier: Apache-2.0

package virtqtest

import (
	"errors"
	"fmt"

	"golang.org/x/sys/unix"

	"github.com/davit-dpu/davit/firmware/virtio/guestmem"
)

// Memory is a guest's memory, one region from guest-physical address 0 on.
type Memory struct {
	fd    int
	bytes []byte
	next  uint64
}

// Buf is a piece of guest memory.
type Buf struct {
	// Addr is its guest-physical address.
	Addr uint64
	// Bytes is its content.
	Bytes []byte
}

// NewMemory makes memory of size bytes, a multiple of guestmem.PageSize.
func NewMemory(size int) (*Memory, error) {
	fd, err := unix.MemfdCreate("guest", unix.MFD_CLOEXEC)
	if err != nil {
		return nil, fmt.Errorf("create guest memory: %w", err)
	}
	if err := unix.Ftruncate(fd, int64(size)); err != nil {
		return nil, errors.Join(fmt.Errorf("size guest memory: %w", err), unix.Close(fd))
	}
	b, err := unix.Mmap(fd, 0, size, unix.PROT_READ|unix.PROT_WRITE, unix.MAP_SHARED)
	if err != nil {
		return nil, errors.Join(fmt.Errorf("map guest memory: %w", err), unix.Close(fd))
	}
	return &Memory{fd: fd, bytes: b, next: guestmem.PageSize}, nil
}

// FD is the memory's file. It stays the Memory's.
func (m *Memory) FD() int { return m.fd }

// Bytes is the whole memory.
func (m *Memory) Bytes() []byte { return m.bytes }

// Region maps the memory once more, as a device would, with user addresses
// equal to guest-physical ones.
func (m *Memory) Region() (guestmem.Region, error) {
	return guestmem.MapFD(m.fd, 0, 0, 0, uint64(len(m.bytes)))
}

// Alloc takes n bytes, aligned to 16, which are never given back. Running out is
// a bug of the test and panics.
func (m *Memory) Alloc(n int) Buf { return m.AllocAligned(n, 16) }

// AllocAligned is Alloc with another alignment, a power of two.
func (m *Memory) AllocAligned(n, align int) Buf {
	mask := uint64(align) - 1
	at := (m.next + mask) &^ mask
	if at+uint64(n) > uint64(len(m.bytes)) {
		panic(fmt.Sprintf("virtqtest: %d bytes at %d of %d", n, at, len(m.bytes)))
	}
	m.next = at + uint64(n)
	return Buf{Addr: at, Bytes: m.bytes[at:m.next:m.next]}
}

// Free takes everything back that was allocated after mark, a value of Mark.
func (m *Memory) Free(mark uint64) { m.next = mark }

// Mark returns how much is allocated.
func (m *Memory) Mark() uint64 { return m.next }

// Close unmaps and closes the memory.
func (m *Memory) Close() error {
	return errors.Join(unix.Munmap(m.bytes), unix.Close(m.fd))
}
