// SPDX-License-Identifier: Apache-2.0

package virtq_test

import (
	"encoding/binary"
	"errors"
	"testing"

	"github.com/davit-dpu/davit/firmware/virtio/virtq"
	"github.com/davit-dpu/davit/firmware/virtio/virtq/virtqtest"
)

// A predecessor that ended while it polled had asked for no kicks: a queue that
// sleeps gets them again.
func TestKicksAfterPolling(t *testing.T) {
	t.Parallel()
	for i := range 4 {
		m := mode{packed: i&1 != 0, Options: virtqtest.Options{EventIdx: i&2 != 0}}
		r := newRigSize(t, 1<<20, 8, m)
		used := r.mem.Bytes()[r.ring.Addresses().Used:]
		next := virtq.Position(0)
		if m.packed {
			next = virtqtest.PackedStart
			binary.LittleEndian.PutUint16(used[2:], 1) // RING_EVENT_FLAGS_DISABLE
		} else {
			binary.LittleEndian.PutUint16(used, 1) // VIRTQ_USED_F_NO_NOTIFY
		}
		cfg := r.config(next)
		cfg.Kick = idle{}
		q, err := virtq.New(cfg)
		if err != nil {
			t.Fatal(err)
		}
		if _, err := q.Take(new(virtq.Chain)); !errors.Is(err, errIdle) {
			t.Fatalf("got %v, want a queue that waits for a kick", err)
		}
		r.add(nil, []virtqtest.Buf{r.mem.Alloc(8)})
		if !r.ring.Publish() {
			t.Errorf("packed %v, event index %v: the device sleeps, and wants no kick", m.packed, m.EventIdx)
		}
	}
}
