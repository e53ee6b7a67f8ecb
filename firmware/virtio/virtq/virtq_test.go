// SPDX-License-Identifier: Apache-2.0

package virtq_test

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"testing"
	"time"

	"github.com/davit-dpu/davit/firmware/virtio/guestmem"
	"github.com/davit-dpu/davit/firmware/virtio/virtq"
	"github.com/davit-dpu/davit/firmware/virtio/virtq/virtqtest"
)

// rig is a driver and the queue that serves it, in one memory.
type rig struct {
	t      *testing.T
	mem    *virtqtest.Memory
	dev    *guestmem.Memory
	ring   ring
	driver *virtqtest.Driver // ring, if it is a split one
	kick   virtqtest.Bell
	call   virtqtest.Bell
	opts   mode
	log    *guestmem.Log // or nil
	queue  *virtq.Queue
}

// ring is a driver of either format.
type ring interface {
	Addresses() virtq.Addresses
	Size() int
	Add(readable, writable []virtqtest.Buf) (uint16, error)
	Publish() bool
	Collect() (id uint16, written uint32, ok bool)
	Arm() bool
	SuppressCalls()
}

// mode is what was negotiated for a ring.
type mode struct {
	virtqtest.Options
	packed bool
	poll   time.Duration
}

func newRig(t *testing.T, size int, opts virtqtest.Options) *rig {
	t.Helper()
	return newRigSize(t, 1<<20, size, mode{Options: opts})
}

func newRigSize(t *testing.T, memory, size int, opts mode) *rig {
	t.Helper()
	mem, err := virtqtest.NewMemory(memory)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = mem.Close() })
	r := attach(t, mem, size, opts)
	t.Cleanup(func() { _ = r.dev.Close() })
	return r
}

// attach lays a ring out in mem and makes the queue that serves it.
func attach(t *testing.T, mem *virtqtest.Memory, size int, opts mode) *rig {
	t.Helper()
	region, err := mem.Region()
	if err != nil {
		t.Fatal(err)
	}
	dev, err := guestmem.New([]guestmem.Region{region})
	if err != nil {
		t.Fatal(err)
	}
	r := &rig{t: t, mem: mem, dev: dev, opts: opts}
	if opts.packed {
		r.ring = virtqtest.NewPacked(mem, size, opts.Options)
		r.open(virtqtest.PackedStart)
		return r
	}
	r.driver = virtqtest.New(mem, size, opts.Options)
	r.ring = r.driver
	r.open(0)
	return r
}

// open makes a new queue on the ring, as after a restart of the device.
func (r *rig) open(next virtq.Position) {
	r.t.Helper()
	r.kick, r.call = virtqtest.NewBell(), virtqtest.NewBell()
	q, err := virtq.New(r.config(next))
	if err != nil {
		r.t.Fatal(err)
	}
	r.queue = q
}

func (r *rig) config(next virtq.Position) virtq.Config {
	return virtq.Config{
		Memory: r.dev, Packed: r.opts.packed, Size: r.ring.Size(), Ring: r.ring.Addresses(), Translate: r.dev.Slice, Next: next,
		IndirectDesc: r.opts.Indirect, EventIdx: r.opts.EventIdx, Kick: r.kick, Call: r.call, Poll: r.opts.poll,
		Log: r.log, LogRing: r.log != nil, LogUsed: r.ring.Addresses().Used,
	}
}

// run serves the queue in the background; the returned function stops it.
func (r *rig) run(workers int, h virtq.Handler) func() error {
	ctx, cancel := context.WithCancel(context.Background())
	result := make(chan error, 1)
	go func() { result <- r.queue.Run(ctx, workers, h) }()
	return func() error {
		cancel()
		return <-result
	}
}

func (r *rig) add(readable, writable []virtqtest.Buf) uint16 {
	r.t.Helper()
	head, err := r.ring.Add(readable, writable)
	if err != nil {
		r.t.Fatal(err)
	}
	return head
}

func (r *rig) publish() {
	if r.ring.Publish() {
		r.kick.Signal()
	}
}

// collect waits for one used chain.
func (r *rig) collect() (uint16, uint32) {
	for {
		if head, n, ok := r.ring.Collect(); ok {
			return head, n
		}
		if !r.ring.Arm() {
			_ = r.call.Wait()
		}
	}
}

