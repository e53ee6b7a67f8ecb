// SPDX-License-Identifier: Apache-2.0

package instance

import (
	"context"
	"crypto/rand"
	"encoding/hex"
	"fmt"
	"os"
	"path/filepath"
	"sync"
	"syscall"
	"time"

	"github.com/davit-dpu/davit/firmware/spec"
)

// Time limits. A host that does not answer within them is treated as one that
// refused; the way back is taken.
const (
	startTimeout = 2 * time.Minute // scrubbing and staging of large memories included
	stopTimeout  = 10 * time.Second
	askAgain     = 5 * time.Second // between two requests to power down
	MaxGrace     = time.Hour       // for a guest's own shutdown
	firstRetry   = time.Second
	lastRetry    = time.Minute
	stable       = 5 * time.Minute // a VMM that ran this long starts with a fresh backoff
)

// wish is what an operator asks of a runner.
type wish struct {
	phase  spec.Phase
	grace  time.Duration
	remove bool
	limit  *limitWish
	reply  chan error
}

// runner owns one instance. All fields without a note belong to its goroutine.
type runner struct {
	svc    *Service
	spec   spec.Instance // as created; the limits of its volumes change, and only rec has them
	wishes chan wish
	gone   chan struct{} // closed when the instance has been removed

	rec       record
	startedAt time.Time // when the VMM was last ordered or adopted
	ruledOut  time.Time // when the host agreed that it has no such VMM and will start none; zero: not asked
	retryAt   time.Time
	backoff   time.Duration
	stopBy    time.Time // when the VMM is killed (again); zero: it is not being stopped
	askAt     time.Time // while it is being stopped: when the guest is asked (again) to power down
	lastSeen  string    // how it was when it could be seen; empty while it can
	lacks     string    // why the vcard could not be given its disks back; empty when it could

	mu          sync.Mutex
	status      spec.InstanceStatus // guarded by mu
	cancelStart context.CancelFunc  // guarded by mu; while a start is under way
	stops       int                 // guarded by mu; wishes to stop that wait
}

func newRunner(s *Service, rec record) *runner {
	r := &runner{svc: s, spec: rec.Spec, rec: rec, wishes: make(chan wish), gone: make(chan struct{})}
	r.status = spec.InstanceStatus{Spec: rec.Spec, Restarts: rec.Restarts}
	switch {
	case rec.Generation == "" && rec.Failure != "":
		r.phase(spec.PhaseFailed, rec.Failure+" (before the agent started)")
	case rec.Generation == "":
		r.phase(spec.PhaseStopped, "not started")
	default:
		r.phase(spec.PhaseUnknown, "found in the card's records; the host has not been asked yet")
		r.lastSeen = "not seen since the agent started"
	}
	return r
}

func (r *runner) show() spec.InstanceStatus {
	r.mu.Lock()
	defer r.mu.Unlock()
	st := r.status
	if st.Generation != "" { // else they are gone, whatever was seen last
		obs, _ := r.svc.seen.Get()
		st.Devices = obs.devices(r.spec.Name)
	}
	return st
}

func (r *runner) generation() string {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.status.Generation
}

// phase publishes the instance's condition; a repeated one keeps its time.
func (r *runner) phase(p spec.Phase, reason string) {
	r.mu.Lock()
	defer r.mu.Unlock()
	st := &r.status
	st.Desired, st.Generation, st.PoolOffset, st.Restarts = r.rec.Desired, r.rec.Generation, r.rec.PoolOffset, r.rec.Restarts
	if st.Phase == p && st.Reason == reason {
		return
	}
	if st.Phase != p {
		r.svc.cfg.Log.Info("instance", "name", r.spec.Name, "phase", p, "reason", reason)
	}
	st.Condition = spec.Condition{Phase: p, Reason: reason, Since: r.svc.cfg.Now()}
}

// want hands a wish to the loop and waits until it is stored. A stop ends a
// start that is under way.
func (r *runner) want(ctx context.Context, w wish) error {
	w.reply = make(chan error, 1)
	if w.phase == spec.PhaseStopped {
		r.stopWaits(1)
	}
	select {
	case r.wishes <- w:
		return <-w.reply
	case <-r.gone:
		return fmt.Errorf("instance %s: %w", r.spec.Name, ErrNotFound)
	case <-ctx.Done():
		if w.phase == spec.PhaseStopped {
			r.stopWaits(-1)
		}
		return fmt.Errorf("instance %s: it is busy: %w", r.spec.Name, context.Cause(ctx))
	}
}

