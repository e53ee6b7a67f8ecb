// SPDX-License-Identifier: Apache-2.0

package instance

import (
	"context"
	"fmt"
	"time"

	"github.com/davit-dpu/davit/firmware/spec"
)

// view is what an observation says of the ordered VMM.
type view int

const (
	viewNone    view = iota // none was ordered
	viewBlind               // vcard or host not there, or the answer is older than the order
	viewRunning             // the host says that it runs
	viewGone                // the host says that it exited, or does not know it
)

func (r *runner) view(obs *Observation) (view, spec.VMMStatus) {
	if r.rec.Generation == "" {
		return viewNone, spec.VMMStatus{}
	}
	if !obs.Serving || !obs.Host || obs.At.Before(r.startedAt) {
		return viewBlind, spec.VMMStatus{}
	}
	v, ok := obs.vmm(r.spec.Name, r.rec.Generation)
	switch {
	case ok && v.State == spec.VMMRunning:
		return viewRunning, v
	case ok:
		return viewGone, v
	}
	return viewGone, spec.VMMStatus{Reason: "the host no longer has it, and gave no report"}
}

// reconcile takes the next step towards what is wanted, and returns when to
// look again; zero: at the next change.
func (r *runner) reconcile(ctx context.Context, obs *Observation) time.Time {
	running := r.rec.Desired == spec.PhaseRunning
	v, vmm := r.view(obs)
	if v != viewBlind {
		r.lastSeen = ""
	}
	switch {
	case v == viewNone && running:
		return r.reconcileStart(ctx, obs)
	case v == viewNone:
		if p := r.show().Phase; p != spec.PhaseFailed && p != spec.PhaseStopped {
			r.phase(spec.PhaseStopped, "stopped as asked")
		}
		return time.Time{}
	case v == viewBlind:
		return r.reconcileBlind(ctx, obs)
	case v == viewRunning && running:
		return r.reconcileRunning(ctx, obs, vmm)
	case v == viewRunning:
		return r.reconcileStop(ctx)
	}
	return r.reconcileGone(ctx, vmm)
}

func (r *runner) reconcileStart(ctx context.Context, obs *Observation) time.Time {
	now := r.svc.cfg.Now()
	if now.Before(r.retryAt) {
		return r.retryAt
	}
	if !obs.Serving || !obs.Host {
		r.phase(spec.PhasePending, "waits: "+obs.Reason)
		return time.Time{}
	}
	r.phase(spec.PhaseStarting, "ordering the host to start it")
	err := r.start(ctx)
	if ctx.Err() != nil {
		return time.Time{} // the agent ends; what was ordered is in the record
	}
	if err == nil {
		r.phase(spec.PhaseStarting, "the host started its vmm")
		return time.Time{}
	}
	return r.failStart(ctx, err)
}

// failStart undoes a start. When the host cannot say that no VMM was started,
// the memory stays reserved and the next observation decides.
func (r *runner) failStart(ctx context.Context, err error) time.Time {
	reason := fmt.Sprintf("start: %v", err)
	if r.rec.Generation != "" {
		call, cancel := context.WithTimeout(ctx, stopTimeout)
		defer cancel()
		if kill := r.svc.cfg.Host.StopVMM(call, r.spec.Name, r.rec.Generation, true); kill != nil {
			r.startedAt = r.svc.cfg.Now()
			r.phase(spec.PhaseUnknown, reason+"; undoing it: "+kill.Error())
			return time.Time{}
		}
		if undo := r.release(ctx); undo != nil {
			r.phase(spec.PhaseUnknown, reason+"; undoing it: "+undo.Error())
			return r.later()
		}
	}
	return r.fail(spec.PhaseFailed, reason, r.spec.Restart != "" && r.spec.Restart != spec.RestartNever)
}

// fail publishes a failure and plans the next try, or none.
func (r *runner) fail(p spec.Phase, reason string, again bool) time.Time {
	next := r.rec
	if !again {
		next.Desired = spec.PhaseStopped // a later agent must not start it either
	} else {
		next.Restarts++
	}
	if err := r.save(next); err != nil {
		r.phase(spec.PhaseFailed, reason+"; "+err.Error())
		return r.later()
	}
	if !again {
		r.phase(p, reason)
		return time.Time{}
	}
	at := r.later()
	r.phase(spec.PhaseFailed, fmt.Sprintf("%s; next try in %v", reason, r.backoff))
	return at
}

// later doubles the wait before the next try.
func (r *runner) later() time.Time {
	r.backoff = min(max(2*r.backoff, firstRetry), lastRetry)
	r.retryAt = r.svc.cfg.Now().Add(r.backoff)
	return r.retryAt
}