// reverse is a device: the answer is the request backwards.
func reverse(c *virtq.Chain) (uint32, error) {
	in := bytes.Join(c.Readable, nil)
	n := 0
	for _, b := range c.Writable {
		for i := range b {
			if n < len(in) {
				b[i] = in[len(in)-1-n]
				n++
			}
		}
	}
	return uint32(n), nil
}

// pieces allocates n bytes in up to parts random buffers.
func (r *rig) pieces(rng *rand.Rand, n, parts int) []virtqtest.Buf {
	var bufs []virtqtest.Buf
	for n > 0 && parts > 1 {
		k := 1 + rng.IntN(n)
		bufs = append(bufs, r.mem.Alloc(k))
		n -= k
		parts--
	}
	if n > 0 {
		bufs = append(bufs, r.mem.Alloc(n))
	}
	return bufs
}

func joined(bufs []virtqtest.Buf) []byte {
	var all []byte
	for _, b := range bufs {
		all = append(all, b.Bytes...)
	}
	return all
}

func backwards(b []byte) []byte {
	out := make([]byte, len(b))
	for i := range b {
		out[len(b)-1-i] = b[i]
	}
	return out
}

func everyMode(t *testing.T, f func(t *testing.T, opts mode)) {
	for i := range 16 {
		m := mode{packed: i&1 != 0, Options: virtqtest.Options{Indirect: i&2 != 0, EventIdx: i&4 != 0}}
		if i&8 != 0 {
			m.poll = 20 * time.Microsecond
		}
		t.Run(fmt.Sprintf("packed=%v,indirect=%v,event=%v,poll=%v", m.packed, m.Indirect, m.EventIdx, m.poll), func(t *testing.T) {
			t.Parallel()
			f(t, m)
		})
	}
}

// Random valid requests get what the model says, in ring order, in all modes.
func TestRandomRequests(t *testing.T) {
	everyMode(t, func(t *testing.T, opts mode) {
		const size = 16
		r := newRigSize(t, 1<<20, size, opts)
		stop := r.run(4, reverse)
		rng := rand.New(rand.NewPCG(1, 2))
		type request struct {
			head uint16
			want []byte
			in   []virtqtest.Buf
		}
		mark := r.mem.Mark() + 64<<10 // indirect tables stay below
		low := r.mem.Mark()
		for round := range 400 {
			r.mem.Free(mark)
			var waiting []request
			for range 1 + rng.IntN(6) {
				n := 1 + rng.IntN(300)
				out, in := r.pieces(rng, n, 3), r.pieces(rng, n, 3)
				for _, b := range out {
					for i := range b.Bytes {
						b.Bytes[i] = byte(rng.Uint32())
					}
				}
				high := r.mem.Mark()
				r.mem.Free(low)
				head, err := r.ring.Add(out, in)
				low = r.mem.Mark()
				r.mem.Free(high)
				if errors.Is(err, virtqtest.ErrFull) {
					break
				}
				waiting = append(waiting, request{head: head, want: backwards(joined(out)), in: in})
			}
			r.publish()
			for i, want := range waiting {
				head, n := r.collect()
				if head != want.head || int(n) != len(want.want) {
					t.Fatalf("round %d, request %d: got head %d with %d bytes, want %d with %d", round, i, head, n, want.head, len(want.want))
				}
				if got := joined(want.in); !bytes.Equal(got, want.want) {
					t.Fatalf("round %d, request %d: got %x, want %x", round, i, got, want.want)
				}
			}
		}
		if err := stop(); err != nil {
			t.Errorf("run: %v", err)
		}
	})
}

// Requests finish in any order, and are published in ring order only.
func TestPublishedInOrder(t *testing.T) {
	t.Parallel()
	r := newRig(t, 8, virtqtest.Options{EventIdx: true})
	for range 4 {
		r.add(nil, []virtqtest.Buf{r.mem.Alloc(8)})
	}
	r.publish()
	var chains [4]virtq.Chain
	for i := range chains {
		if _, err := r.queue.Take(&chains[i]); err != nil {
			t.Fatal(err)
		}
	}
	for i, step := range []struct {
		complete int
		used     uint16
	}{{2, 0}, {1, 0}, {0, 3}, {3, 4}} {
		r.queue.Complete(&chains[step.complete], uint32(step.complete))
		if got := r.driver.UsedIdx(); got != step.used {
			t.Errorf("step %d: used index %d, want %d", i, got, step.used)
		}
	}
	for i := range uint32(4) {
		if _, n, ok := r.driver.Collect(); !ok || n != i {
			t.Errorf("used element %d: got %d, %v", i, n, ok)
		}
	}
}
