// SPDX-License-Identifier: Apache-2.0

package vcard

import (
	"context"
	"errors"
	"fmt"
	"slices"

	"github.com/davit-dpu/davit/firmware/spec"
	"github.com/davit-dpu/davit/firmware/virtio/vhostuser"
)

// session is one front end's use of a device.
type session struct {
	cancel context.CancelCauseFunc
	status vhostuser.Status // guarded by card.mu
}

// serve lets a front end use the device until it goes or ctx ends; on the bus also
// until another one comes. It owns conn.
func (d *device) serve(ctx context.Context, conn vhostuser.Conn, opts vhostuser.Options) {
	ctx, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	me := &session{cancel: cancel}
	if !d.enter(me) {
		_ = conn.Close()
		return
	}
	select {
	case d.turn <- struct{}{}:
	case <-ctx.Done(): // replaced, removed, or the host has gone while the one before still drains
		_ = conn.Close()
		d.ended(ctx, me, ctx.Err())
		return
	}
	d.observe(me, vhostuser.Status{})
	opts.Log = d.noise
	opts.Changed = func(s vhostuser.Status) { d.observe(me, s) }
	err := d.server.Serve(ctx, conn, opts)
	<-d.turn
	d.ended(ctx, me, err)
}

// enter makes me a session of the device, unless that has too many or is removed. On
// the bus it ends the one before.
func (d *device) enter(me *session) bool {
	d.card.mu.Lock()
	defer d.card.mu.Unlock()
	if d.removed {
		return false
	}
	if d.listener == nil {
		d.endSessions(errors.New("another front end connected"))
		d.sessions = nil
	}
	if len(d.sessions) >= vhostuser.MaxSessions {
		d.noise.Warn("front end refused", "err", vhostuser.ErrBusy)
		return false
	}
	d.sessions = append(d.sessions, me)
	return true
}

// endSessions has all sessions end, and does not wait. card.mu is held.
func (d *device) endSessions(why error) {
	for _, s := range d.sessions {
		s.cancel(why)
	}
}

// drain waits until no session uses the device, and keeps all out until reopen. It
// reports false for a device that is gone, which nobody uses any more.
func (d *device) drain(ctx context.Context) (bool, error) {
	if mine, err := d.take(ctx, d.drains); !mine {
		return false, err
	}
	for n := range cap(d.turn) {
		if mine, err := d.take(ctx, d.turn); !mine {
			d.reopen(n)
			return false, err
		}
	}
	return true, nil
}

func (d *device) take(ctx context.Context, turn chan<- struct{}) (bool, error) {
	select {
	case turn <- struct{}{}:
		return true, nil
	case <-d.gone:
		return false, nil
	case <-ctx.Done():
		return false, fmt.Errorf("drain device %s: %w", d.key(), ctx.Err())
	}
}

// reopen gives back n turns that drain took.
func (d *device) reopen(n int) {
	for range n {
		<-d.turn
	}
	<-d.drains
}

// observe notes what vhostuser sees of a session.
func (d *device) observe(me *session, s vhostuser.Status) {
	if s.Stopped != nil {
		d.card.count()
	}
	d.update(me, func() (spec.Phase, string) {
		me.status = s
		return d.served(nil)
	})
}

// served is the state that the device's sessions, but for one that is about to end,
// make: that of the one that runs queues, else of one that waits to, else of the
// newest. card.mu is held.
func (d *device) served(without *session) (spec.Phase, string) {
	var s vhostuser.Status
	successor := ""
	for _, other := range d.sessions {
		if other == without {
			continue
		}
		if rank(other.status) >= rank(s) {
			s = other.status
		}
		if other.status.Waiting > 0 {
			successor = "; its successor waits for them"
		}
	}
	switch {
	case s.Stopped != nil:
		return spec.PhaseFailed, "the guest broke the virtio protocol: " + s.Stopped.Error()
	case s.Running > 0:
		return spec.PhaseReady, fmt.Sprintf("a front end runs %d of %d queues", s.Running, d.req.Queues) + successor
	case s.Waiting > 0:
		return spec.PhaseStarting, fmt.Sprintf("a front end waits with %d queues for the one before to let go of its own", s.Waiting)
	}
	return spec.PhaseStarting, opened
}

// rank orders sessions by how much they say about the device.
func rank(s vhostuser.Status) int {
	switch {
	case s.Stopped != nil || s.Running > 0:
		return 2
	case s.Waiting > 0:
		return 1
	}
	return 0
}

// ended records why a session is over.
func (d *device) ended(ctx context.Context, me *session, err error) {
	phase, reason := spec.PhasePending, "the front end disconnected"
	var broke *vhostuser.MessageError
	switch {
	case errors.As(err, &broke) || errors.Is(err, errViolation):
		d.card.alert("front end broke the vhost-user protocol", "instance", d.req.Instance, "device", d.req.Name, "err", err)
		phase, reason = spec.PhaseFailed, "the front end broke the vhost-user protocol: "+err.Error()
	case err != nil:
		if cause := context.Cause(ctx); cause != nil {
			err = cause
		}
		reason = "the front end is gone: " + err.Error()
	}
	d.update(me, func() (spec.Phase, string) {
		if len(d.sessions) > 1 {
			return d.served(me)
		}
		return phase, reason
	})
	d.card.mu.Lock()
	defer d.card.mu.Unlock()
	d.sessions = slices.DeleteFunc(d.sessions, func(s *session) bool { return s == me })
}
