// SPDX-License-Identifier: Apache-2.0

package bus

import (
	"context"
	"errors"
	"fmt"
	"sync"

	"github.com/davit-dpu/davit/firmware/spec"
)

// MaxVMMs bounds the VMMs of one host that a report may name.
const MaxVMMs = 128

// VMMRef names one start of one instance.
type VMMRef struct {
	Instance   string `json:"instance"`
	Generation string `json:"generation"`
}

func (r VMMRef) validate() error {
	if err := spec.CheckName("instance", r.Instance); err != nil {
		return err
	}
	return checkGeneration(r.Generation)
}

// controlMessage is one record of the control channel, in CBOR. From the card:
// an ID above the last one and exactly one of Start, Kill and List. From the
// host: the ID of a request and its outcome, or ID 0 and one state that changed.
type controlMessage struct {
	ID     uint64           `json:"id"`
	Start  *spec.VMMOrder   `json:"start,omitempty"`
	Kill   *VMMRef          `json:"kill,omitempty"`
	List   bool             `json:"list,omitempty"`
	Refuse string           `json:"refuse,omitempty"`
	VMMs   []spec.VMMStatus `json:"vmms,omitempty"`
}

func parseControl(b []byte) (*controlMessage, error) {
	var m controlMessage
	if err := unmarshal(b, &m); err != nil {
		return nil, fmt.Errorf("decode control message: %w", err)
	}
	return &m, nil
}

// checkReport bounds what a host says of its VMMs, and makes it printable.
func (m *controlMessage) checkReport() error {
	if m.Start != nil || m.Kill != nil || m.List {
		return errors.New("the host gave an order")
	}
	if len(m.VMMs) > MaxVMMs {
		return fmt.Errorf("%d VMMs are more than %d", len(m.VMMs), MaxVMMs)
	}
	m.Refuse = clean(m.Refuse, MaxReason)
	for i := range m.VMMs {
		v := &m.VMMs[i]
		if err := (VMMRef{v.Instance, v.Generation}).validate(); err != nil {
			return err
		}
		if v.State != spec.VMMRunning && v.State != spec.VMMExited {
			return fmt.Errorf("VMM state %q", clean(string(v.State), 32))
		}
		v.Reason = clean(v.Reason, MaxReason)
	}
	return nil
}

// HostError is a host's refusal of an order, in its own words.
type HostError struct {
	Reason string // printable, at most MaxReason bytes
}

// Error implements error.
func (e *HostError) Error() string { return "the host refused: " + e.Reason }

// Orders is the card's end of the control channel.
type Orders struct {
	c     *Channel
	event func(spec.VMMStatus)
	turn  chan struct{} // cap 1: held from giving a request its number until it is sent

	mu      sync.Mutex
	next    uint64                          // guarded by mu
	waiting map[uint64]chan *controlMessage // guarded by mu; nil after the end
}

// NewOrders takes the control channel of a card's session. Run must be running
// for orders to be answered; event is called by Run for each VMM whose state
// changed, one at a time.
func NewOrders(s *Session, event func(spec.VMMStatus)) *Orders {
	return &Orders{c: s.Control(), event: event, turn: make(chan struct{}, 1), waiting: map[uint64]chan *controlMessage{}}
}

// Run receives answers and events until ctx or the session ends. A host that
// sends what is no answer and no event is a reason to end the session.
func (o *Orders) Run(ctx context.Context) error {
	defer o.stop()
	for {
		b, err := o.c.ReadRecord(ctx, MaxRecord)
		if err != nil {
			return err
		}
		m, err := parseControl(b)
		if err == nil {
			err = m.checkReport()
		}
		if err == nil {
			err = o.deliver(m)
		}
		if err != nil {
			return fmt.Errorf("%w: %w", ErrProtocol, err)
		}
	}
}

func (o *Orders) stop() {
	o.mu.Lock()
	defer o.mu.Unlock()
	for _, ch := range o.waiting {
		close(ch)
	}
	o.waiting = nil
}

func (o *Orders) deliver(m *controlMessage) error {
	if m.ID == 0 {
		if len(m.VMMs) != 1 || m.Refuse != "" {
			return fmt.Errorf("an event of %d VMMs", len(m.VMMs))
		}
		o.event(m.VMMs[0])
		return nil
	}
	o.mu.Lock()
	defer o.mu.Unlock()
	if m.ID > o.next {
		return fmt.Errorf("answer to request %d, which was never sent", m.ID)
	}
	if ch := o.waiting[m.ID]; ch != nil { // else: given up meanwhile
		ch <- m
		delete(o.waiting, m.ID)
	}
	return nil
}

// Start orders a VMM. The same order may be sent again after a lost answer: it
// starts at most one VMM of a generation. The answer is its state, which can be
// VMMExited for an order that was carried out before.
func (o *Orders) Start(ctx context.Context, order spec.VMMOrder) (spec.VMMStatus, error) {
	m, err := o.ask(ctx, &controlMessage{Start: &order})
	if err == nil && (len(m.VMMs) != 1 || m.VMMs[0].Instance != order.Instance || m.VMMs[0].Generation != order.Generation) {
		err = &HostError{Reason: "answered for something else than was ordered"}
	}
	if err != nil {
		return spec.VMMStatus{}, fmt.Errorf("order VMM of %s: %w", order.Instance, err)
	}
	return m.VMMs[0], nil
}

// Kill orders the end of a VMM, without asking the guest. It returns when the
// host says that the process is gone; a VMM that does not run is no error.
func (o *Orders) Kill(ctx context.Context, ref VMMRef) error {
	if _, err := o.ask(ctx, &controlMessage{Kill: &ref}); err != nil {
		return fmt.Errorf("kill VMM of %s: %w", ref.Instance, err)
	}
	return nil
}

// List asks for all VMMs the host knows: those that run, and the last one of
// each instance that has exited.
func (o *Orders) List(ctx context.Context) ([]spec.VMMStatus, error) {
	m, err := o.ask(ctx, &controlMessage{List: true})
	if err != nil {
		return nil, fmt.Errorf("list VMMs: %w", err)
	}
	return m.VMMs, nil
}

func (o *Orders) ask(ctx context.Context, m *controlMessage) (*controlMessage, error) {
	ch := make(chan *controlMessage, 1)
	if err := o.send(ctx, m, ch); err != nil {
		return nil, err
	}
	defer o.forget(m.ID)
	select {
	case answer, ok := <-ch:
		if !ok {
			return nil, ErrClosed
		}
		if answer.Refuse != "" {
			return nil, &HostError{Reason: answer.Refuse}
		}
		return answer, nil
	case <-ctx.Done():
		return nil, ctx.Err()
	}
}

// send gives a request the next number and sends it. Numbers rise on the wire as
// they are given, whoever asks at the same time; a host takes nothing else.
func (o *Orders) send(ctx context.Context, m *controlMessage, answer chan *controlMessage) error {
	select {
	case o.turn <- struct{}{}:
		defer func() { <-o.turn }()
	case <-ctx.Done():
		return ctx.Err()
	}
	o.mu.Lock()
	if o.waiting == nil {
		o.mu.Unlock()
		return ErrClosed
	}
	o.next++
	m.ID = o.next
	o.waiting[m.ID] = answer
	o.mu.Unlock()
	b, err := marshal(m)
	if err == nil {
		err = o.c.WriteRecord(ctx, b)
	}
	if err != nil {
		o.forget(m.ID)
	}
	return err
}

func (o *Orders) forget(id uint64) {
	o.mu.Lock()
	defer o.mu.Unlock()
	delete(o.waiting, id)
}
