// SPDX-License-Identifier: Apache-2.0

package disk

import (
	"bytes"
	"errors"
	"fmt"
	"slices"
	"sync"
)

// Overlay is a Volume that shows a read-only base with changes, which a store
// of its own holds by clusters:
//
//	0        4096         dataOffset            (bytes in the store)
//	┌────────┬────────────┬───────────┬───────────┬──
//	│ header │ bitmap     │ cluster 0 │ cluster 1 │ …
//	└────────┴────────────┴───────────┴───────────┴──
//
// Each cluster has its fixed place, and a bit that says whether the store holds
// it: bit i%8 of byte i/8. Which of them take room is the file system's matter.
// Bits are set and never cleared, and the header is never written again.
//
// The first write to a cluster completes it with what the base has around the
// data, then
//
//	data ──► Flush of the store ──► bit ──► the write ends
//
// so that no set bit is ever durable before its cluster is. Since a bit only ever
// says more, any mixture of a block's old and new bytes is good too, and a
// power cut at any point shows each cluster as before or as after. Since the bit is
// given to the store before the write ends, a process that is killed loses nothing, and a
// store whose writes are durable when they end (O_DSYNC) gives an overlay whose
// writes are. The flush is paid once for each cluster; writers that come together share it.
type Overlay struct {
	header OverlayHeader
	data   int64 // offset of cluster 0 in the store
	base   Volume
	store  Volume

	life   sync.RWMutex // read: I/O, write: Close
	closed bool         // guarded by life

	mu      sync.RWMutex
	freed   *sync.Cond // on mu: a span left filling
	bitmap  []byte     // what the store's bitmap says; guarded by mu, and changed with turn held only
	filling []span     // clusters whose first write is under way; guarded by mu
	batch   *batch     // who waits for the next commit; guarded by mu

	turn sync.Mutex // held while a commit writes the bitmap; taken before mu
}

// span is the clusters from first to last, both included.
type span struct{ first, last int64 }

func (s span) overlaps(o span) bool { return s.first <= o.last && o.first <= s.last }

// batch is spans that are committed together.
type batch struct {
	spans []span
	err   error // guarded by turn
}

// FormatOverlay makes an overlay in a store that was never used: of
// h.StoreSize() bytes, all zero where header and bitmap come to lie. It is durable when it returns.
func FormatOverlay(store Volume, h OverlayHeader) error {
	if err := h.check(); err != nil {
		return fmt.Errorf("format overlay: %w", err)
	}
	if got := store.Info().Size; got != h.StoreSize() {
		return fmt.Errorf("format overlay: store has %d bytes, want %d", got, h.StoreSize())
	}
	head := make([]byte, headerRoom+h.bitmapSize())
	if err := store.ReadAt([][]byte{head}, 0); err != nil {
		return fmt.Errorf("format overlay: %w", err)
	}
	if len(bytes.Trim(head, "\x00")) != 0 {
		return errors.New("format overlay: store is not empty")
	}
	b := h.encode()
	if err := store.WriteAt([][]byte{b[:]}, 0); err != nil {
		return fmt.Errorf("format overlay: %w", err)
	}
	if err := store.Flush(); err != nil {
		return fmt.Errorf("format overlay: %w", err)
	}
	return nil
}

// OpenOverlay makes a volume of a base and an overlay's store, and takes both over, also on error.
// The base must be read-only, and the one that the overlay was made over: its content
// is id, for which the caller vouches; otherwise ErrOtherBase. The volume is read-only if the store is.
func OpenOverlay(base, store Volume, id BaseID) (*Overlay, error) {
	o, err := openOverlay(base, store, id)
	if err != nil {
		return nil, errors.Join(fmt.Errorf("open overlay: %w", err), store.Close(), base.Close())
	}
	return o, nil
}

func openOverlay(base, store Volume, id BaseID) (*Overlay, error) {
	if !base.Info().ReadOnly {
		return nil, errors.New("base is writable: it could change below the overlay")
	}
	if n := store.Info().Size; n < headerRoom {
		return nil, fmt.Errorf("store of %d bytes has no room for a header", n)
	}
	var b [headerLen]byte // see ReadOverlayHeader, which reads a file
	if err := store.ReadAt([][]byte{b[:]}, 0); err != nil {
		return nil, err
	}
	h, err := parseOverlayHeader(b)
	if err != nil {
		return nil, err
	}
	if h.Base != id {
		return nil, fmt.Errorf("%w: %x, this is %x", ErrOtherBase, h.Base, id)
	}
	if got := base.Info().Size; got != h.BaseSize {
		return nil, fmt.Errorf("%w: one of %d bytes, this has %d", ErrOtherBase, h.BaseSize, got)
	}
	if got := store.Info().Size; got != h.StoreSize() {
		return nil, fmt.Errorf("store has %d bytes, its header wants %d", got, h.StoreSize())
	}
	o := &Overlay{header: h, data: h.dataOffset(), base: base, store: store, bitmap: make([]byte, h.bitmapSize())}
	o.freed = sync.NewCond(&o.mu)
	if err := store.ReadAt([][]byte{o.bitmap}, headerRoom); err != nil {
		return nil, fmt.Errorf("bitmap: %w", err)
	}
	return o, nil
}