// stopWaits counts the wishes to stop; one that waits ends a start.
func (r *runner) stopWaits(n int) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.stops += n; r.stops > 0 && r.cancelStart != nil {
		r.cancelStart()
	}
}

func (r *runner) loop(ctx context.Context) {
	for {
		obs, changed := r.svc.seen.Get()
		wake := r.reconcile(ctx, &obs)
		timer := time.NewTimer(time.Until(wake))
		if wake.IsZero() {
			timer.Stop()
		}
		select {
		case <-ctx.Done():
			timer.Stop()
			return
		case w := <-r.wishes:
			err := r.grant(ctx, w)
			w.reply <- err
			if w.remove && err == nil {
				close(r.gone)
				timer.Stop()
				return
			}
		case <-changed:
		case <-timer.C:
		}
		timer.Stop()
	}
}

// grant stores a wish.
func (r *runner) grant(ctx context.Context, w wish) error {
	if w.limit != nil {
		return r.grantLimit(ctx, w.limit)
	}
	if w.remove {
		if r.rec.Generation != "" || r.rec.Desired != spec.PhaseStopped {
			return fmt.Errorf("instance %s: %w; stop it first", r.spec.Name, ErrBusy)
		}
		return r.svc.store.remove(r.spec.Name)
	}
	if w.phase == spec.PhaseStopped {
		r.stopWaits(-1)
	} else if !r.stopBy.IsZero() {
		return fmt.Errorf("instance %s: %w; it is being stopped: start it when it has", r.spec.Name, ErrBusy)
	}
	next := r.rec
	next.Desired = w.phase
	if w.phase == spec.PhaseRunning && r.rec.Desired != spec.PhaseRunning {
		next.Restarts = 0
	}
	next.Grace = nil
	if w.phase == spec.PhaseStopped {
		next.Failure = ""
		if next.Generation != "" {
			next.Grace = &w.grace
		}
	}
	failure := r.rec.Failure
	if err := r.save(next); err != nil {
		return err
	}
	r.retryAt, r.backoff = time.Time{}, 0
	if w.phase != spec.PhaseStopped {
		return nil
	}
	switch {
	case !r.stopBy.IsZero():
		r.stopBy = r.svc.cfg.Now().Add(w.grace)
	case next.Generation == "" && failure != "":
		r.phase(spec.PhaseStopped, "stopped as asked; it had failed: "+failure)
	}
	return nil
}

// save stores the record and then makes it the one in force.
func (r *runner) save(next record) error {
	if err := r.svc.store.save(&next); err != nil {
		return err
	}
	r.rec = next
	r.mu.Lock()
	r.status.Spec = next.Spec
	r.status.Desired, r.status.Generation, r.status.PoolOffset = next.Desired, next.Generation, next.PoolOffset
	r.mu.Unlock()
	return nil
}

// start takes the steps of a start in order and undoes them all on an error.
func (r *runner) start(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(ctx, startTimeout)
	defer cancel()
	r.mu.Lock()
	r.cancelStart = cancel
	r.mu.Unlock()
	r.stopWaits(0) // one may have come before there was something to cancel
	defer func() {
		r.mu.Lock()
		r.cancelStart = nil
		r.mu.Unlock()
	}()
	offset, err := r.svc.pool.take(r.spec.Name, r.spec.Memory)
	if err != nil {
		return err
	}
	next := r.rec
	next.Generation, next.PoolOffset, next.Failure = newGeneration(), offset, ""
	if err := r.save(next); err != nil {
		r.svc.pool.give(r.spec.Name)
		return err
	}
	if err := r.order(ctx); err != nil {
		return err
	}
	r.startedAt = r.svc.cfg.Now()
	r.ran()
	return nil
}

// ran keeps that the order was carried out: a VMM of which the host knows nothing
// any more is then one that ended with it, and not one that never was.
func (r *runner) ran() {
	if r.rec.Ran {
		return
	}
	next := r.rec
	next.Ran = true
	if err := r.save(next); err != nil { // no reason to end what runs
		r.svc.cfg.Log.Warn("the record does not say that the vmm runs", "instance", r.spec.Name, "err", err)
	}
	r.rec = next
}

