// SPDX-License-Identifier: Apache-2.0

package vhostuser

import (
	"sync"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/davit-dpu/davit/firmware/virtio/virtq"
)

// A front end that shrinks and seals a region while it is looked at is refused, or was
// too late: what is mapped has its memory.
func TestInflightShrunkMeanwhile(t *testing.T) {
	t.Parallel()
	d := inflightDesc{size: uint64(virtq.InflightSize(16)), queues: 1, queueSize: 16}
	for range 2000 {
		fd, err := unix.MemfdCreate("inflight", unix.MFD_CLOEXEC|unix.MFD_ALLOW_SEALING)
		if err != nil {
			t.Fatal(err)
		}
		if err := unix.Ftruncate(fd, 4096); err != nil {
			t.Fatal(err)
		}
		var front sync.WaitGroup
		begin := make(chan struct{})
		front.Go(func() {
			<-begin
			_ = unix.Ftruncate(fd, 0)
			_, _ = unix.FcntlInt(uintptr(fd), unix.F_ADD_SEALS, unix.F_SEAL_SHRINK)
		})
		close(begin)
		r, err := mapInflight(&Message{FDs: []int{fd}}, d, 1)
		front.Wait()
		var st unix.Stat_t
		if err := unix.Fstat(fd, &st); err != nil {
			t.Fatal(err)
		}
		if err == nil && st.Size < int64(d.size) {
			t.Fatalf("mapped %d bytes of a file of %d", len(r.mem), st.Size)
		}
		if err := r.close(); err != nil {
			t.Fatal(err)
		}
		_ = unix.Close(fd)
	}
}
