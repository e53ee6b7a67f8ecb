// SPDX-License-Identifier: Apache-2.0

package vcardtest

import (
	"bufio"
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"sync"

	"github.com/davit-dpu/davit/firmware/bus"
	"github.com/davit-dpu/davit/firmware/spec"
	"github.com/davit-dpu/davit/firmware/state"
)

// Host is a host's end of the bus: davit-hostd without VMMs.
type Host struct {
	// Banner is what every console says first.
	Banner string
	// Greeting is what QMP says first; empty: what QEMU says.
	Greeting string

	session state.Cell[*bus.Session] // nil while there is none
	events  chan spec.VMMStatus

	mu        sync.Mutex
	refuse    string                    // guarded by mu
	stillborn bool                      // guarded by mu
	hangUp    bool                      // guarded by mu
	vmms      map[string]spec.VMMStatus // guarded by mu; by instance
	orders    []spec.VMMOrder           // guarded by mu
	qmp       map[string]*qmpServer     // guarded by mu; by instance
	typed     map[string]string         // guarded by mu; console input by instance
}

// NewHost makes a host without VMMs.
func NewHost() *Host {
	return &Host{
		events: make(chan spec.VMMStatus, 64), vmms: map[string]spec.VMMStatus{},
		qmp: map[string]*qmpServer{}, typed: map[string]string{},
	}
}

// Run serves the card until ctx ends, through any number of sessions.
func (h *Host) Run(ctx context.Context, dial bus.DialFunc, poolSize uint64) {
	cfg := bus.Config{Role: bus.Host, Build: "vcardtest", PoolSize: poolSize}
	_ = bus.Run(ctx, cfg, dial, h.serve) // ctx's error
}

func (h *Host) serve(ctx context.Context, s *bus.Session) error {
	var wg sync.WaitGroup
	defer wg.Wait()
	wg.Go(func() {
		for {
			o, err := s.Accept(ctx)
			if err != nil {
				return
			}
			wg.Go(func() { h.relay(ctx, o) })
		}
	})
	h.session.Set(s)
	defer h.session.Set(nil)
	return bus.ServeOrders(ctx, s, h, h.events)
}

// Session waits for a session with the card.
func (h *Host) Session(ctx context.Context) (*bus.Session, error) {
	for {
		s, changed := h.session.Get()
		if s != nil {
			return s, nil
		}
		select {
		case <-changed:
		case <-ctx.Done():
			return nil, fmt.Errorf("wait for the card: %w", ctx.Err())
		}
	}
}

// Refuse makes the host refuse every start with this answer; none if empty.
func (h *Host) Refuse(answer string) {
	h.mu.Lock()
	defer h.mu.Unlock()
	h.refuse = answer
}

// Stillborn makes every VMM exit right after its start was answered.
func (h *Host) Stillborn() {
	h.mu.Lock()
	defer h.mu.Unlock()
	h.stillborn = true
}

// HangUp makes the host carry out the next start and end the session in place
// of its answer.
func (h *Host) HangUp() {
	h.mu.Lock()
	defer h.mu.Unlock()
	h.hangUp = true
}

// Start implements bus.VMMs.
func (h *Host) Start(_ context.Context, order spec.VMMOrder) (spec.VMMStatus, error) {
	h.mu.Lock()
	defer h.mu.Unlock()
	if s, _ := h.session.Get(); h.hangUp && s != nil {
		h.hangUp = false
		defer s.Close("restart") // before the answer is sent
	}
	if h.refuse != "" {
		return spec.VMMStatus{}, errors.New(h.refuse)
	}
	st := spec.VMMStatus{Instance: order.Instance, Generation: order.Generation, State: spec.VMMRunning}
	h.vmms[order.Instance] = st
	h.orders = append(h.orders, order)
	if h.stillborn {
		gone := st
		gone.State, gone.Reason = spec.VMMExited, "exit status 1"
		h.vmms[order.Instance] = gone
		h.events <- gone // sent behind the answer
	}
	return st, nil
}

// Kill implements bus.VMMs.
func (h *Host) Kill(_ context.Context, ref bus.VMMRef) error {
	h.Exit(ref.Instance, "killed", "")
	return nil
}

// List implements bus.VMMs.
func (h *Host) List() []spec.VMMStatus {
	h.mu.Lock()
	defer h.mu.Unlock()
	var all []spec.VMMStatus
	for _, st := range h.vmms {
		all = append(all, st)
	}
	return all
}