// order gives the host its part: devices first, all or none, then the VMM.
func (r *runner) order(ctx context.Context) error {
	if err := r.addDevices(ctx, true); err != nil {
		return err
	}
	kernel, initrd, err := r.openBoot()
	if err != nil {
		return err
	}
	defer closeAll(kernel, initrd)
	o := spec.VMMOrder{
		Instance: r.spec.Name, Generation: r.rec.Generation, VCPUs: r.spec.VCPUs,
		Memory: r.spec.Memory, PoolOffset: r.rec.PoolOffset, Cmdline: r.spec.Boot.Cmdline,
	}
	if kernel == nil {
		o.Firmware = spec.FirmwareBIOS
		if r.spec.Boot.Firmware != "" {
			o.Firmware = r.spec.Boot.Firmware
		}
	}
	for i := range r.spec.Volumes {
		v := &r.spec.Volumes[i]
		o.Disks = append(o.Disks, spec.VMMDisk{Device: v.Name, Queues: v.QueueCount()})
	}
	return r.svc.cfg.Host.StartVMM(ctx, o, kernel, initrd)
}

// addDevices offers every disk of the instance. Only a start makes volumes that
// are not there: a guest that runs must not find an empty disk in place of its
// own. It is repeated whenever the
// vcard has lost them.
func (r *runner) addDevices(ctx context.Context, create bool) error {
	for i := range r.spec.Volumes {
		v := r.rec.Spec.Volumes[i]
		files, err := r.svc.volumes.open(&v, create)
		if err != nil {
			return err
		}
		d := Device{Instance: r.spec.Name, Generation: r.rec.Generation, Volume: v, MemoryOffset: r.rec.PoolOffset, MemorySize: r.spec.Memory}
		err = r.svc.cfg.Host.AddDevice(ctx, d, files)
		files.Close()
		if err != nil {
			return fmt.Errorf("add disk %s: %w", v.Name, err)
		}
	}
	return nil
}

func (r *runner) openBoot() (kernel, initrd *os.File, err error) {
	b := r.spec.Boot
	if b.Kernel == "" {
		return nil, nil, nil
	}
	if kernel, err = r.openBootFile(b.Kernel); err != nil {
		return nil, nil, err
	}
	if b.Initrd != "" {
		if initrd, err = r.openBootFile(b.Initrd); err != nil {
			kernel.Close()
			return nil, nil, err
		}
	}
	return kernel, initrd, nil
}

func (r *runner) openBootFile(name string) (*os.File, error) {
	f, err := os.OpenFile(filepath.Join(r.svc.bootDir(), name), os.O_RDONLY|syscall.O_NOFOLLOW, 0)
	if err != nil {
		return nil, fmt.Errorf("boot file %s: %w", name, err)
	}
	return f, nil
}

// kill has the VMM killed. Without an error it is gone, and an order for it that
// was still under way will not start it: the host takes one order after the other.
func (r *runner) kill(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(ctx, stopTimeout)
	defer cancel()
	return r.svc.cfg.Host.StopVMM(ctx, r.spec.Name, r.rec.Generation, true)
}

// release takes the devices down and frees the memory of a VMM that is gone. It
// stores that together with what change makes of the record: an agent that dies
// must not leave one without the other.
func (r *runner) release(ctx context.Context, change func(*record)) error {
	ctx, cancel := context.WithTimeout(ctx, stopTimeout)
	defer cancel()
	for i := range r.spec.Volumes {
		if err := r.svc.cfg.Host.RemoveDevice(ctx, r.spec.Name, r.spec.Volumes[i].Name); err != nil {
			return fmt.Errorf("remove disk %s: %w", r.spec.Volumes[i].Name, err)
		}
	}
	next := r.rec
	next.Generation, next.PoolOffset, next.Ran, next.Grace = "", 0, false, nil
	change(&next)
	if err := r.save(next); err != nil {
		return err
	}
	r.svc.pool.give(r.spec.Name)
	r.stopBy, r.startedAt, r.askAt, r.ruledOut = time.Time{}, time.Time{}, time.Time{}, time.Time{}
	return nil
}

func newGeneration() string {
	var b [16]byte
	rand.Read(b[:]) // never returns an error
	return hex.EncodeToString(b[:])
}

func closeAll(files ...*os.File) {
	for _, f := range files {
		if f != nil {
			f.Close()
		}
	}
}
