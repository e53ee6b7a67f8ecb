// SPDX-License-Identifier: Apache-2.0

package vhostuser

import (
	"context"
	"errors"
	"sync/atomic"

	"github.com/davit-dpu/davit/firmware/virtio"
	"github.com/davit-dpu/davit/firmware/virtio/guestmem"
	"github.com/davit-dpu/davit/firmware/virtio/virtq"
)

// ring is what the front end told about one virtqueue.
type ring struct {
	index int

	size    uint32 // 0: not set
	addr    vringAddr
	hasAddr bool
	base    virtq.Position // where to go on

	kick    Kick
	call    Call
	errCall atomic.Pointer[Call] // also used by the goroutine that stops the device
	started bool                 // between SET_VRING_KICK and GET_VRING_BASE
	enabled bool
	waiting bool // for the rings of another session to stop

	run    *run
	cancel atomic.Pointer[context.CancelFunc] // of run; also used by who stops the device
}

// run is a ring being served.
type run struct {
	queue *virtq.Queue
	done  chan struct{}
}

// fail ends the ring's run without waiting, and signals its error fd.
func (r *ring) fail() {
	r.cancelRun()
	if c := r.errCall.Load(); c != nil {
		(*c).Signal()
	}
}

func (r *ring) cancelRun() {
	if cancel := r.cancel.Load(); cancel != nil {
		(*cancel)()
	}
}

func (r *ring) setErr(c Call) {
	var p *Call
	if c != nil {
		p = &c
	}
	if old := r.errCall.Swap(p); old != nil {
		_ = (*old).Close()
	}
}

func (r *ring) closeKick() {
	if r.kick != nil {
		_ = r.kick.Close()
		r.kick = nil
	}
}

// reset forgets what the driver set up. The ring is halted.
func (r *ring) reset() {
	r.closeKick()
	r.size, r.addr, r.hasAddr, r.base = 0, vringAddr{}, false, 0
	r.started, r.enabled, r.waiting = false, false, false
}

func (r *ring) closeNotifiers() {
	r.closeKick()
	if r.call != nil {
		_ = r.call.Close()
		r.call = nil
	}
	r.setErr(nil)
}

// update runs or halts the ring, as its state demands.
func (s *session) update(r *ring) error {
	want := r.started && r.enabled && s.stoppedFor() == nil
	r.waiting = want && !s.server.acquire(s)
	switch {
	case !want:
		s.halt(r)
	case r.run == nil && !r.waiting:
		return s.start(r)
	}
	return nil
}

// settle gives up the turn when no ring is started.
func (s *session) settle() {
	for i := range s.rings {
		if s.rings[i].started {
			return
		}
	}
	s.server.release(s)
}

// config is the ring for virtq, as the front end described it.
func (s *session) config(r *ring) virtq.Config {
	cfg := virtq.Config{
		Memory:       s.mem,
		Packed:       s.features.Has(virtio.FeatureRingPacked),
		Size:         int(r.size),
		Inflight:     s.inflight.part(r.index, int(r.size)),
		Ring:         virtq.Addresses{Desc: r.addr.desc, Avail: r.addr.avail, Used: r.addr.used},
		Translate:    s.mem.SliceUser,
		Next:         r.base,
		IndirectDesc: s.features.Has(virtio.FeatureIndirectDesc),
		EventIdx:     s.features.Has(virtio.FeatureEventIdx),
		Kick:         r.kick,
		Poll:         max(0, s.opts.Poll),
	}
	if r.call != nil {
		cfg.Call = r.call
	}
	if s.logs() {
		cfg.Log, cfg.LogRing, cfg.LogUsed = s.dirty, r.addr.flags&vringLog != 0, r.addr.log
	}
	return cfg
}

// start begins to serve the ring. A ring that the driver laid out wrongly stops
// the device; it is no fault of the front end.
func (s *session) start(r *ring) error {
	q, err := virtq.New(s.config(r))
	if err != nil {
		var broken *virtq.ProtocolError
		if !errors.As(err, &broken) {
			return err
		}
		if s.protocol&ProtocolMemSlots != 0 && errors.Is(err, guestmem.ErrUnmapped) {
			// Regions that change size go before they come again.
			s.log.Info("ring waits for its memory", "queue", r.index, "err", err)
			return nil
		}
		s.stopDevice(r.index, err)
		return nil
	}
	at := q.Position() // before it moves
	if at != r.base {
		s.log.Info("ring goes on where guest memory says", "queue", r.index, "position", at, "base", r.base)
	}
	ctx, cancel := context.WithCancel(s.ctx)
	current := &run{queue: q, done: make(chan struct{})}
	r.run = current
	r.cancel.Store(&cancel)
	if s.stoppedFor() != nil {
		cancel() // another ring failed meanwhile, and did not see this one
	}
	served := virtio.Queue{Queue: q, Index: r.index, Features: s.features}
	go func() {
		defer close(current.done)
		defer cancel()
		if err := s.device.Serve(ctx, served); err != nil {
			s.stopDevice(served.Index, err)
		}
	}()
	s.log.Debug("ring running", "queue", r.index, "size", r.size, "next", at)
	return nil
}

// haltAll halts all rings, side by side.
func (s *session) haltAll() {
	for i := range s.rings {
		s.rings[i].cancelRun()
	}
	for i := range s.rings {
		s.halt(&s.rings[i])
	}
}

// halt stops serving the ring and waits until all that was taken is completed.
func (s *session) halt(r *ring) {
	if r.run == nil {
		return
	}
	r.cancelRun()
	<-r.run.done
	r.base = r.run.queue.Position()
	r.run = nil
	r.cancel.Store(nil)
	s.log.Debug("ring halted", "queue", r.index, "next", r.base)
}
