// SPDX-License-Identifier: Apache-2.0

package disk

import (
	"fmt"
	"os"
	"sync"

	"golang.org/x/sys/unix"
)

// Memory is a Volume in memory of this process, for tests and benchmarks: a card's
// memory volumes are files on tmpfs. It is lost with the process, so Flush has
// nothing to do. Pages that were never written take no room.
type Memory struct {
	mu   sync.RWMutex // read: I/O, write: Close
	data []byte       // nil after Close; guarded by mu
	size int64
}

// NewMemory makes a volume of size zero bytes.
func NewMemory(size int64) (*Memory, error) {
	if err := checkSize(size); err != nil {
		return nil, err
	}
	data, err := unix.Mmap(-1, 0, int(size), unix.PROT_READ|unix.PROT_WRITE, unix.MAP_PRIVATE|unix.MAP_ANONYMOUS|unix.MAP_NORESERVE)
	if err != nil {
		return nil, fmt.Errorf("map volume of %d bytes: %w", size, err)
	}
	return &Memory{data: data, size: size}, nil
}

// Info implements Volume.
func (m *Memory) Info() Info { return Info{Size: m.size} }

// ReadAt implements Volume.
func (m *Memory) ReadAt(bufs [][]byte, off int64) error {
	return m.use(off, length(bufs), func(data []byte) error {
		for _, b := range bufs {
			data = data[copy(b, data):]
		}
		return nil
	})
}

// WriteAt implements Volume.
func (m *Memory) WriteAt(bufs [][]byte, off int64) error {
	return m.use(off, length(bufs), func(data []byte) error {
		for _, b := range bufs {
			data = data[copy(data, b):]
		}
		return nil
	})
}

// TryReadAt implements Prompter.
func (m *Memory) TryReadAt(bufs [][]byte, off int64) error { return m.ReadAt(bufs, off) }

// TryWriteAt implements Prompter.
func (m *Memory) TryWriteAt(bufs [][]byte, off int64) error { return m.WriteAt(bufs, off) }

// Flush implements Volume.
func (m *Memory) Flush() error { return m.use(0, 0, func([]byte) error { return nil }) }

// Discard implements Trimmer.
func (m *Memory) Discard(off, n int64) error { return m.WriteZeroes(off, n, true) }

// WriteZeroes implements Trimmer.
func (m *Memory) WriteZeroes(off, n int64, unmap bool) error {
	return m.use(off, uint64(n), func(data []byte) error {
		page := int64(os.Getpagesize())
		first := min((off+page-1)/page*page-off, n) // to the next page border
		whole := (n - first) / page * page
		if !unmap || whole == 0 {
			clear(data)
			return nil
		}
		clear(data[:first])
		clear(data[first+whole:])
		if err := unix.Madvise(data[first:first+whole], unix.MADV_DONTNEED); err != nil {
			return fmt.Errorf("give back %d bytes at %d: %w", whole, off+first, err)
		}
		return nil
	})
}

// use calls fn with n bytes at off, which stay mapped meanwhile.
func (m *Memory) use(off int64, n uint64, fn func(data []byte) error) error {
	if err := checkRange(m.size, off, n); err != nil {
		return err
	}
	m.mu.RLock()
	defer m.mu.RUnlock()
	if m.data == nil {
		return ErrClosed
	}
	return fn(m.data[off:][:n])
}

// Close implements Volume.
func (m *Memory) Close() error {
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.data == nil {
		return ErrClosed
	}
	data := m.data
	m.data = nil
	return unix.Munmap(data)
}

var (
	_ Volume  = (*Memory)(nil)
	_ Trimmer = (*Memory)(nil)
)
