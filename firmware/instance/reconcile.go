// SPDX-License-Identifier: Apache-2.0

package instance

import (
	"context"
	"errors"
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
	if !r.rec.Ran {
		return viewGone, spec.VMMStatus{Reason: "the host has no vmm of it, and knows of none that ended"}
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
	if v == viewRunning {
		r.ran()
		r.ruledOut = time.Time{}
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
		return sooner(r.reconcileStop(ctx), r.keepDevices(ctx, obs)) // its guest has still to write
	}
	return r.reconcileGone(ctx, obs, vmm)
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
	if v, ok := r.svc.stray(obs); ok {
		r.phase(spec.PhasePending, fmt.Sprintf("waits: the host runs a vmm of instance %s in memory that no record accounts for; "+
			"it is killed unless the record of %s cannot be read: delete that instance then", v.Instance, v.Instance))
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
// the memory stays reserved and the next observation decides: what was started
// nevertheless is adopted.
func (r *runner) failStart(ctx context.Context, err error) time.Time {
	v := verdict{phase: spec.PhaseFailed, reason: fmt.Sprintf("start: %v", err), again: r.spec.Restart != "" && r.spec.Restart != spec.RestartNever}
	if errors.Is(err, ErrHostLost) {
		r.startedAt = r.svc.cfg.Now() // what was seen before tells nothing of it
		r.phase(spec.PhaseUnknown, v.reason+"; whether the vmm was started is not known")
		return time.Time{}
	}
	if r.rec.Generation != "" {
		if kill := r.kill(ctx); kill != nil {
			r.startedAt = r.svc.cfg.Now()
			r.phase(spec.PhaseUnknown, v.reason+"; undoing it: "+kill.Error())
			return time.Time{}
		}
	}
	if undo := r.conclude(ctx, v); undo != nil {
		r.phase(spec.PhaseUnknown, v.reason+"; undoing it: "+undo.Error())
		return r.later()
	}
	return r.tell(v)
}

// verdict is what becomes of an instance whose VMM is gone.
type verdict struct {
	phase  spec.Phase
	reason string
	again  bool // it is started again
	unrun  bool // the order for the VMM was lost: the next try is no restart
}

func (v verdict) apply(next *record) {
	switch {
	case !v.again:
		next.Desired = spec.PhaseStopped // a later agent must not start it either
	case !v.unrun:
		next.Restarts++
	}
	if v.again || v.phase == spec.PhaseFailed {
		next.Failure = v.reason
	}
}

// conclude stores a verdict, and with it that the VMM's memory is free.
func (r *runner) conclude(ctx context.Context, v verdict) error {
	if r.rec.Generation != "" {
		return r.release(ctx, v.apply)
	}
	next := r.rec
	v.apply(&next)
	return r.save(next)
}

// tell publishes a verdict and plans the next try, or none.
func (r *runner) tell(v verdict) time.Time {
	if !v.again {
		r.phase(v.phase, v.reason)
		return time.Time{}
	}
	at := r.later()
	r.phase(spec.PhaseFailed, fmt.Sprintf("%s; next try in %v", v.reason, r.backoff))
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
	devices := obs.devices(r.spec.Name)
	again := r.keepLimits(ctx, devices)
	if len(devices) == len(r.spec.Volumes) {
		r.lacks = ""
		return again
	}
	call, cancel := context.WithTimeout(ctx, stopTimeout)
	defer cancel()
	err := r.addDevices(call, false)
	if err == nil || ctx.Err() != nil {
		r.lacks = ""
		return again
	}
	if why := "; they cannot be given back: " + err.Error(); why != r.lacks {
		r.lacks = why
		r.svc.cfg.Log.Warn("give the disks back to the vcard", "instance", r.spec.Name, "err", err)
	}
	return r.svc.cfg.Now().Add(firstRetry)
}

func (r *runner) reconcileRunning(ctx context.Context, obs *Observation, vmm spec.VMMStatus) time.Time {
	if r.startedAt.IsZero() {
		r.startedAt = obs.At
	}
	r.stopBy, r.askAt = time.Time{}, time.Time{}
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
		r.phase(spec.PhaseUnknown, fmt.Sprintf("vmm runs, but only %d of %d disks are attached: its I/O waits", attached, want)+r.lacks)
	}
	return r.keepDevices(ctx, obs)
}

// reconcileStop asks the guest to power down, again and again: one that still
// boots does not hear it, and one that goes down already does not mind. It kills
// the VMM when the time given to the guest is over, and repeats the kill until
// the host says that it is gone.
func (r *runner) reconcileStop(ctx context.Context) time.Time {
	now := r.svc.cfg.Now()
	if r.stopBy.IsZero() {
		r.stopBy, r.askAt = now.Add(r.rec.grace()), now
	}
	if !now.Before(r.stopBy) {
		r.stopBy = now.Add(stopTimeout)
		r.phase(spec.PhaseStopping, "killing its vmm")
		if err := r.kill(ctx); err != nil && ctx.Err() == nil {
			r.phase(spec.PhaseStopping, fmt.Sprintf("killing its vmm: %v; tried again in %v", err, stopTimeout))
		}
		return r.stopBy
	}
	if now.Before(r.askAt) {
		return sooner(r.askAt, r.stopBy)
	}
	call, cancel := context.WithTimeout(ctx, min(stopTimeout, r.stopBy.Sub(now)))
	defer cancel()
	if err := r.svc.cfg.Host.StopVMM(call, r.spec.Name, r.rec.Generation, false); err != nil {
		r.phase(spec.PhaseStopping, fmt.Sprintf("the guest cannot be asked to power down: %v; killed %v after the stop", err, r.rec.grace()))
		r.askAt = now.Add(firstRetry)
		return sooner(r.askAt, r.stopBy)
	}
	r.askAt = now.Add(askAgain)
	r.phase(spec.PhaseStopping, fmt.Sprintf("asked the guest to power down; killed after %v", r.rec.grace()))
	return sooner(r.askAt, r.stopBy)
}

// sooner is the earlier of two times to look again; zero is never.
func sooner(a, b time.Time) time.Time {
	if a.IsZero() || !b.IsZero() && b.Before(a) {
		return b
	}
	return a
}

func (r *runner) reconcileGone(ctx context.Context, obs *Observation, vmm spec.VMMStatus) time.Time {
	if vmm.State == "" && (r.ruledOut.IsZero() || obs.At.Before(r.ruledOut)) {
		return r.ruleOut(ctx)
	}
	if !r.startedAt.IsZero() && r.svc.cfg.Now().Sub(r.startedAt) > stable {
		r.backoff = 0
	}
	v := r.judge(vmm)
	if err := r.conclude(ctx, v); err != nil {
		r.phase(spec.PhaseUnknown, "vmm is gone; taking its disks down: "+err.Error())
		return r.svc.cfg.Now().Add(firstRetry)
	}
	return r.tell(v)
}

// ruleOut makes sure of a VMM of which the host says nothing: the order of an
// agent that died, or of an earlier connection, may be under way there. What is
// seen after the kill is the truth: nothing, or how the VMM ended after all.
func (r *runner) ruleOut(ctx context.Context) time.Time {
	if err := r.kill(ctx); err != nil {
		r.phase(spec.PhaseUnknown, "the host does not have its vmm, and does not say that it never will: "+err.Error())
		return r.svc.cfg.Now().Add(firstRetry)
	}
	r.ruledOut = r.svc.cfg.Now()
	r.phase(spec.PhaseUnknown, "the host does not have its vmm, and was told to start none")
	return time.Time{}
}

// judge decides what becomes of an instance whose VMM is gone.
func (r *runner) judge(vmm spec.VMMStatus) verdict {
	if r.rec.Desired == spec.PhaseStopped {
		return verdict{phase: spec.PhaseStopped, reason: "stopped as asked: " + vmm.Reason}
	}
	policy := r.spec.Restart
	again := policy == spec.RestartAlways || policy == spec.RestartOnFailure && !vmm.Clean
	switch {
	case vmm.Clean:
		return verdict{phase: spec.PhaseStopped, reason: "the guest shut itself down", again: again}
	case vmm.State == "" && !r.rec.Ran:
		return verdict{phase: spec.PhaseFailed, reason: "start: the order was not carried out: " + vmm.Reason, again: again, unrun: true}
	}
	return verdict{phase: spec.PhaseFailed, reason: "vmm exited: " + vmm.Reason, again: again}
}
