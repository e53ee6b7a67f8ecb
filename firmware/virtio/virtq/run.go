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
// request's status instead. ErrStopped, only once the context of Run is done, leaves
// the request to whoever serves the queue next.
type Handler func(c *Chain) (written uint32, err error)

// Run works on the queue until ctx is done, with up to workers requests at a
// time, and returns when all that were taken are complete or given up. It notifies the driver
// once at the beginning, since a predecessor may have died between completing
// and notifying. It returns nil after ctx is done, else the reason for the end.
//
//	worker:  ┌─► Take ──► handle ──► Complete ─┐     one of them waits for kicks,
//	         └─────────────────────────────────┘     the others for its place
//
// Whoever takes a request also executes it: no handing over, and no goroutine
// for each request.
func (q *Queue) Run(ctx context.Context, workers int, handle Handler) error {
	defer context.AfterFunc(ctx, q.Stop)()
	q.usedMu.Lock()
	call := q.call
	q.usedMu.Unlock()
	if call != nil {
		call.Signal()
	}
	var wg sync.WaitGroup
	for range max(1, min(workers, q.Size())) {
		wg.Go(func() { q.work(handle) })
	}
	wg.Wait()
	return q.Err()
}

// work is one worker's life. Any failure is recorded in the queue.
func (q *Queue) work(handle Handler) {
	err := q.mem.Guard(func() error {
		var c Chain
		for {
			if err := q.Take(&c); err != nil {
				return err
			}
			written, err := handle(&c)
			if err != nil {
				return err
			}
			q.Complete(&c, written)
		}
	})
	if !errors.Is(err, ErrStopped) {
		q.Fail(asViolation(err))
	}
}