func (r *runner) reconcileBlind(ctx context.Context, obs *Observation) time.Time {
	reason := obs.Reason
	if obs.Serving && obs.Host {
		return time.Time{} // ordered a moment ago; the next observation will tell
	}
	if r.lastSeen == "" {
		// Kept from here on: what is reported now is no longer what is seen.
		switch p := r.show(); p.Phase {
		case spec.PhaseUnknown:
			r.lastSeen = "last seen: " + p.Reason
		default:
			r.lastSeen = "last seen " + string(p.Phase)
		}
	}
	r.phase(spec.PhaseUnknown, reason+"; "+r.lastSeen)
	if obs.Serving {
		return r.keepDevices(ctx, obs)
	}
	return time.Time{}
}

// keepDevices gives a vcard that was restarted the disks that it lost, also
// while the host is away: its front ends must find them when it comes back.
func (r *runner) keepDevices(ctx context.Context, obs *Observation) time.Time {
	if len(obs.devices(r.spec.Name)) == len(r.spec.Volumes) {
		return time.Time{}
	}
	call, cancel := context.WithTimeout(ctx, stopTimeout)
	defer cancel()
	if err := r.addDevices(call); err != nil && ctx.Err() == nil {
		r.svc.cfg.Log.Warn("give the disks back to the vcard", "instance", r.spec.Name, "err", err)
		return r.svc.cfg.Now().Add(firstRetry)
	}
	return time.Time{}
}

func (r *runner) reconcileRunning(ctx context.Context, obs *Observation, vmm spec.VMMStatus) time.Time {
	if r.startedAt.IsZero() {
		r.startedAt = obs.At
	}
	r.stopBy = time.Time{}
	attached := 0
	for _, d := range obs.devices(r.spec.Name) {
		// starting: the front end is there, and no driver in the guest yet
		if d.Phase == spec.PhaseReady || d.Phase == spec.PhaseStarting {
			attached++
		}
	}
	switch want := len(r.spec.Volumes); {
	case attached == want:
		r.phase(spec.PhaseRunning, fmt.Sprintf("vmm runs, %d of %d disks attached", attached, want))
	case r.show().Phase == spec.PhaseStarting:
		r.phase(spec.PhaseStarting, fmt.Sprintf("vmm runs, %d of %d disks attached", attached, want))
	default:
		r.phase(spec.PhaseUnknown, fmt.Sprintf("vmm runs, but only %d of %d disks are attached: its I/O waits", attached, want))
	}
	return r.keepDevices(ctx, obs)
}

// reconcileStop asks the guest to power down, kills its VMM when the time given
// to it is over, and repeats the kill until the host says that it is gone.
func (r *runner) reconcileStop(ctx context.Context) time.Time {
	now := r.svc.cfg.Now()
	if now.Before(r.stopBy) {
		return r.stopBy
	}
	force := !r.stopBy.IsZero() || r.grace == 0
	if force {
		r.stopBy = now.Add(stopTimeout)
		r.phase(spec.PhaseStopping, "killing its vmm")
	} else {
		r.stopBy = now.Add(r.grace)
		r.phase(spec.PhaseStopping, fmt.Sprintf("asked the guest to power down; killed after %v", r.grace))
	}
	call, cancel := context.WithTimeout(ctx, stopTimeout)
	defer cancel()
	if err := r.svc.cfg.Host.StopVMM(call, r.spec.Name, r.rec.Generation, force); err != nil {
		r.svc.cfg.Log.Warn("stop vmm", "instance", r.spec.Name, "force", force, "err", err)
	}
	return r.stopBy
}

func (r *runner) reconcileGone(ctx context.Context, vmm spec.VMMStatus) time.Time {
	if !r.startedAt.IsZero() && r.svc.cfg.Now().Sub(r.startedAt) > stable {
		r.backoff = 0
	}
	if err := r.release(ctx); err != nil {
		r.phase(spec.PhaseUnknown, "vmm is gone; taking its disks down: "+err.Error())
		return r.svc.cfg.Now().Add(firstRetry)
	}
	if r.rec.Desired == spec.PhaseStopped {
		r.phase(spec.PhaseStopped, "stopped as asked: "+vmm.Reason)
		return time.Time{}
	}
	policy := r.spec.Restart
	again := policy == spec.RestartAlways || policy == spec.RestartOnFailure && !vmm.Clean
	if vmm.Clean {
		return r.fail(spec.PhaseStopped, "the guest shut itself down", again)
	}
	return r.fail(spec.PhaseFailed, "vmm exited: "+vmm.Reason, again)
}