// Info implements Volume.
func (o *Overlay) Info() Info {
	return Info{Size: o.header.Size, ReadOnly: o.store.Info().ReadOnly}
}

// ReadAt implements Volume.
func (o *Overlay) ReadAt(bufs [][]byte, off int64) error {
	n := length(bufs)
	if err := o.begin(off, n); err != nil {
		return err
	}
	defer o.life.RUnlock()
	for left := int64(n); left > 0; {
		held, run := o.run(off, left)
		head, rest := Split(bufs, run)
		var err error
		if held {
			err = o.store.ReadAt(head, o.data+off)
		} else {
			err = o.readBase(head, off, run)
		}
		if err != nil {
			return err
		}
		bufs, off, left = rest, off+run, left-run
	}
	return nil
}

// readBase fills bufs, of n bytes, as if the base were as large as the volume.
func (o *Overlay) readBase(bufs [][]byte, off, n int64) error {
	there := max(0, min(n, o.header.BaseSize-off))
	head, rest := Split(bufs, there)
	for _, b := range rest {
		clear(b)
	}
	if there == 0 {
		return nil
	}
	return o.base.ReadAt(head, off)
}

// WriteAt implements Volume.
func (o *Overlay) WriteAt(bufs [][]byte, off int64) error {
	n := length(bufs)
	if err := o.beginChange(off, n); err != nil {
		return err
	}
	defer o.life.RUnlock()
	if n == 0 {
		return nil
	}
	s := o.spanOf(off, int64(n))
	if !o.claim(s) {
		return o.store.WriteAt(bufs, o.data+off)
	}
	defer o.release(s)
	before, after, err := o.surroundings(off, int64(n))
	if err != nil {
		return err
	}
	all := slices.Concat([][]byte{before}, bufs, [][]byte{after})
	if err := o.store.WriteAt(all, o.data+off-int64(len(before))); err != nil {
		return err
	}
	return o.commit(s)
}

// WriteZeroes implements Trimmer. The store then holds the clusters, as holes if
// it can and unmap allows it.
func (o *Overlay) WriteZeroes(off, n int64, unmap bool) error {
	if err := o.beginChange(off, uint64(n)); err != nil {
		return err
	}
	defer o.life.RUnlock()
	if n == 0 {
		return nil
	}
	s := o.spanOf(off, n)
	if !o.claim(s) {
		return o.zero(off, n, unmap)
	}
	defer o.release(s)
	before, after, err := o.surroundings(off, n)
	if err != nil {
		return err
	}
	if err := o.store.WriteAt([][]byte{before}, o.data+off-int64(len(before))); err != nil {
		return err
	}
	if err := o.store.WriteAt([][]byte{after}, o.data+off+n); err != nil {
		return err
	}
	if err := o.zero(off, n, unmap); err != nil {
		return err
	}
	return o.commit(s)
}

// zero clears bytes in the store.
func (o *Overlay) zero(off, n int64, unmap bool) error {
	if t, ok := o.store.(Trimmer); ok {
		return t.WriteZeroes(o.data+off, n, unmap)
	}
	return Zero(o.store, o.data+off, n)
}

// Discard implements Trimmer. It gives back what the store holds of the range,
// which reads as zero then; what only the base has stays as it is. It never clears
// a bit: to show the base again is neither zero nor as before.
func (o *Overlay) Discard(off, n int64) error {
	if err := o.beginChange(off, uint64(n)); err != nil {
		return err
	}
	defer o.life.RUnlock()
	t, ok := o.store.(Trimmer)
	if !ok {
		return fmt.Errorf("discard: %w", ErrNotSupported)
	}
	for n > 0 {
		held, run := o.run(off, n)
		if held {
			if err := t.Discard(o.data+off, run); err != nil {
				return err
			}
		}
		off, n = off+run, n-run
	}
	return nil
}

// Flush implements Volume. The bits of all clusters whose writes have ended are in the store.
func (o *Overlay) Flush() error {
	if err := o.begin(0, 0); err != nil {
		return err
	}
	defer o.life.RUnlock()
	return o.store.Flush()
}

// Close implements Volume. It closes store and base.
func (o *Overlay) Close() error {
	o.life.Lock()
	defer o.life.Unlock()
	if o.closed {
		return ErrClosed
	}
	o.closed = true
	return errors.Join(o.store.Close(), o.base.Close())
}

// begin checks an access of n bytes at off. Without an error it leaves life
// read-locked, so that the volume stays open.
func (o *Overlay) begin(off int64, n uint64) error {
	if err := checkRange(o.header.Size, off, n); err != nil {
		return err
	}
	o.life.RLock()
	if o.closed {
		o.life.RUnlock()
		return ErrClosed
	}
	return nil
}

// beginChange is begin for what changes the volume.
func (o *Overlay) beginChange(off int64, n uint64) error {
	if o.Info().ReadOnly {
		return ErrReadOnly
	}
	return o.begin(off, n)
}

var (
	_ Volume  = (*Overlay)(nil)
	_ Trimmer = (*Overlay)(nil)
)
