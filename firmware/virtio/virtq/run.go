// SPDX-License-Identifier: Apache-2.0

package virtq

import (
	"context"
	"errors"
	"sync"
)

// Handler executes one request and returns how many bytes it wrote to the
// beginning of the writable buffers. An error, a *ProtocolError, ends the queue;
// what goes wrong with a well-formed request is told to the driver in the
// request's status instead. ErrStopped leaves the request to whoever serves the queue
// next: only once the context of Run is done and if MayLeave, or once the queue has failed.
type Handler func(c *Chain) (written uint32, err error)

// ErrWouldBlock is what Service.Try says of a request that has to wait for something.
var ErrWouldBlock = errors.New("request has to wait")

// Service is how the requests of a queue are executed.
type Service struct {
	// Try executes a request that does not have to wait for anything, and fails
	// with ErrWouldBlock when that is not so: Handle then gets the same chain,
	// as Try has left it. nil: all have to wait.
	Try Handler
	// Handle executes a request that may have to wait. nil: Try never fails with
	// ErrWouldBlock.
	Handle Handler
	// Workers is the number of requests that Handle works on at a time.
	Workers int
}

const (
	// batch is how many requests are taken at a time.
	batch = 32
	// publishEvery is how many completions are shown to the driver at a time: each
	// time costs a cache line that both sides want.
	publishEvery = 8
)

// Run works on the queue until ctx is done, with up to workers requests at a
// time, and returns when all that were taken are complete or given up. It notifies the driver
// once at the beginning, since a predecessor may have died between completing
// and notifying. It returns nil after ctx is done, else the reason for the end.
func (q *Queue) Run(ctx context.Context, workers int, handle Handler) error {
	return q.Serve(ctx, Service{Handle: handle, Workers: workers})
}

// Serve is Run with requests that do not have to wait executed where they are taken.
//
//	taker:   ┌─► Take ──► Try ──► stage, publish ─┐    no handing over, no lock
//	         └───────┬────────────────────────────┘    that somebody else wants
//	                 │ would block
//	workers:         └──► Handle ──► Complete          as many as needed, up to Workers
func (q *Queue) Serve(ctx context.Context, s Service) error {
	defer context.AfterFunc(ctx, q.Stop)()
	q.usedMu.Lock()
	call := q.call
	q.usedMu.Unlock()
	if call != nil {
		call.Signal()
	}
	t := newTaker(q, s)
	t.guarded(t.run)
	close(t.work)
	t.workers.Wait()
	return q.Err()
}

// Slots is the number of chains that a service works on at a time: Chain.Slot is
// below it.
func (s *Service) Slots() int { return batch + max(0, s.Workers) }

// taker takes the requests of one queue.
type taker struct {
	q       *Queue
	service Service

	chains  []*Chain // to take with
	spare   []*Chain
	work    chan *Chain // to workers
	idle    chan *Chain // back from them
	lent    int         // chains that are with workers
	started int
	workers sync.WaitGroup
}

func newTaker(q *Queue, s Service) *taker {
	t := &taker{q: q, service: s, work: make(chan *Chain), idle: make(chan *Chain, max(1, s.Workers))}
	for i := range s.Slots() {
		t.spare = append(t.spare, &Chain{slot: i})
	}
	t.chains, t.spare = t.spare[:batch:batch], t.spare[batch:]
	return t
}

// guarded runs fn, and records in the queue why it failed.
func (t *taker) guarded(fn func() error) {
	if err := t.q.mem.Guard(fn); err != nil && !errors.Is(err, ErrStopped) {
		t.q.Fail(asViolation(err))
	}
}

func (t *taker) run() error {
	for {
		room := t.room()
		n, err := t.q.take(t.lent == 0, t.chains[:room])
		if err != nil {
			return err
		}
		for i := range n {
			if err := t.serve(i); err != nil {
				return err
			}
		}
		t.q.flush()
	}
}

// room is how many requests may be taken: no more than can be executed at once,
// so that a queue that is stopped has none that wait for a worker. It is at least
// one, and worth waiting for.
func (t *taker) room() int {
	if t.service.Handle == nil {
		return batch
	}
	for t.lent > 0 {
		if t.lent < t.service.Workers {
			select {
			case c := <-t.idle:
				t.regain(c)
				continue
			default:
			}
			break
		}
		t.regain(<-t.idle)
	}
	return min(batch, t.service.Workers-t.lent)
}

func (t *taker) regain(c *Chain) {
	t.lent--
	t.spare = append(t.spare, c)
}

// serve executes the request in chain i, or has a worker do it.
func (t *taker) serve(i int) error {
	c := t.chains[i]
	if t.service.Try != nil {
		written, err := t.service.Try(c)
		if err == nil {
			if call := t.q.complete(c, written, publishEvery); call != nil {
				call.Signal()
			}
			return nil
		}
		if !errors.Is(err, ErrWouldBlock) {
			t.q.logWritten(c)
			return err
		}
	}
	last := len(t.spare) - 1
	t.chains[i], t.spare = t.spare[last], t.spare[:last]
	t.lend(c)
	return nil
}

// lend gives a request to a worker that waits for one, or to a new one. There is
// one of the two, or will be at once: room saw to it.
func (t *taker) lend(c *Chain) {
	t.lent++
	if t.started < t.service.Workers {
		select {
		case t.work <- c:
		default:
			t.started++
			t.workers.Go(func() { t.serveLent(c) })
		}
		return
	}
	t.work <- c
}

// serveLent is a worker's life. A request that fails ends the queue, not the
// worker: the taker may be about to lend to it.
func (t *taker) serveLent(c *Chain) {
	for ok := true; ok; c, ok = <-t.work {
		t.guarded(func() error { return t.handle(c) })
	}
}

func (t *taker) handle(c *Chain) error {
	defer func() { t.idle <- c }()
	if t.q.Err() != nil {
		return nil // nothing is published any more
	}
	written, err := t.service.Handle(c)
	if err != nil {
		t.q.logWritten(c)
		return err
	}
	t.q.Complete(c, written)
	return nil
}
