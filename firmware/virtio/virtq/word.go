// SPDX-License-Identifier: Apache-2.0

package virtq

import (
	"sync/atomic"
	"unsafe"
)

// word is the aligned 32-bit word of guest memory that holds a 16-bit field.
type word struct {
	p     *uint32
	shift uint // 0 or 16: where the field is in the word
}

// field returns the 16-bit field at byte off of b, which is even. b[0] is at a
// machine address that is a multiple of four.
func field(b []byte, off int) word {
	aligned := off &^ 3
	return word{p: wordAt(b, aligned), shift: uint(off-aligned) * 8}
}

// wordAt returns the aligned word at byte off of b.
func wordAt(b []byte, off int) *uint32 {
	four := b[off : off+4] // bounds check
	return (*uint32)(unsafe.Pointer(unsafe.SliceData(four)))
}

// load reads the field.
func (w word) load() uint16 {
	return uint16(atomic.LoadUint32(w.p) >> w.shift)
}

// store writes the field and leaves the other half of the word as it is, even
// when somebody else writes that at the same time.
func (w word) store(v uint16) {
	for {
		old := atomic.LoadUint32(w.p)
		changed := old&^(0xffff<<w.shift) | uint32(v)<<w.shift
		if atomic.CompareAndSwapUint32(w.p, old, changed) {
			return
		}
	}
}

// storeWord writes a whole word of which we own both halves.
func (w word) storeWord(v uint32) { atomic.StoreUint32(w.p, v) }

// dwordAt returns the aligned double word at byte off of b.
func dwordAt(b []byte, off int) *uint64 {
	eight := b[off : off+8] // bounds check
	return (*uint64)(unsafe.Pointer(unsafe.SliceData(eight)))
}
