// SPDX-License-Identifier: Apache-2.0

package virtq_test

import (
	"bytes"
	"errors"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/davit-dpu/davit/firmware/virtio/guestmem"
	"github.com/davit-dpu/davit/firmware/virtio/virtq"
	"github.com/davit-dpu/davit/firmware/virtio/virtq/virtqtest"
)

// bitmap is a log of dirty pages as a front end sees it.
type bitmap struct {
	fd   int
	bits []byte
}

// logTo has the rig's queue log to a bitmap of n bytes.
func (r *rig) logTo(n int) *bitmap {
	r.t.Helper()
	fd, err := unix.MemfdCreate("log", unix.MFD_CLOEXEC)
	if err == nil {
		err = unix.Ftruncate(fd, int64(n))
	}
	if err != nil {
		r.t.Fatal(err)
	}
	bits, err := unix.Mmap(fd, 0, n, unix.PROT_READ|unix.PROT_WRITE, unix.MAP_SHARED)
	if err != nil {
		r.t.Fatal(err)
	}
	if r.log, err = guestmem.MapLog(fd, 0, uint64(n)); err != nil {
		r.t.Fatal(err)
	}
	r.t.Cleanup(func() { _, _, _ = r.log.Close(), unix.Munmap(bits), unix.Close(fd) })
	return &bitmap{fd, bits}
}

func (b *bitmap) has(page int) bool { return b.bits[page/8]>>(page%8)&1 == 1 }

// Every page that the device writes to is logged, and none that only the driver
// writes to, wherever the parts of the ring are.
func TestDirtyLog(t *testing.T) {
	t.Parallel()
	for name, m := range map[string]mode{
		"split":            {},
		"split, events":    {Options: virtqtest.Options{EventIdx: true, Indirect: true}},
		"split, polling":   {poll: time.Millisecond},
		"packed":           {packed: true},
		"packed, events":   {packed: true, Options: virtqtest.Options{EventIdx: true, Indirect: true}},
		"packed, polling":  {packed: true, poll: time.Millisecond},
		"split, batches":   {Options: virtqtest.Options{Indirect: true}},
		"packed, indirect": {packed: true, Options: virtqtest.Options{Indirect: true}},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			r := newRigSize(t, 1<<18, 256, m)
			log := r.logTo(8)
			at := r.queue.Position()
			data := r.mem.Mark() + 2*guestmem.PageSize
			written := 0
			for i := range uint64(160) {
				r.mem.Free(data + i*1000)
				out, in, far := r.mem.Alloc(3), r.mem.Alloc(100), r.mem.Alloc(2*guestmem.PageSize)
				out.Bytes[0] = byte(i)
				r.add([]virtqtest.Buf{out}, []virtqtest.Buf{in, far})
				r.ring.Publish()
				before := bytes.Clone(r.mem.Bytes())
				clear(log.bits)
				r.open(at)
				entered := make(chan struct{})
				stop := r.run(1, func(c *virtq.Chain) (uint32, error) {
					c.Writable[0][0]++
					c.Writable[1][len(c.Writable[1])-1]++
					c.Writable[1] = nil // the device may do so
					close(entered)
					return 1, nil
				})
				<-entered
				if err := stop(); err != nil {
					t.Fatal(err)
				}
				at = r.queue.Position()
				for page := range len(before) / guestmem.PageSize {
					from, to := page*guestmem.PageSize, (page+1)*guestmem.PageSize
					changed := !bytes.Equal(before[from:to], r.mem.Bytes()[from:to])
					if changed {
						written++
					}
					if changed && !log.has(page) {
						t.Fatalf("request %d: page %d is written and not logged", i, page)
					}
				}
				if log.has(0) || log.has(63) || !m.packed && log.has(1) { // 1: descriptors
					t.Errorf("request %d: pages are logged that the device did not write to", i)
				}
				if _, _, ok := r.ring.Collect(); !ok {
					t.Fatalf("request %d is not completed", i)
				}
			}
			if written < 320 {
				t.Errorf("%d pages were written", written)
			}
		})
	}
}

// What a request that was given up may have written is logged too.
func TestDirtyLogOfAbandoned(t *testing.T) {
	t.Parallel()
	for name, service := range map[string]virtq.Service{
		"tried":  {Try: giveUp},
		"worked": {Handle: giveUp, Workers: 1},
	} {
		r := newRig(t, 8, virtqtest.Options{})
		log := r.logTo(32)
		r.open(0)
		in := r.mem.AllocAligned(16, guestmem.PageSize)
		r.add(nil, []virtqtest.Buf{in})
		r.publish()
		if err := r.queue.Serve(t.Context(), service); !errors.Is(err, errGivenUp) {
			t.Fatalf("%s: got %v", name, err)
		}
		if in.Bytes[0] != 1 || !log.has(int(in.Addr/guestmem.PageSize)) {
			t.Errorf("%s: a write is not logged", name)
		}
	}
}

var errGivenUp = errors.New("given up")

func giveUp(c *virtq.Chain) (uint32, error) {
	c.Writable[0][0] = 1
	return 0, errGivenUp
}

// A bitmap that vanishes, or lacks pages, ends the queue before a driver sees a
// completion that its successor would not.
func TestDirtyLogFails(t *testing.T) {
	t.Parallel()
	for _, tt := range []struct {
		name   string
		size   int
		shrink bool
	}{{"too small", 8, false}, {"truncated", 32, true}} {
		r := newRig(t, 8, virtqtest.Options{})
		r.mem.Free(100 * guestmem.PageSize)
		in := r.mem.Alloc(16)
		log := r.logTo(tt.size)
		if tt.shrink {
			if err := unix.Ftruncate(log.fd, 0); err != nil {
				t.Fatal(err)
			}
		}
		r.open(0)
		r.add(nil, []virtqtest.Buf{in})
		r.publish()
		err := r.queue.Run(t.Context(), 1, func(*virtq.Chain) (uint32, error) { return 0, nil })
		var broken *virtq.ProtocolError
		if !errors.As(err, &broken) || broken.Violation != virtq.ViolationLog {
			t.Errorf("%s: got %v", tt.name, err)
		}
		if got := r.driver.UsedIdx(); got != 0 {
			t.Errorf("%s: used index %d", tt.name, got)
		}
	}
}
