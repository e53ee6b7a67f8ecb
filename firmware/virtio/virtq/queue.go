// SPDX-License-Identifier: Apache-2.0

package virtq

import (
	"errors"
	"fmt"
	"sync"
	"sync/atomic"

	"github.com/davit-dpu/davit/firmware/virtio/guestmem"
)

// Config is a ring as the driver and its front end described it.
type Config struct {
	// Memory is the guest's memory. It must not be closed before Run has
	// returned, or the last Complete has.
	Memory *guestmem.Memory
	// Size is the number of descriptors, a power of two up to MaxSize.
	Size int
	// Ring are the ring's addresses, understood by Translate.
	Ring Addresses
	// Translate finds ring memory: Memory.SliceUser for vhost-user's addresses,
	// Memory.Slice for guest-physical ones.
	Translate func(addr, n uint64) ([]byte, error)
	// Next is the index of the next available entry according to the front end.
	Next uint16
	// IndirectDesc and EventIdx say which features were negotiated.
	IndirectDesc, EventIdx bool
	// Kick and Call are the notifications. Call may be nil: nobody is told.
	Kick Kick
	Call Call
}

// Queue is a running split virtqueue, seen from the device.
type Queue struct {
	ring     *ring
	eventIdx bool
	kick     Kick
	mem      *guestmem.Memory

	stopped atomic.Bool
	failure atomic.Pointer[error] // the first one

	takeMu sync.Mutex
	next   uint16 // guarded by takeMu: next available entry
	walker walker // guarded by takeMu

	usedMu    sync.Mutex
	call      Call         // guarded by usedMu
	used      uint16       // guarded by usedMu: next used entry, = used.idx in guest memory
	called    uint16       // guarded by usedMu: used when the driver was last told
	calledYet bool         // guarded by usedMu: called is meaningful
	done      []completion // guarded by usedMu: by position modulo size
}

// completion is a finished request that waits for those before it.
type completion struct {
	full    bool
	head    uint16
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
	r, err := newRing(cfg.Size, cfg.Ring, cfg.Translate)
	if err != nil {
		return nil, err
	}
	// Completions are published in ring order, so used.idx is where to go on. A
	// front end that lost its back end may know an older index: it read used.idx
	// while the last completions were still on their way.
	used := r.usedIdx.load()
	if ahead, behind := used-cfg.Next, cfg.Next-used; ahead > r.size && behind > r.size {
		return nil, violation(ViolationLayout, "used index %d, but the front end says %d of a ring of %d", used, cfg.Next, r.size)
	}
	return &Queue{
		ring: r, eventIdx: cfg.EventIdx, kick: cfg.Kick, call: cfg.Call, mem: cfg.Memory,
		next: used, used: used,
		walker: walker{mem: cfg.Memory, indirect: cfg.IndirectDesc},
		done:   make([]completion, cfg.Size),
	}, nil
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
func (q *Queue) Size() int { return int(q.ring.size) }

// Used is the index up to which requests were completed and published. After
// Run has returned, requests from there on are what the driver still waits for.
func (q *Queue) Used() uint16 {
	q.usedMu.Lock()
	defer q.usedMu.Unlock()
	return q.used
}

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

// Stop makes Take fail with ErrStopped, also one that waits. Requests
// that were taken can still be completed.
func (q *Queue) Stop() {
	q.stopped.Store(true)
	q.kick.Interrupt()
}

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

// Take waits for the next request and fills c with it. It fails with ErrStopped
// after Stop, and with a *ProtocolError, which also ends the queue, when the
// driver broke the protocol. Callers run under the memory's Guard.
func (q *Queue) Take(c *Chain) error {
	q.takeMu.Lock()
	defer q.takeMu.Unlock()
	for {
		if q.stopped.Load() {
			return ErrStopped
		}
		ready, err := q.ready()
		if err != nil {
			q.Fail(err)
			return err
		}
		if ready {
			break
		}
		if q.arm() {
			continue
		}
		if err := q.kick.Wait(); err != nil {
			err = fmt.Errorf("wait for kick: %w", err)
			q.Fail(err)
			return err
		}
	}
	if err := q.pop(c); err != nil {
		q.Fail(err)
		return err
	}
	return nil
}

// ready reports whether an entry is available. The caller holds takeMu.
func (q *Queue) ready() (bool, error) {
	idx := q.ring.availIdx.load()
	if n := idx - q.next; n > q.ring.size {
		return false, violation(ViolationAvailIdx, "%d, %d ahead of %d, ring of %d", idx, n, q.next, q.ring.size)
	}
	return idx != q.next, nil
}

// arm asks for a kick with the next entry, and reports whether one became
// available meanwhile: it would not be kicked for. The caller holds takeMu.
func (q *Queue) arm() bool {
	if !q.eventIdx {
		return false // kicks are never suppressed
	}
	q.ring.availEvent.store(q.next)
	return q.ring.availIdx.load() != q.next
}

// pop takes the next available entry. The caller holds takeMu and knows that
// there is one.
func (q *Queue) pop(c *Chain) error {
	head := q.ring.head(q.next)
	if head >= q.ring.size {
		return violation(ViolationHead, "%d of %d", head, q.ring.size)
	}
	if err := q.walker.walk(q.ring.desc, head, c); err != nil {
		return err
	}
	c.seq = q.next
	q.next++
	return nil
}

// Complete hands a taken request back: the device wrote the first written bytes
// of its writable buffers. The driver sees it when all requests before it are
// complete too, and is notified if it asked for that. After Fail nothing is
// published.
func (q *Queue) Complete(c *Chain, written uint32) {
	if call := q.complete(c, written); call != nil {
		call.Signal()
	}
}

func (q *Queue) complete(c *Chain, written uint32) Call {
	q.usedMu.Lock()
	defer q.usedMu.Unlock()
	mask := q.ring.size - 1
	q.done[c.seq&mask] = completion{full: true, head: c.head, written: written}
	if c.seq != q.used || q.Err() != nil {
		return nil
	}
	for {
		d := &q.done[q.used&mask]
		if !d.full {
			break
		}
		q.ring.putUsed(q.used, d.head, d.written)
		*d = completion{}
		q.used++
	}
	q.ring.setUsedIdx(q.used)
	if !q.wantsCall() {
		return nil
	}
	return q.call
}

// wantsCall decides whether the driver is to be notified of the entries up to
// used (Virtio 1.2, 2.7.7 and 2.7.10). The caller holds usedMu.
func (q *Queue) wantsCall() bool {
	if !q.eventIdx {
		return q.ring.availFlags.load()&availNoInterrupt == 0
	}
	old, valid := q.called, q.calledYet
	q.called, q.calledYet = q.used, true
	return !valid || needEvent(q.ring.usedEvent.load(), q.used, old)
}
