// SPDX-License-Identifier: Apache-2.0

package vhostuser_test

import (
	"context"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/davit-dpu/davit/firmware/virtio/vhostuser"
	"github.com/davit-dpu/davit/firmware/virtio/vhostuser/vhostusertest"
	"github.com/davit-dpu/davit/firmware/virtio/virtq/virtqtest"
)

// A front end without any feature has no message to enable its rings: they run
// as soon as they are started.
func TestNoFeatures(t *testing.T) {
	t.Parallel()
	f, conn, err := vhostusertest.Pair()
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	ended := make(chan struct{})
	running := make(chan struct{}, 1)
	go func() {
		defer close(ended)
		_ = vhostuser.Serve(ctx, conn, &echo{}, vhostuser.Options{Changed: func(s vhostuser.Status) {
			if s.Running == 1 {
				running <- struct{}{}
			}
		}})
	}()
	mem, err := virtqtest.NewMemory(1 << 20)
	if err != nil {
		t.Fatal(err)
	}
	defer mem.Close()
	kick, err := unix.Eventfd(0, unix.EFD_NONBLOCK|unix.EFD_CLOEXEC)
	if err != nil {
		t.Fatal(err)
	}
	defer unix.Close(kick)
	d := virtqtest.New(mem, 16, virtqtest.Options{})
	for _, m := range []vhostuser.Message{
		{Request: vhostuser.SetFeatures, Payload: vhostusertest.U64(0)},
		{Request: vhostuser.SetMemTable, Payload: vhostusertest.MemTable(vhostuser.MemRegion{Size: 1 << 20}), FDs: []int{mem.FD()}},
		{Request: vhostuser.SetVringNum, Payload: vhostusertest.State(0, 16)},
		{Request: vhostuser.SetVringBase, Payload: vhostusertest.State(0, 0)},
		{Request: vhostuser.SetVringAddr, Payload: vhostusertest.Addr(0, d)},
		{Request: vhostuser.SetVringKick, Payload: vhostusertest.U64(0), FDs: []int{kick}},
	} {
		m.Flags = 1
		if err := f.Send(m); err != nil {
			t.Fatal(err)
		}
	}
	select {
	case <-running:
	case <-time.After(5 * time.Second):
		t.Error("the ring does not run")
	}
	cancel()
	<-ended
}
