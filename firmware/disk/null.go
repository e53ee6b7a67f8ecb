// SPDX-License-Identifier: Apache-2.0

package disk

import "sync/atomic"

// Null is a Volume without a store, to measure what is in front of a volume:
// reads leave the buffers as they are, what is written is dropped. Ranges are
// checked, and it can be closed, as those of any other.
type Null struct {
	size   int64
	closed atomic.Bool
}

// NewNull makes a volume of size bytes that keeps nothing.
func NewNull(size int64) (*Null, error) {
	if err := checkSize(size); err != nil {
		return nil, err
	}
	return &Null{size: size}, nil
}

// Info implements Volume.
func (n *Null) Info() Info { return Info{Size: n.size} }

// ReadAt implements Volume, but for filling bufs.
func (n *Null) ReadAt(bufs [][]byte, off int64) error { return n.check(off, length(bufs)) }

// WriteAt implements Volume, but for storing bufs.
func (n *Null) WriteAt(bufs [][]byte, off int64) error { return n.check(off, length(bufs)) }

// TryReadAt implements Prompter.
func (n *Null) TryReadAt(bufs [][]byte, off int64) error { return n.ReadAt(bufs, off) }

// TryWriteAt implements Prompter.
func (n *Null) TryWriteAt(bufs [][]byte, off int64) error { return n.WriteAt(bufs, off) }

// Flush implements Volume.
func (n *Null) Flush() error { return n.check(0, 0) }

// Discard implements Trimmer.
func (n *Null) Discard(off, count int64) error { return n.check(off, uint64(count)) }

// WriteZeroes implements Trimmer, but for what reads find there.
func (n *Null) WriteZeroes(off, count int64, _ bool) error { return n.check(off, uint64(count)) }

func (n *Null) check(off int64, count uint64) error {
	if err := checkRange(n.size, off, count); err != nil {
		return err
	}
	if n.closed.Load() {
		return ErrClosed
	}
	return nil
}

// Close implements Volume.
func (n *Null) Close() error {
	if n.closed.Swap(true) {
		return ErrClosed
	}
	return nil
}

var (
	_ Volume  = (*Null)(nil)
	_ Trimmer = (*Null)(nil)
)
