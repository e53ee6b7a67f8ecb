// SPDX-License-Identifier: Apache-2.0

package virtq

import "testing"

func TestField(t *testing.T) {
	b := make([]byte, 8)
	lo, hi := field(b, 4), field(b, 6)
	lo.store(0x1234)
	hi.store(0xabcd)
	if got := lo.load(); got != 0x1234 {
		t.Errorf("low half: got %#x", got)
	}
	if got := hi.load(); got != 0xabcd {
		t.Errorf("high half: got %#x", got)
	}
	if b[4] != 0x34 || b[5] != 0x12 || b[6] != 0xcd || b[7] != 0xab || b[0] != 0 {
		t.Errorf("bytes: got % x", b)
	}
}

// Half words that two sides write at the same time don't hurt each other.
func TestFieldConcurrent(t *testing.T) {
	b := make([]byte, 4)
	const n = 100000
	done := make(chan bool)
	go func() {
		ok := true
		f := field(b, 0)
		for i := range uint16(n % 65536) {
			f.store(i)
			ok = ok && f.load() == i
		}
		done <- ok
	}()
	f := field(b, 2)
	for i := range n {
		f.store(uint16(i))
		if got := f.load(); got != uint16(i) {
			t.Fatalf("high half: got %#x, want %#x", got, i)
		}
	}
	if !<-done {
		t.Error("low half was overwritten")
	}
}

func TestNeedEvent(t *testing.T) {
	for _, tt := range []struct {
		event, now, old uint16
		want            bool
	}{
		{0, 1, 0, true}, {1, 1, 0, false}, {5, 5, 0, false}, {4, 5, 0, true}, {0, 5, 0, true},
		{0xffff, 1, 0xfffe, true}, {0xffff, 0, 0xffff, true}, {2, 1, 0xfffe, false}, {7, 7, 7, false},
	} {
		if got := needEvent(tt.event, tt.now, tt.old); got != tt.want {
			t.Errorf("needEvent(%d, %d, %d) = %v", tt.event, tt.now, tt.old, got)
		}
	}
}
