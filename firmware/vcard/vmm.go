// SPDX-License-Identifier: Apache-2.0

package vcard

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"time"

	"github.com/davit-dpu/davit/firmware/bus"
	"github.com/davit-dpu/davit/firmware/control"
	"github.com/davit-dpu/davit/firmware/qmp"
	"github.com/davit-dpu/davit/firmware/spec"
)

// lastWords is how long the exit of a VMM waits for the end of its QMP stream,
// which says why the guest went down.
const lastWords = time.Second

// maxRunning bounds the VMMs of one host that are followed: two channels each.
// It is also as many as an honest host runs.
const maxRunning = bus.MaxVMMs / 2

// vmm is one start of an instance, as its host tells it.
type vmm struct {
	// guarded by Card.mu:
	status   spec.VMMStatus
	memory   memoryRange   // zero when it was not started by this vcard
	link     *link         // the session that relays it; nil when none does
	qmp      *qmp.Client   // nil while not connected
	qmpEnded chan struct{} // of the newest QMP connection; nil before the first
	shutdown string        // reason of the newest QMP SHUTDOWN event
	leaving  *link         // the session in which its exit was told and waits for QMP's last words
	exitedIn *link         // the session in which its exit was told; nil while it runs
}

// report takes in what the host says of one VMM.
func (c *Card) report(l *link, st spec.VMMStatus) {
	st.Clean = false // is for QMP to say
	st.Reason = control.Text(st.Reason, 256)
	if st.State == spec.VMMRunning {
		c.running(l, st)
		return
	}
	c.mu.Lock()
	v := c.vmms[control.VMMKey(&st)]
	var ended chan struct{}
	if v != nil && v.status.State == spec.VMMRunning {
		if v.leaving == l { // one wait for each VMM, however often the host says it
			c.mu.Unlock()
			return
		}
		if ended = v.qmpEnded; ended != nil {
			v.leaving = l
		}
	}
	c.mu.Unlock()
	if ended == nil {
		c.exited(l, st)
		return
	}
	l.spawn(func() {
		t := time.NewTimer(lastWords)
		defer t.Stop()
		select {
		case <-ended:
		case <-t.C:
		}
		c.exited(l, st)
	})
}

// reconcile replaces what is known by a whole list from a new session.
func (c *Card) reconcile(l *link, list []spec.VMMStatus) {
	listed := map[string]bool{}
	for _, st := range list {
		listed[control.VMMKey(&st)] = true
		c.report(l, st)
	}
	c.mu.Lock()
	var lost []spec.VMMStatus
	for key, v := range c.vmms {
		if v.status.State == spec.VMMRunning && !listed[key] {
			lost = append(lost, v.status)
		}
	}
	c.mu.Unlock()
	for _, st := range lost {
		st.State, st.Reason = spec.VMMExited, "the host came back without it"
		c.exited(l, st)
	}
}

// running records a VMM that runs and connects to it. Within one session an
// exit is final: the answer to an order may be taken in after the exit that the
// host sent right behind it. Only the list of a new session says otherwise.
func (c *Card) running(l *link, st spec.VMMStatus) *vmm {
	c.mu.Lock()
	v := c.vmms[control.VMMKey(&st)]
	if v == nil {
		if v = c.newVMMLocked(st); v == nil {
			c.mu.Unlock()
			c.alert("host reports more VMMs than it can have", "instance", st.Instance)
			return nil
		}
	}
	if v.exitedIn == l {
		c.mu.Unlock()
		return nil
	}
	fresh := v.link != l
	v.status, v.link, v.exitedIn = st, l, nil
	c.consoleLocked(st.Instance)
	c.mu.Unlock()
	c.server.Publish(control.Event{VMM: &st})
	if fresh {
		c.noise.Info("VMM runs", "instance", st.Instance, "generation", st.Generation, "adopted", st.Adopted)
		l.spawn(func() { c.followQMP(l, v, st) })
		l.spawn(func() { c.followConsole(l, v, st) })
	}
	return v
}

// newVMMLocked makes room for a VMM and adds it; the exits of the same
// instance's earlier starts are forgotten. It returns nil when there is no room.
func (c *Card) newVMMLocked(st spec.VMMStatus) *vmm {
	for key, old := range c.vmms {
		if old.status.State == spec.VMMExited && (old.status.Instance == st.Instance || len(c.vmms) >= control.MaxVMMs) {
			delete(c.vmms, key)
		}
	}
	running := 0
	for _, old := range c.vmms {
		if old.status.State == spec.VMMRunning {
			running++
		}
	}
	if len(c.vmms) >= control.MaxVMMs || st.State == spec.VMMRunning && running >= maxRunning {
		return nil
	}
	v := &vmm{}
	c.vmms[control.VMMKey(&st)] = v
	return v
}

