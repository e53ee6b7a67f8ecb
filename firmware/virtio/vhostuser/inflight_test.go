// SPDX-License-Identifier: Apache-2.0

package vhostuser_test

import (
	"context"
	"os"
	"strings"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/davit-dpu/davit/firmware/virtio"
	"github.com/davit-dpu/davit/firmware/virtio/vhostuser"
	"github.com/davit-dpu/davit/firmware/virtio/vhostuser/vhostusertest"
	"github.com/davit-dpu/davit/firmware/virtio/virtq"
	"github.com/davit-dpu/davit/firmware/virtio/virtq/virtqtest"
)

// forgetful is a device that completes its second request and then is gone, as if
// it was killed: the first and third are never completed.
type forgetful struct{ *gate }

func (f forgetful) Serve(_ context.Context, q virtio.Queue) error {
	var c [3]virtq.Chain
	for i := range c {
		if _, err := q.Take(&c[i]); err != nil {
			return err
		}
	}
	q.Complete(&c[1], 1)
	f.leave <- struct{}{}
	return nil
}

// TestInflight: what a back end took and did not complete is executed by its
// successor, and nothing else, although it completed out of order.
func TestInflight(t *testing.T) {
	t.Parallel()
	t.Run("ring of the region's size", func(t *testing.T) { testInflight(t, 8) })
	t.Run("smaller ring", func(t *testing.T) { testInflight(t, 16) }) // the driver's choice
}

func testInflight(t *testing.T, size int) {
	t.Parallel()
	mem, err := virtqtest.NewMemory(1 << 20)
	if err != nil {
		t.Fatal(err)
	}
	defer mem.Close()
	driver := virtqtest.New(mem, 8, virtqtest.Options{EventIdx: true})
	for i := range 3 {
		b := mem.Alloc(16)
		b.Bytes[0] = byte(i)
		if _, err := driver.Add([]virtqtest.Buf{b}, nil); err != nil {
			t.Fatal(err)
		}
	}
	driver.Publish()
	var region *os.File
	var shape []byte
	connect := func(device virtio.Device) (end func()) {
		front, conn, err := vhostusertest.Pair()
		if err != nil {
			t.Fatal(err)
		}
		front.Extra = vhostuser.ProtocolInflight
		result := make(chan error, 1)
		go func() { result <- vhostuser.Serve(context.Background(), conn, device, vhostuser.Options{}) }()
		steps := []func() error{
			func() error { return front.Negotiate(ringFeatures) },
			func() error { return front.SetMemory(mem) },
			func() (err error) {
				if region == nil {
					region, shape, err = front.NewInflight(1, size)
				}
				return err
			},
			func() error { return front.SetInflight(region, shape) },
		}
		for _, step := range steps {
			if err := step(); err != nil {
				t.Fatal(err)
			}
		}
		q, err := front.StartQueue(0, driver, 0)
		if err != nil {
			t.Fatal(err)
		}
		return func() {
			_, _ = front.Close(), q.Close()
			if err := <-result; err != nil {
				t.Error(err)
			}
		}
	}
	first := forgetful{&gate{leave: make(chan struct{})}}
	end := connect(first)
	defer func() { _ = region.Close() }()
	<-first.leave
	end()
	if id, n, ok := driver.Collect(); !ok || n != 1 {
		t.Fatalf("got %d, %d, %v; want the second request", id, n, ok)
	}
	second := &gate{entered: make(chan byte), leave: make(chan struct{})}
	end = connect(second)
	for _, want := range []byte{0, 2} {
		if got := <-second.entered; got != want {
			t.Errorf("request %d is executed, want %d", got, want)
		}
		second.leave <- struct{}{}
	}
	end()
	if used := driver.UsedIdx(); used != 3 {
		t.Errorf("used index %d, want 3", used)
	}
}

// TestBadInflight: a region that this back end did not make is refused.
func TestBadInflight(t *testing.T) {
	t.Parallel()
	size := uint64(virtq.InflightSize(16))
	file := func(t *testing.T, n int64, flags, seals int) int {
		fd, err := unix.MemfdCreate("inflight", unix.MFD_CLOEXEC|unix.MFD_ALLOW_SEALING|flags)
		if flags != 0 && err != nil {
			t.Skip(err)
		}
		if err != nil {
			t.Fatal(err)
		}
		if err := unix.Ftruncate(fd, n); err != nil {
			t.Fatal(err)
		}
		if _, err := unix.FcntlInt(uintptr(fd), unix.F_ADD_SEALS, seals); err != nil {
			t.Fatal(err)
		}
		return fd
	}
	for _, tt := range []struct {
		name    string
		payload []byte
		length  int64
		flags   int
		seals   int
		want    string
	}{
		{"not sealed", vhostusertest.Inflight(size, 1, 16), 4096, 0, 0, "not sealed"},
		{"huge pages", vhostusertest.Inflight(size, 1, 16), 1 << 21, unix.MFD_HUGETLB, unix.F_SEAL_SHRINK, "file system of type"},
		{"file too short", vhostusertest.Inflight(8192, 1, 16), 4096, 0, unix.F_SEAL_SHRINK, "region of 8192"},
		{"region too short", vhostusertest.Inflight(size-1, 1, 16), 4096, 0, unix.F_SEAL_SHRINK, "want"},
		{"too many queues", vhostusertest.Inflight(size, 3, 16), 4096, 0, unix.F_SEAL_SHRINK, "3 queues of 2"},
		{"queue size", vhostusertest.Inflight(size, 1, 17), 4096, 0, unix.F_SEAL_SHRINK, "power of two"},
		{"payload", vhostusertest.Inflight(size, 1, 16)[:19], 4096, 0, unix.F_SEAL_SHRINK, "19 bytes"},
		{"far too large", vhostusertest.Inflight(1<<40, 1, 16), 4096, 0, unix.F_SEAL_SHRINK, "region of"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			t.Parallel()
			s := open(t)
			s.front.Extra = vhostuser.ProtocolInflight
			s.attach()
			fd := file(t, tt.length, tt.flags, tt.seals)
			defer unix.Close(fd)
			_ = s.front.Do(vhostuser.SetInflightFD, tt.payload, fd)
			if err := <-s.result; err == nil || !strings.Contains(err.Error(), tt.want) {
				t.Errorf("got %v, want %q", err, tt.want)
			}
		})
	}
}
