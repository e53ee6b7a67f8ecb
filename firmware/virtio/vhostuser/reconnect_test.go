// SPDX-License-Identifier: Apache-2.0

package vhostuser_test

import (
	"context"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/davit-dpu/davit/firmware/virtio"
	"github.com/davit-dpu/davit/firmware/virtio/vhostuser"
	"github.com/davit-dpu/davit/firmware/virtio/vhostuser/vhostusertest"
	"github.com/davit-dpu/davit/firmware/virtio/virtq"
	"github.com/davit-dpu/davit/firmware/virtio/virtq/virtqtest"
)

// gate is a device that executes a request when it is let through, and counts.
type gate struct {
	entered chan byte // the request's first byte
	leave   chan struct{}
}

func (g *gate) Info() virtio.Info                { return virtio.Info{Queues: 1} }
func (g *gate) ReadConfig([]byte, uint32) error  { return virtio.ErrConfig }
func (g *gate) WriteConfig([]byte, uint32) error { return virtio.ErrConfig }
func (g *gate) Serve(ctx context.Context, q virtio.Queue) error {
	return q.Run(ctx, 1, func(c *virtq.Chain) (uint32, error) {
		g.entered <- c.Readable[0][0]
		<-g.leave
		return 0, nil
	})
}

// A front end that goes while requests are in flight, and returns with an index
// that it read too early, gets each request executed once: Serve ends only after
// the last completion, and the next session goes on behind it.
func TestReturnWithOldIndex(t *testing.T) {
	t.Parallel()
	mem, err := virtqtest.NewMemory(1 << 20)
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = mem.Close() }()
	device := &gate{entered: make(chan byte), leave: make(chan struct{})}
	driver := virtqtest.New(mem, 8, virtqtest.Options{EventIdx: true})
	connect := func(base uint16) (*vhostusertest.FrontEnd, *vhostusertest.Queue, chan error) {
		front, conn, err := vhostusertest.Pair()
		if err != nil {
			t.Fatal(err)
		}
		result := make(chan error, 1)
		go func() { result <- vhostuser.Serve(context.Background(), conn, device, vhostuser.Options{}) }()
		if err := front.Negotiate(ringFeatures); err != nil {
			t.Fatal(err)
		}
		if err := front.SetMemory(mem); err != nil {
			t.Fatal(err)
		}
		q, err := front.StartQueue(0, driver, base)
		if err != nil {
			t.Fatal(err)
		}
		return front, q, result
	}
	for i := range 3 {
		b := mem.Alloc(16)
		b.Bytes[0] = byte(i)
		if _, err := driver.Add([]virtqtest.Buf{b}, nil); err != nil {
			t.Fatal(err)
		}
	}
	driver.Publish()
	front, q, result := connect(0)
	if got := <-device.entered; got != 0 {
		t.Fatalf("request %d came first", got)
	}
	_, _ = front.Close(), q.Close() // it reads used.idx = 0 now
	device.leave <- struct{}{}
	drain(device, result)
	published := driver.UsedIdx()
	if published == 0 {
		t.Fatal("what was taken was not completed")
	}
	front, q, result = connect(0)
	defer func() { _, _ = front.Close(), q.Close() }()
	for want := published; want < 3; want++ {
		if got := <-device.entered; uint16(got) != want {
			t.Errorf("request %d was executed, want %d", got, want)
		}
		device.leave <- struct{}{}
	}
	base, err := front.StopQueue(0)
	if err != nil || base != 3 {
		t.Errorf("base: got %d, %v; want 3", base, err)
	}
	_ = front.Close()
	drain(device, result)
}

// drain lets requests through until the session ends.
func drain(g *gate, result chan error) {
	for {
		select {
		case <-g.entered:
			g.leave <- struct{}{}
		case <-result:
			return
		}
	}
}

// TestCallReplaced: a new call is signalled at once, because the one before may
// have been closed with a notification that the driver still waits for.
func TestCallReplaced(t *testing.T) {
	t.Parallel()
	s := open(t)
	s.attach()
	s.start(0)
	fd, err := unix.Eventfd(0, unix.EFD_NONBLOCK|unix.EFD_CLOEXEC)
	s.must(err)
	defer unix.Close(fd)
	s.must(s.front.Do(vhostuser.SetVringCall, vhostusertest.U64(0), fd))
	n, err := unix.Poll([]unix.PollFd{{Fd: int32(fd), Events: unix.POLLIN}}, 10_000)
	if n != 1 || err != nil {
		t.Errorf("the new call was not signalled: %d, %v", n, err)
	}
	s.must(s.end())
}