// exited records that a VMM is gone, joining what the host and QMP said.
func (c *Card) exited(l *link, st spec.VMMStatus) {
	st.State = spec.VMMExited
	c.mu.Lock()
	v := c.vmms[control.VMMKey(&st)]
	if v == nil {
		for _, other := range c.vmms { // an old exit must not hide a newer start
			if other.status.Instance == st.Instance && other.status.State == spec.VMMRunning {
				c.mu.Unlock()
				return
			}
		}
		v = c.newVMMLocked(st)
	}
	if v == nil || v.status.State == spec.VMMExited {
		c.mu.Unlock()
		return
	}
	if v.shutdown != "" {
		st.Clean = v.shutdown == guestShutdown
		st.Reason = control.Text("QMP "+v.shutdown+"; host: "+st.Reason, 256)
	}
	v.status, v.link, v.leaving, v.exitedIn = st, nil, nil, l
	c.mu.Unlock()
	c.noise.Info("VMM exited", "instance", st.Instance, "generation", st.Generation, "reason", st.Reason, "clean", st.Clean)
	c.server.Publish(control.Event{VMM: &st})
}

// alive says whether relays of v in session l still have something to do.
func (c *Card) alive(l *link, v *vmm) bool {
	c.mu.Lock()
	defer c.mu.Unlock()
	return l.ctx.Err() == nil && v.link == l && v.status.State == spec.VMMRunning
}

// retry runs try again and again, with a growing pause, while v is alive.
func (c *Card) retry(l *link, v *vmm, try func() error, what string, st spec.VMMStatus) {
	const least, most = 50 * time.Millisecond, 2 * time.Second
	for wait := least; c.alive(l, v); wait = min(2*wait, most) {
		began := c.cfg.Now()
		err := try()
		if !c.alive(l, v) {
			return
		}
		c.noise.Info(what+" is not connected", "instance", st.Instance, "reason", err)
		if c.cfg.Now().Sub(began) > most {
			wait = least
		}
		pause(l.ctx, wait)
	}
}

// guestShutdown is the reason in QMP's SHUTDOWN event when the guest powered
// itself off (QEMU's qapi/run-state.json, ShutdownCause).
const guestShutdown = "guest-shutdown"

// followQMP keeps a QMP connection to a VMM.
func (c *Card) followQMP(l *link, v *vmm, st spec.VMMStatus) {
	c.retry(l, v, func() error { return c.qmpOnce(l, v, st) }, "QMP", st)
}

func (c *Card) qmpOnce(l *link, v *vmm, st spec.VMMStatus) error {
	ctx, cancel := context.WithTimeout(l.ctx, 10*time.Second)
	defer cancel()
	ch, err := l.session.Open(ctx, bus.Open{Kind: bus.KindQMP, Instance: st.Instance, Generation: st.Generation})
	if err != nil {
		return err
	}
	client, err := qmp.Open(ctx, ch)
	if err != nil {
		return err
	}
	ended := make(chan struct{})
	c.mu.Lock()
	v.qmp, v.qmpEnded = client, ended
	c.mu.Unlock()
	stop := context.AfterFunc(l.ctx, func() { _ = client.Close() })
	defer stop()
	for e := range client.Events() { // ends with the connection
		if reason, ok := shutdownReason(e); ok {
			c.mu.Lock()
			v.shutdown = reason
			c.mu.Unlock()
		}
	}
	c.mu.Lock()
	v.qmp = nil
	c.mu.Unlock()
	close(ended)
	if err := client.Err(); errors.Is(err, qmp.ErrProtocol) {
		c.alert("VMM broke QMP", "instance", st.Instance, "err", err)
	}
	return client.Err()
}

// shutdownReason reads QMP's SHUTDOWN event.
func shutdownReason(e qmp.Event) (string, bool) {
	if e.Name != "SHUTDOWN" {
		return "", false
	}
	var data struct{ Reason string }
	if err := json.Unmarshal(e.Data, &data); err != nil || data.Reason == "" {
		return "", false
	}
	return control.Text(data.Reason, 64), true
}

// stopVMM passes a request to stop on.
func (c *Card) stopVMM(ctx context.Context, req *control.StopVMM) error {
	what := fmt.Sprintf("stop VMM of %s", req.Instance)
	l, err := c.currentLink()
	if err != nil {
		return fmt.Errorf("%s: %w", what, err)
	}
	ctx, cancel := l.within(ctx)
	defer cancel()
	if req.Force { // the host knows better than this end what runs there
		if err := l.orders.Kill(ctx, bus.VMMRef{Instance: req.Instance, Generation: req.Generation}); err != nil {
			return hostError(l, err)
		}
		return nil
	}
	c.mu.Lock()
	v := c.vmms[req.Instance+"/"+req.Generation]
	runs := v != nil && v.status.State == spec.VMMRunning
	var client *qmp.Client
	if runs {
		client = v.qmp
	}
	c.mu.Unlock()
	if !runs {
		return fmt.Errorf("%s: no such VMM runs: %w", what, control.ErrNotFound)
	}
	if client == nil {
		return fmt.Errorf("%s: QMP is not connected: %w", what, control.ErrHost)
	}
	ctx, done := context.WithTimeout(ctx, 10*time.Second)
	defer done()
	if err := client.Execute(ctx, "system_powerdown", nil, nil); err != nil {
		return fmt.Errorf("%s: %w: %w", what, control.ErrHost, err)
	}
	return nil
}
