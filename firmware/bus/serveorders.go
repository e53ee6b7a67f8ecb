// SPDX-License-Identifier: Apache-2.0

package bus

import (
	"context"
	"errors"
	"fmt"

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
func ServeOrders(ctx context.Context, s *Session, vmms VMMs, events <-chan spec.VMMStatus) error {
	ctx, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	orders := make(chan *controlMessage, maxOrdersUnderWay)
	go func() {
		defer close(orders)
		cancel(readOrders(ctx, s.Control(), orders))
	}()
	for {
		var answer *controlMessage
		select {
		case m, ok := <-orders:
			if !ok {
				return context.Cause(ctx)
			}
			answer = carryOut(ctx, vmms, m)
		case ev := <-events:
			answer = &controlMessage{VMMs: []spec.VMMStatus{ev}}
		}
		b, err := marshal(answer)
		if err == nil {
			err = s.Control().WriteRecord(ctx, b)
		}
		if err != nil {
			return err
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
