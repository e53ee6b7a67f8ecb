// SPDX-License-Identifier: Apache-2.0

package virtq_test

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"testing"

	"github.com/davit-dpu/davit/firmware/virtio/guestmem"
	"github.com/davit-dpu/davit/firmware/virtio/virtq"
	"github.com/davit-dpu/davit/firmware/virtio/virtq/virtqtest"
)

// rig is a driver and the queue that serves it, in one memory.
type rig struct {
	t      *testing.T
	mem    *virtqtest.Memory
	dev    *guestmem.Memory
	driver *virtqtest.Driver
	kick   virtqtest.Bell
	call   virtqtest.Bell
	opts   virtqtest.Options
	queue  *virtq.Queue
}

func newRig(t *testing.T, size int, opts virtqtest.Options) *rig {
	t.Helper()
	return newRigSize(t, 1<<20, size, opts)
}

func newRigSize(t *testing.T, memory, size int, opts virtqtest.Options) *rig {
	t.Helper()
	mem, err := virtqtest.NewMemory(memory)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = mem.Close() })
	region, err := mem.Region()
	if err != nil {
		t.Fatal(err)
	}
	dev, err := guestmem.New([]guestmem.Region{region})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = dev.Close() })
	r := &rig{t: t, mem: mem, dev: dev, driver: virtqtest.New(mem, size, opts), opts: opts}
	r.open(0)
	return r
}

// open makes a new queue on the ring, as after a restart of the device.
func (r *rig) open(next uint16) {
	r.t.Helper()
	r.kick, r.call = virtqtest.NewBell(), virtqtest.NewBell()
	q, err := virtq.New(r.config(next))
	if err != nil {
		r.t.Fatal(err)
	}
	r.queue = q
}

func (r *rig) config(next uint16) virtq.Config {
	return virtq.Config{
		Memory: r.dev, Size: r.driver.Size(), Ring: r.driver.Addresses(), Translate: r.dev.Slice, Next: next,
		IndirectDesc: r.opts.Indirect, EventIdx: r.opts.EventIdx, Kick: r.kick, Call: r.call,
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
	head, err := r.driver.Add(readable, writable)
	if err != nil {
		r.t.Fatal(err)
	}
	return head
}

func (r *rig) publish() {
	if r.driver.Publish() {
		r.kick.Signal()
	}
}

// collect waits for one used chain.
func (r *rig) collect() (uint16, uint32) {
	for {
		if head, n, ok := r.driver.Collect(); ok {
			return head, n
		}
		if !r.driver.Arm() {
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

func everyMode(t *testing.T, f func(t *testing.T, opts virtqtest.Options)) {
	for _, indirect := range []bool{false, true} {
		for _, event := range []bool{false, true} {
			t.Run(fmt.Sprintf("indirect=%v,event=%v", indirect, event), func(t *testing.T) {
				t.Parallel()
				f(t, virtqtest.Options{Indirect: indirect, EventIdx: event})
			})
		}
	}
}

// Random valid requests get what the model says, in ring order, in all modes.
func TestRandomRequests(t *testing.T) {
	everyMode(t, func(t *testing.T, opts virtqtest.Options) {
		const size = 16
		r := newRig(t, size, opts)
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
				head, err := r.driver.Add(out, in)
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
		if err := r.queue.Take(&chains[i]); err != nil {
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
