// SPDX-License-Identifier: Apache-2.0

package virtq

import (
	"errors"
	"fmt"
	"sync"
	"sync/atomic"
	"time"

	"github.com/davit-dpu/davit/firmware/virtio/guestmem"
)

// Config is a ring as the driver and its front end described it.
type Config struct {
	// Memory is the guest's memory. It must not be closed before Run has
	// returned, or the last Complete has.
	Memory *guestmem.Memory
	// Packed says that the ring is a packed virtqueue (VIRTIO_F_RING_PACKED).
	Packed bool
	// Size is the number of descriptors, a power of two up to MaxSize.
	Size int
	// Ring are the ring's addresses, understood by Translate.
	Ring Addresses
	// Translate finds ring memory: Memory.SliceUser for vhost-user's addresses,
	// Memory.Slice for guest-physical ones.
	Translate func(addr, n uint64) ([]byte, error)
	// Next is where to go on according to the front end.
	Next Position
	// Inflight is the queue's part of an in-flight region, InflightSize bytes, or
	// nil. It must stay mapped as long as Memory. With one that a queue initialised, a
	// split queue completes in any order, and New finds what was in flight in it,
	// whatever Next says. Any other, one of zeroes for instance, is initialised, and
	// the queue goes on as without.
	Inflight []byte
	// IndirectDesc and EventIdx say which features were negotiated.
	IndirectDesc, EventIdx bool
	// Kick and Call are the notifications. Call may be nil: nobody is told.
	Kick Kick
	Call Call
	// Poll is the longest time that the ring is looked at again and again before
	// a kick is waited for; how long within that follows from what comes. 0: not.
	Poll time.Duration
	// Log, if not nil, is told of the pages that the device writes to: of requests'
	// buffers, and if LogRing says so of the ring, whose Used part is at the
	// guest-physical address LogUsed. It must not be closed before Memory may be.
	Log     *guestmem.Log
	LogRing bool
	LogUsed uint64

	fail func(error) // of the queue
}

// Position is where a device is in a ring, in the encoding of vhost-user's
// SET_VRING_BASE. Split: the available index in bits 0 to 15. Packed: the next
// available descriptor in bits 0 to 14 and its wrap counter in bit 15, the next
// used one and its wrap counter in bits 16 to 31.
type Position uint32

// Addresses are the places of a ring's three parts. Of a split ring: descriptor
// table, available ring, used ring. Of a packed ring: descriptor ring, driver event
// suppression, device event suppression.
type Addresses struct {
	Desc, Avail, Used uint64
}

// layout is one of the two formats of a virtqueue. All methods are called under
// the memory's Guard.
type layout interface {
	availableSide
	kickSide
	usedSide
}

// availableSide is what the driver fills and the device takes from, under takeMu.
type availableSide interface {
	// available reports whether there is an entry to pop.
	available() (bool, error)
	// warm reads the beginnings of up to n entries, so that the processor fetches
	// them side by side and not one after the other.
	warm(n int)
	// pop takes the next entry, which is available.
	pop(w *walker, c *Chain) error
	// owes reports whether entries that position leaves behind are still to be popped.
	owes() bool
}

// kickSide is what the device asks of the driver, under takeMu.
type kickSide interface {
	// arm asks for a kick with the next entry, and reports whether one became
	// available meanwhile: it would not be kicked for.
	arm() (bool, error)
	// quiet asks for no kicks: the device looks by itself.
	quiet()
}

// usedSide is what the device gives back on, under usedMu.
type usedSide interface {
	// put stages a used entry, the next one in the ring.
	put(d completion)
	// publish shows the driver what was put, and reports whether it wants a call.
	publish() bool
	// position is where to go on, for Config.Next.
	position() Position
}

// Queue is a running virtqueue, seen from the device.
type Queue struct {
	size uint16
	kick Kick
	mem  *guestmem.Memory
	ring layout
	// anyOrder says that completions are published as they come: what is in flight
	// is known from the in-flight region.
	anyOrder bool

	stopped  atomic.Bool
	stopping chan struct{}         // closed when stopped becomes true
	failure  atomic.Pointer[error] // the first one

	takeMu sync.Mutex
	next   uint16 // guarded by takeMu: position in the order of taking
	walker walker // guarded by takeMu
	poller poller // guarded by takeMu

	usedMu sync.Mutex
	call   Call         // guarded by usedMu
	used   uint16       // guarded by usedMu: how far everything is completed, in the order of taking
	staged int          // guarded by usedMu: put and not yet published
	done   []completion // guarded by usedMu: by position modulo size
}

