// SPDX-License-Identifier: Apache-2.0

package bus

import (
	"context"
	"errors"
	"fmt"

	"golang.org/x/sync/errgroup"

	"github.com/davit-dpu/davit/firmware/spec"
)

// VMMs is what acts on a card's orders: tools/host on a real host. The methods
// are called one at a time.
type VMMs interface {
	// Start starts a VMM, or reports the state of the same order's VMM.
	Start(ctx context.Context, order spec.VMMOrder) (spec.VMMStatus, error)
	// Kill ends a VMM and returns when it is gone, or at once when it is not there.
	Kill(ctx context.Context, ref VMMRef) error
	// List reports all VMMs, at most MaxVMMs.
	List() []spec.VMMStatus
}

// maxOrdersUnderWay bounds orders that were received and not carried out yet.
const maxOrdersUnderWay = 16

// ServeOrders is the host's end of the control channel: it carries out orders
// in their order of arrival and sends events, until ctx or the session ends.
// An order's error becomes the refusal that the card sees.
//
//	control channel ─► readOrders ─► carryOutAll ─► sendAll ─► control channel
//	                                  (calls VMMs)    ▲
//	                                        events ───┘
//
// Each has a goroutine of its own, so that an order that takes its time holds up
// no event; an event may therefore overtake the answer to an order that it
// follows from. No order is under way when ServeOrders returns, and one that was not
// begun when the session ended is not carried out: the card does not wait for it.
func ServeOrders(ctx context.Context, s *Session, vmms VMMs, events <-chan spec.VMMStatus) error {
	orders := make(chan *controlMessage, maxOrdersUnderWay)
	answers := make(chan *controlMessage)
	g, ctx := errgroup.WithContext(ctx)
	g.Go(func() error { return readOrders(ctx, s.Control(), orders) })
	g.Go(func() error { return carryOutAll(ctx, vmms, orders, answers) })
	g.Go(func() error { return sendAll(ctx, s.Control(), answers, events) })
	return g.Wait()
}

// sendAll is the only writer of the host's control channel.
func sendAll(ctx context.Context, c *Channel, answers <-chan *controlMessage, events <-chan spec.VMMStatus) error {
	for {
		var m *controlMessage
		select {
		case m = <-answers:
		case ev := <-events:
			m = &controlMessage{VMMs: []spec.VMMStatus{ev}}
		case <-ctx.Done():
			return ctx.Err()
		}
		b, err := marshal(m)
		if err == nil {
			err = c.WriteRecord(ctx, b)
		}
		if err != nil {
			return err
		}
	}
}

// carryOutAll is the only caller of vmms.
func carryOutAll(ctx context.Context, vmms VMMs, orders <-chan *controlMessage, answers chan<- *controlMessage) error {
	for {
		var m *controlMessage
		select {
		case m = <-orders:
		case <-ctx.Done():
		}
		if ctx.Err() != nil { // also when both were ready
			return ctx.Err()
		}
		select {
		case answers <- carryOut(ctx, vmms, m):
		case <-ctx.Done():
			return ctx.Err()
		}
	}
}

// readOrders passes orders on; a card with too many of them under way waits.
func readOrders(ctx context.Context, c *Channel, orders chan<- *controlMessage) error {
	last := uint64(0)
	for {
		b, err := c.ReadRecord(ctx, MaxRecord)
		if err != nil {
			return err
		}
		m, err := parseControl(b)
		if err != nil {
			return fmt.Errorf("%w: %w", ErrProtocol, err)
		}
		if m.ID <= last || m.VMMs != nil || m.Refuse != "" {
			return fmt.Errorf("%w: control message %d after %d is not an order", ErrProtocol, m.ID, last)
		}
		last = m.ID
		select {
		case orders <- m:
		case <-ctx.Done():
			return ctx.Err()
		}
	}
}

func carryOut(ctx context.Context, vmms VMMs, m *controlMessage) *controlMessage {
	answer := &controlMessage{ID: m.ID}
	var err error
	switch {
	case m.Start != nil && m.Kill == nil && !m.List:
		var st spec.VMMStatus
		if st, err = vmms.Start(ctx, *m.Start); err == nil {
			answer.VMMs = []spec.VMMStatus{st}
		}
	case m.Kill != nil && m.Start == nil && !m.List:
		if err = m.Kill.validate(); err == nil {
			err = vmms.Kill(ctx, *m.Kill)
		}
	case m.List && m.Start == nil && m.Kill == nil:
		answer.VMMs = vmms.List()
	default:
		err = errors.New("not exactly one order in a message")
	}
	if err != nil {
		answer.Refuse = clean(err.Error(), MaxReason)
	}
	for i := range answer.VMMs {
		answer.VMMs[i].Reason = clean(answer.VMMs[i].Reason, MaxReason)
	}
	return answer
}
