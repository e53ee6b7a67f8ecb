// SPDX-License-Identifier: Apache-2.0

package guestmem

import (
	"errors"
	"fmt"
	"math"
	"os"
	"sync/atomic"
	"unsafe"

	"golang.org/x/sys/unix"
)

// MaxLog is the largest bitmap of dirty pages in bytes: for 8 TiB of addresses.
const MaxLog = 256 << 20

// ErrLog says that a bitmap of dirty pages cannot be used, or is too small.
var ErrLog = errors.New("bad log of dirty pages")

// Log is a bitmap, shared with a front end, of the pages of PageSize that were
// written to (vhost-user, "Migration"): page n is bit n%8 of byte n/8. It is safe for
// concurrent use, the front end's included, which reads and clears it meanwhile.
type Log struct {
	mapped []byte
	bits   []byte // in mapped
	told   atomic.Pointer[func()]
}

// MapLog maps size bytes at offset of a file as a bitmap. The caller keeps the fd,
// and may close it at once.
func MapLog(fd int, offset, size uint64) (*Log, error) {
	switch {
	case size == 0 || size%8 != 0 || size > MaxLog:
		return nil, fmt.Errorf("%w: size %#x is not a multiple of 8 up to %#x", ErrLog, size, MaxLog)
	case offset%PageSize != 0 || offset > math.MaxInt64-size:
		return nil, fmt.Errorf("%w: file range %#x + %#x", ErrLog, offset, size)
	}
	if err := checkFile(fd, offset+size); err != nil {
		return nil, fmt.Errorf("%w: %w", ErrLog, err)
	}
	slack := offset % uint64(os.Getpagesize())
	mem, err := unix.Mmap(fd, int64(offset-slack), int(slack+size), unix.PROT_READ|unix.PROT_WRITE, unix.MAP_SHARED)
	if err != nil {
		return nil, fmt.Errorf("map log of dirty pages: %w", err)
	}
	return &Log{mapped: mem, bits: mem[slack:]}, nil
}

// OnMark has fn called after each Mark; nil ends that. fn must not block.
func (l *Log) OnMark(fn func()) {
	if fn == nil {
		l.told.Store(nil)
		return
	}
	l.told.Store(&fn)
}

// Mark says that the n bytes at a guest-physical address were, or may have been,
// written to. What was written before is seen by whoever sees the mark. It fails with
// ErrLog for what is not in the bitmap, and with a *FaultError when the bitmap's file
// was truncated.
func (l *Log) Mark(guestPhys, n uint64) error {
	if n == 0 {
		return nil
	}
	end := guestPhys + n - 1
	if end < guestPhys || end/PageSize/8 >= uint64(len(l.bits)) {
		return fmt.Errorf("%w: %#x + %#x is not among its %d pages", ErrLog, guestPhys, n, 8*len(l.bits))
	}
	err := guard(l.holds, func() error {
		l.mark(guestPhys/PageSize, end/PageSize)
		return nil
	})
	if fn := l.told.Load(); fn != nil {
		(*fn)()
	}
	return err
}

// mark sets the bits of pages first to last, a word at a time. A bit that is set
// already is set again: to look first would not keep the order.
func (l *Log) mark(first, last uint64) {
	for page := first; page <= last; {
		bit := page % 32
		n := min(32-bit, last-page+1)
		at := (*uint32)(unsafe.Pointer(&l.bits[page/32*4 : page/32*4+4][0]))
		atomic.OrUint32(at, uint32(1<<n-1)<<bit)
		page += n
	}
}

func (l *Log) holds(addr uintptr) bool { return within(l.bits, addr) }

// Close unmaps the bitmap. Nobody may use it any longer.
func (l *Log) Close() error { return unix.Munmap(l.mapped) }