// completion is a finished request that waits for those before it.
type completion struct {
	full    bool
	id      uint16 // head of the chain, or the packed ring's buffer id
	descs   uint16 // packed: ring entries of the chain
	written uint32
}

// New checks the ring and makes a queue that goes on where guest memory says the
// last device left off. It does not wait or notify yet.
func New(cfg Config) (*Queue, error) {
	var q *Queue
	err := cfg.Memory.Guard(func() (err error) {
		q, err = open(cfg)
		return err
	})
	if err != nil {
		return nil, asViolation(err)
	}
	return q, nil
}

func open(cfg Config) (*Queue, error) {
	if cfg.Size < 1 || cfg.Size > MaxSize || cfg.Size&(cfg.Size-1) != 0 {
		return nil, violation(ViolationLayout, "size %d is not a power of two up to %d", cfg.Size, MaxSize)
	}
	q := &Queue{
		size: uint16(cfg.Size), kick: cfg.Kick, call: cfg.Call, mem: cfg.Memory,
		walker: walker{mem: cfg.Memory, indirect: cfg.IndirectDesc, log: cfg.Log},
		poller: poller{longest: cfg.Poll},
		done:   make([]completion, cfg.Size), stopping: make(chan struct{}),
	}
	if cfg.Inflight != nil && len(cfg.Inflight) < InflightSize(cfg.Size) {
		return nil, violation(ViolationLayout, "in-flight region of %d bytes for a ring of %d", len(cfg.Inflight), cfg.Size)
	}
	cfg.fail = q.Fail
	if cfg.Packed {
		ring, err := newPacked(cfg)
		if err != nil {
			return nil, err
		}
		q.ring = ring
		return q, nil
	}
	ring, err := newSplit(cfg)
	if err != nil {
		return nil, err
	}
	q.ring, q.anyOrder = ring, ring.track != nil
	return q, nil
}

// part finds n bytes of a ring.
func (cfg *Config) part(addr, n uint64) ([]byte, error) {
	b, err := cfg.Translate(addr, n)
	if err != nil {
		return nil, &ProtocolError{Violation: ViolationLayout, Detail: "ring is not in guest memory", Err: err}
	}
	return b, nil
}

// asViolation makes a fault in guest memory a protocol error.
func asViolation(err error) error {
	var fault *guestmem.FaultError
	if errors.As(err, &fault) {
		return &ProtocolError{Violation: ViolationMemory, Detail: "access failed", Err: err}
	}
	return err
}

// Size is the number of descriptors of the ring.
func (q *Queue) Size() int { return int(q.size) }

// Position is where to go on; not to be asked for while Run takes. After Run has returned, the driver still waits for
// the requests from there on, and for those that are in the in-flight region.
func (q *Queue) Position() Position {
	q.usedMu.Lock()
	defer q.usedMu.Unlock()
	return q.ring.position()
}

// MayLeave says whether a request may be given up with ErrStopped: the driver's next
// device then finds it by the position alone. It does not where requests are
// known from the in-flight region, which stays behind when a front end migrates.
func (q *Queue) MayLeave() bool { return !q.anyOrder }

// SetCall changes the way to notify the driver and notifies at once: a
// completion that went the old way may not have been heard. Spurious notifications
// are allowed (Virtio 1.2, 2.7.7.2).
func (q *Queue) SetCall(c Call) {
	q.usedMu.Lock()
	q.call = c
	q.usedMu.Unlock()
	if c != nil {
		c.Signal()
	}
}

// Stop makes Take fail with ErrStopped, also one that waits; but what a predecessor
// had taken, Take still gives, for Position is behind it. Requests that were taken can
// still be completed.
func (q *Queue) Stop() {
	if q.stopped.CompareAndSwap(false, true) {
		close(q.stopping)
	}
	q.kick.Interrupt()
}

// Stopping is closed by Stop and by Fail: a request should wait for nothing any longer.
func (q *Queue) Stopping() <-chan struct{} { return q.stopping }

// Fail ends the queue because of a violation: nothing more is taken or
// published. The first reason is kept.
func (q *Queue) Fail(err error) {
	q.failure.CompareAndSwap(nil, &err)
	q.Stop()
}

