// SPDX-License-Identifier: Apache-2.0

package disk

import (
	"fmt"
	"slices"
)

// spanOf is the clusters that n > 0 bytes at off touch.
func (o *Overlay) spanOf(off, n int64) span {
	return span{off / o.header.ClusterSize, (off + n - 1) / o.header.ClusterSize}
}

// holdsLocked reports whether the store holds a cluster. mu is held.
func (o *Overlay) holdsLocked(cluster int64) bool {
	return o.bitmap[cluster/8]&(1<<(cluster%8)) != 0
}

// holdsAllLocked reports whether the store holds all clusters of s. mu is held.
func (o *Overlay) holdsAllLocked(s span) bool {
	for c := s.first; c <= s.last; c++ {
		if !o.holdsLocked(c) {
			return false
		}
	}
	return true
}

// run reports whether the store holds the cluster of byte off, and how many
// of n > 0 bytes from there on are in clusters of the same kind.
func (o *Overlay) run(off, n int64) (held bool, length int64) {
	s := o.spanOf(off, n)
	o.mu.RLock()
	defer o.mu.RUnlock()
	held = o.holdsLocked(s.first)
	for c := s.first + 1; c <= s.last; c++ {
		if o.holdsLocked(c) != held {
			return held, c*o.header.ClusterSize - off
		}
	}
	return held, n
}

// claim prepares a write to the clusters of s. It returns false when the store
// holds all of them, so that the write goes there and nothing else is to be done.
// Otherwise the caller is the only one that fills clusters of s, until it calls release.
func (o *Overlay) claim(s span) bool {
	o.mu.Lock()
	defer o.mu.Unlock()
	for !o.holdsAllLocked(s) {
		if !slices.ContainsFunc(o.filling, s.overlaps) {
			o.filling = append(o.filling, s)
			return true
		}
		o.freed.Wait()
	}
	return false
}

// release ends what claim began, whether the clusters were committed or not.
func (o *Overlay) release(s span) {
	o.mu.Lock()
	defer o.mu.Unlock()
	i := slices.Index(o.filling, s)
	o.filling = slices.Delete(o.filling, i, i+1)
	o.freed.Broadcast()
}

// surroundings reads what the base has around n > 0 bytes at off, up to the borders
// of their clusters; nothing where the store holds the cluster. The caller has
// claimed the clusters.
func (o *Overlay) surroundings(off, n int64) (before, after []byte, err error) {
	s := o.spanOf(off, n)
	o.mu.RLock()
	holdsFirst, holdsLast := o.holdsLocked(s.first), o.holdsLocked(s.last)
	o.mu.RUnlock()
	if start := s.first * o.header.ClusterSize; !holdsFirst {
		before = make([]byte, off-start)
		if err := o.readBase([][]byte{before}, start, off-start); err != nil {
			return nil, nil, fmt.Errorf("complete cluster %d: %w", s.first, err)
		}
	}
	if end := min((s.last+1)*o.header.ClusterSize, o.header.Size); !holdsLast {
		after = make([]byte, end-off-n)
		if err := o.readBase([][]byte{after}, off+n, end-off-n); err != nil {
			return nil, nil, fmt.Errorf("complete cluster %d: %w", s.last, err)
		}
	}
	return before, after, nil
}

// commit makes the store hold the clusters of s, whose data was written. Spans
// that come while another commit is under way wait for it, and go together.
func (o *Overlay) commit(s span) error {
	o.mu.Lock()
	if o.batch == nil {
		o.batch = &batch{}
	}
	b := o.batch
	b.spans = append(b.spans, s)
	o.mu.Unlock()

	o.turn.Lock()
	defer o.turn.Unlock()
	o.mu.Lock()
	mine := o.batch == b // else another of the batch had its turn before
	if mine {
		o.batch = nil
	}
	o.mu.Unlock()
	if mine {
		b.err = o.writeBits(b.spans)
	}
	return b.err
}

// writeBits sets the bits of spans in the store, and then here. turn is held.
func (o *Overlay) writeBits(spans []span) error {
	if err := o.store.Flush(); err != nil {
		return fmt.Errorf("before the bitmap is written: %w", err)
	}
	for block, bits := range o.newBlocks(spans) {
		if err := o.store.WriteAt([][]byte{bits}, headerRoom+block*blockSize); err != nil {
			return fmt.Errorf("write bitmap: %w", err)
		}
		o.mu.Lock()
		copy(o.bitmap[block*blockSize:], bits)
		o.mu.Unlock()
	}
	return nil
}

// newBlocks is copies of the bitmap's blocks, by number, that spans change, with
// their bits set. turn is held, so nobody changes the bitmap meanwhile.
func (o *Overlay) newBlocks(spans []span) map[int64][]byte {
	blocks := map[int64][]byte{}
	for _, s := range spans {
		for c := s.first; c <= s.last; c++ {
			block, bit := c/(8*blockSize), c%(8*blockSize)
			if blocks[block] == nil {
				blocks[block] = slices.Clone(o.bitmap[block*blockSize:][:blockSize])
			}
			blocks[block][bit/8] |= 1 << (bit % 8)
		}
	}
	return blocks
}
