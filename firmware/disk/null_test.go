// SPDX-License-Identifier: Apache-2.0

package disk

import (
	"bytes"
	"errors"
	"testing"
)

// Nothing is stored, and no buffer is touched.
func TestNullKeepsNothing(t *testing.T) {
	t.Parallel()
	v, err := NewNull(testSize)
	if err != nil {
		t.Fatal(err)
	}
	if got := v.Info(); got != (Info{Size: testSize}) {
		t.Errorf("got %+v", got)
	}
	written, read := bytes.Repeat([]byte{1}, 4096), bytes.Repeat([]byte{2}, 4096)
	if err := errors.Join(
		v.WriteAt([][]byte{written}, testSize-4096), v.Flush(), v.WriteZeroes(0, testSize, true), v.Discard(0, testSize),
		v.ReadAt([][]byte{read[:1000], read[1000:]}, testSize-4096),
	); err != nil {
		t.Fatal(err)
	}
	if !bytes.Equal(written, bytes.Repeat([]byte{1}, 4096)) || !bytes.Equal(read, bytes.Repeat([]byte{2}, 4096)) {
		t.Error("a buffer was changed")
	}
}

func TestNullSize(t *testing.T) {
	t.Parallel()
	for _, size := range []int64{-512, 0, 511, 513} {
		if v, err := NewNull(size); err == nil || v != nil {
			t.Errorf("%d bytes: got %v, %v", size, v, err)
		}
	}
}