// Err returns the reason given to Fail, or nil.
func (q *Queue) Err() error {
	if err := q.failure.Load(); err != nil {
		return *err
	}
	return nil
}

// Take waits for at least one request, and fills chains with as many as there
// are and have room. It fails with ErrStopped after Stop, and with a
// *ProtocolError, which also ends the queue, when the driver broke the protocol;
// requests that it took before are in the ring then, not executed. Callers run
// under the memory's Guard.
func (q *Queue) Take(chains ...*Chain) (int, error) { return q.take(true, chains) }

// take is Take that looks for requests without sleeping only if spin says so.
func (q *Queue) take(spin bool, chains []*Chain) (int, error) {
	q.takeMu.Lock()
	defer q.takeMu.Unlock()
	if err := q.await(spin); err != nil {
		return 0, q.end(err)
	}
	n, err := q.popAll(chains)
	if err != nil {
		return 0, q.end(err)
	}
	return n, nil
}

// end records why the queue ends.
func (q *Queue) end(err error) error {
	if !errors.Is(err, ErrStopped) {
		q.Fail(err)
	}
	return err
}

// await returns when an entry is available. The caller holds takeMu.
func (q *Queue) await(spin bool) error {
	for {
		if q.stopped.Load() && (q.Err() != nil || !q.ring.owes()) {
			return ErrStopped
		}
		ready, err := q.ring.available()
		if ready || err != nil {
			return err
		}
		if spin {
			if ready, err = q.poller.spin(q.ring, &q.stopped); ready || err != nil {
				return err
			}
		}
		if ready, err = q.ring.arm(); ready || err != nil {
			q.ring.quiet()
			return err
		}
		begin := time.Now()
		if err := q.kick.Wait(); err != nil {
			return fmt.Errorf("wait for kick: %w", err)
		}
		if spin {
			q.poller.slept(time.Since(begin))
		}
		if q.poller.window > 0 {
			q.ring.quiet()
		}
	}
}

// popAll takes what is there, at least one. The caller holds takeMu.
func (q *Queue) popAll(chains []*Chain) (int, error) {
	if len(chains) > 1 {
		q.ring.warm(len(chains))
	}
	n := 0
	for n < len(chains) {
		if n > 0 {
			if ready, err := q.ring.available(); err != nil {
				return 0, err
			} else if !ready {
				break
			}
		}
		c := chains[n]
		if err := q.ring.pop(&q.walker, c); err != nil {
			return 0, err
		}
		c.seq = q.next
		q.next++
		n++
	}
	if n > 1 {
		q.walker.warm(chains[:n])
	}
	return n, nil
}

// Complete hands a taken request back: the device wrote the first written bytes
// of its writable buffers. The driver sees it, without an in-flight region when all
// requests before it are complete too, and is notified if it asked for that. After
// Fail nothing is published.
func (q *Queue) Complete(c *Chain, written uint32) {
	if call := q.complete(c, written, 1); call != nil {
		call.Signal()
	}
}

// complete is Complete that publishes once batch entries are staged, and gives the
// notification that is due.
func (q *Queue) complete(c *Chain, written uint32, batch int) Call {
	q.logWritten(c)
	q.usedMu.Lock()
	defer q.usedMu.Unlock()
	if q.Err() != nil {
		return nil
	}
	mask := q.size - 1
	d := completion{full: true, id: c.id, descs: c.descs, written: written}
	if q.anyOrder {
		q.ring.put(d)
		q.staged++
		d.full = false
	} else if c.seq != q.used {
		q.done[c.seq&mask] = d
		return nil
	}
	for d.full {
		q.ring.put(d)
		q.used++
		q.staged++
		next := &q.done[q.used&mask]
		d, next.full = *next, false
	}
	if q.staged < batch {
		return nil
	}
	return q.publish()
}

// publish shows what is staged. The caller holds usedMu.
func (q *Queue) publish() Call {
	if q.staged == 0 || q.Err() != nil {
		return nil
	}
	q.staged = 0
	if !q.ring.publish() {
		return nil
	}
	return q.call
}

// flush publishes what is staged and notifies.
func (q *Queue) flush() {
	q.usedMu.Lock()
	call := q.flushLocked()
	if call != nil {
		call.Signal()
	}
}

func (q *Queue) flushLocked() Call {
	defer q.usedMu.Unlock()
	return q.publish()
}