// Exit ends a VMM: QMP's SHUTDOWN event with the given reason, if there is
// one, then the end of the process.
func (h *Host) Exit(instance, how, qmpReason string) {
	h.mu.Lock()
	st, q := h.vmms[instance], h.qmp[instance]
	h.mu.Unlock()
	if st.State != spec.VMMRunning {
		return
	}
	st.State, st.Reason = spec.VMMExited, how
	if q != nil {
		q.shutdown(qmpReason)
	}
	h.mu.Lock()
	h.vmms[instance] = st
	h.mu.Unlock()
	h.events <- st
}

// Report makes the host say anything of a VMM.
func (h *Host) Report(st spec.VMMStatus) { h.events <- st }

// Forget makes a VMM disappear without a word.
func (h *Host) Forget(instance string) {
	h.mu.Lock()
	defer h.mu.Unlock()
	delete(h.vmms, instance)
}

// Orders are the starts that the card ordered.
func (h *Host) Orders() []spec.VMMOrder {
	h.mu.Lock()
	defer h.mu.Unlock()
	return append([]spec.VMMOrder(nil), h.orders...)
}

// Typed is what was typed on an instance's console.
func (h *Host) Typed(instance string) string {
	h.mu.Lock()
	defer h.mu.Unlock()
	return h.typed[instance]
}

// Commands are the QMP commands that an instance's VMM got.
func (h *Host) Commands(instance string) []string {
	h.mu.Lock()
	q := h.qmp[instance]
	h.mu.Unlock()
	if q == nil {
		return nil
	}
	q.mu.Lock()
	defer q.mu.Unlock()
	return append([]string(nil), q.commands...)
}

// relay is the VMM's end of a channel that the card opened.
func (h *Host) relay(ctx context.Context, o *bus.Offer) {
	h.mu.Lock()
	st := h.vmms[o.Open.Instance]
	h.mu.Unlock()
	if st.State != spec.VMMRunning || st.Generation != o.Open.Generation {
		o.Refuse("no such VMM")
		return
	}
	ch := o.Accept()
	stop := context.AfterFunc(ctx, func() { _ = ch.Close() })
	defer stop()
	if o.Open.Kind == bus.KindConsole {
		h.console(o.Open.Instance, ch)
		return
	}
	q := &qmpServer{ch: ch, greeting: cmp.Or(h.Greeting, greeting)}
	h.mu.Lock()
	h.qmp[o.Open.Instance] = q
	h.mu.Unlock()
	q.serve()
}

// console echoes what is typed.
func (h *Host) console(instance string, ch *bus.Channel) {
	if _, err := ch.Write([]byte(h.Banner)); err != nil {
		return
	}
	buf := make([]byte, 1024)
	for {
		n, err := ch.Read(buf)
		if err != nil {
			return
		}
		h.mu.Lock()
		h.typed[instance] += string(buf[:n])
		h.mu.Unlock()
		if _, err := ch.Write(buf[:n]); err != nil {
			return
		}
	}
}

// qmpServer answers every command with success.
type qmpServer struct {
	ch       *bus.Channel
	greeting string

	mu       sync.Mutex
	commands []string // guarded by mu
}

const greeting = `{"QMP": {"version": {"qemu": {"micro": 0, "minor": 0, "major": 10}, "package": ""}, "capabilities": []}}` + "\r\n"

func (q *qmpServer) serve() {
	if _, err := q.ch.Write([]byte(q.greeting)); err != nil {
		return
	}
	lines := bufio.NewScanner(q.ch)
	for lines.Scan() {
		var req struct {
			Execute string
			ID      json.RawMessage
		}
		if json.Unmarshal(lines.Bytes(), &req) != nil {
			return
		}
		q.mu.Lock()
		q.commands = append(q.commands, req.Execute)
		q.mu.Unlock()
		if _, err := fmt.Fprintf(q.ch, "{\"return\": {}, \"id\": %s}\r\n", req.ID); err != nil {
			return
		}
	}
}

// shutdown says why the VM goes down, if there is a reason, and ends.
func (q *qmpServer) shutdown(reason string) {
	if reason != "" {
		_, _ = fmt.Fprintf(q.ch, `{"timestamp": {"seconds": 1, "microseconds": 2}, "event": "SHUTDOWN", "data": {"guest": true, "reason": %q}}`+"\r\n", reason)
	}
	_ = q.ch.Close()
}
