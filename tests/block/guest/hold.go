// SPDX-License-Identifier: Apache-2.0

package main

import (
	"bytes"
	"fmt"
)

// maxHeld is how many pages a worker holds.
const maxHeld = 2048

// held are pages that the disk wrote, and this processor never: whoever moves this
// guest's memory can know of them from the disk only.
type held struct {
	pages []byte
	from  [maxHeld]int // offset in the worker's part, plus one; 0: nothing yet
}

// fetch reads a random page of the disk into a random page of memory.
func (w *worker) fetch() error {
	slot, off := w.rng.IntN(maxHeld), page*w.rng.IntN(len(w.model)/page)
	if _, err := w.f.ReadAt(w.held.pages[slot*page:][:page], w.base+int64(off)); err != nil {
		return fmt.Errorf("read a page at %d: %w", w.base+int64(off), err)
	}
	w.held.from[slot] = off + 1
	return nil
}

// verifyHeld finds in memory what was fetched.
func (w *worker) verifyHeld() error {
	wrong := 0
	for slot, from := range w.held.from {
		if from > 0 && !bytes.Equal(w.held.pages[slot*page:][:page], w.model[from-1:][:page]) {
			wrong++
		}
	}
	if wrong > 0 {
		return fmt.Errorf("%d pages in memory are not what the disk wrote to them", wrong)
	}
	return nil
}
