// SPDX-License-Identifier: Apache-2.0

package disk

import (
	"errors"
	"fmt"
)

// SectorSize is the unit of a volume's size in bytes.
const SectorSize = 512

// Sentinels of this package.
var (
	// ErrRange says that an access is not wholly inside of the volume.
	ErrRange = errors.New("outside of the volume")
	// ErrReadOnly says that a volume can not be changed.
	ErrReadOnly = errors.New("volume is read-only")
	// ErrClosed says that the volume was closed.
	ErrClosed = errors.New("volume is closed")
	// ErrNotSupported says that the volume's store lacks an operation.
	ErrNotSupported = errors.New("not supported by the volume")
	// ErrInUse says that another process has the volume open for writing.
	ErrInUse = errors.New("volume is in use")
	// ErrShrunk says that a volume's store has become smaller.
	ErrShrunk = errors.New("volumes do not shrink")
)

// Info is what a volume is, constant while it is open but for a size that grows.
type Info struct {
	// Size is in bytes, a multiple of SectorSize. It is never less than before.
	Size int64
	// ReadOnly volumes refuse WriteAt, Discard and WriteZeroes with ErrReadOnly.
	ReadOnly bool
}

// Volume is an open volume. All methods may be called concurrently; accesses to
// the same bytes at the same time give any mixture.
type Volume interface {
	Info() Info
	// ReadAt fills bufs, one after the other, from byte off on.
	ReadAt(bufs [][]byte, off int64) error
	// WriteAt stores bufs, one after the other, from byte off on. After an
	// error any part may have been written.
	WriteAt(bufs [][]byte, off int64) error
	// Flush makes everything written before durable. After it failed once,
	// it fails for ever: what was lost can not be written again from here.
	Flush() error
	// Close waits for what is under way and closes the volume.
	Close() error
}

// ErrWouldBlock is what a Prompter says of an access that has to wait.
var ErrWouldBlock = errors.New("access has to wait for the store")

// Prompter is a Volume that knows whether an access has to wait for a device, or
// for another computer: whoever may not wait tries first.
type Prompter interface {
	// TryReadAt is ReadAt, or fails with ErrWouldBlock; then any part of bufs may
	// have been filled.
	TryReadAt(bufs [][]byte, off int64) error
	// TryWriteAt is WriteAt, or fails with ErrWouldBlock; then any part may have
	// been written.
	TryWriteAt(bufs [][]byte, off int64) error
}

// Trimmer is a Volume whose store knows holes.
type Trimmer interface {
	// Discard lets the store forget n bytes from off on, which read as zero or
	// as before; those of a server that speaks NBD, as it likes. It fails with ErrNotSupported when the store can not.
	Discard(off, n int64) error
	// WriteZeroes makes n bytes from off on read as zero. unmap allows to
	// give the space back.
	WriteZeroes(off, n int64, unmap bool) error
}

// Growable is a Volume whose store may grow while it is open.
type Growable interface {
	// Grow takes over the size that the store has now, and returns it. After an
	// error the volume is as before; ErrShrunk says that its end is gone.
	Grow() (int64, error)
}

// checkSize refuses sizes that no volume has.
func checkSize(size int64) error {
	if size <= 0 || size%SectorSize != 0 {
		return fmt.Errorf("volume of %d bytes: size is not a positive multiple of %d", size, SectorSize)
	}
	return nil
}

// checkRange refuses n bytes at off that are not in a volume of size bytes.
func checkRange(size, off int64, n uint64) error {
	if off < 0 || off > size || n > uint64(size-off) {
		return fmt.Errorf("%d bytes at %d of %d: %w", n, off, size, ErrRange)
	}
	return nil
}

func length(bufs [][]byte) uint64 {
	var n uint64
	for _, b := range bufs {
		n += uint64(len(b))
	}
	return n
}

// Zero is Trimmer.WriteZeroes for stores without a fast way: it writes
// zeroes from one buffer that a vector names many times.
func Zero(v Volume, off, n int64) error {
	zero := make([]byte, 64<<10)
	for n > 0 {
		var bufs [][]byte
		var step int64
		for step < min(n, 4<<20) {
			part := zero[:min(int64(len(zero)), n-step)]
			bufs = append(bufs, part)
			step += int64(len(part))
		}
		if err := v.WriteAt(bufs, off); err != nil {
			return err
		}
		off += step
		n -= step
	}
	return nil
}

// Split cuts bufs after n bytes, without changing the list. n is at most its length.
func Split(bufs [][]byte, n int64) (head, rest [][]byte) {
	for i, b := range bufs {
		if n < int64(len(b)) {
			if n == 0 {
				return bufs[:i], bufs[i:]
			}
			head = append(bufs[:i:i], b[:n])
			return head, append([][]byte{b[n:]}, bufs[i+1:]...)
		}
		n -= int64(len(b))
	}
	return bufs, nil
}
