// SPDX-License-Identifier: Apache-2.0

package vhostuser_test

import (
	"testing"

	"github.com/davit-dpu/davit/firmware/virtio/virtq/virtqtest"
)

// BenchmarkRoundTrip is one request at a time: a kick, the echo device, a call.
func BenchmarkRoundTrip(b *testing.B) {
	s := open(b)
	s.attach()
	q := s.start(0)
	out, in := s.mem.Alloc(64), s.mem.Alloc(64)
	for b.Loop() {
		if _, err := q.Add([]virtqtest.Buf{out}, []virtqtest.Buf{in}); err != nil {
			b.Fatal(err)
		}
		s.must(q.Submit())
		if _, _, err := q.Next(); err != nil {
			b.Fatal(err)
		}
	}
	b.StopTimer()
	s.must(s.end())
}
