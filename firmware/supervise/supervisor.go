// SPDX-License-Identifier: Apache-2.0

package supervise

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"syscall"
	"time"

	"github.com/davit-dpu/davit/firmware/spec"
	"github.com/davit-dpu/davit/firmware/state"
)

// ErrGaveUp says that the restart policy allows no further start.
var ErrGaveUp = errors.New("gave up")

// ErrDetach, as the cause of a cancelled context, makes Supervisor.Run leave
// its child running: the next supervisor adopts it.
var ErrDetach = errors.New("child is left running")

// Process is a running process: a Child or an Adopted.
type Process interface {
	Identity() Identity
	Ready() <-chan struct{}
	Done() <-chan struct{}
	Exit() Exit
	Signal(syscall.Signal) error
}

// Config is what a Supervisor needs.
type Config struct {
	Name string // for logs and reasons
	// Start starts the child anew; called for each start, so that each gets
	// fresh descriptors. Its error counts as a failed start.
	Start func(ctx context.Context) (Process, error)
	// Adopt, when set, is a process that runs already: it is watched first.
	Adopt  Process
	Policy Policy
	// ReadyWithin is how long a start may take until it is ready before the
	// child is ended as failed; zero: for ever.
	ReadyWithin time.Duration
	Grace       time.Duration // between SIGTERM and SIGKILL
	Log         *slog.Logger
}

// Status is what a Supervisor reports.
type Status struct {
	// Phase is pending (a restart is due), starting, ready, stopping, stopped
	// or failed (gave up).
	spec.Condition
	Identity Identity // of the running process; zero when none runs
	Restarts int      // starts after the first
	LastExit string   // how it last ended; empty when it never has
	Cooling  bool     // pending because the restart budget was used up
}

// Supervisor keeps one child running. Make it with New.
type Supervisor struct {
	cfg     Config
	status  state.Cell[Status]
	current Status // of Run's goroutine
	history History
}

// New checks the configuration.
func New(cfg Config) (*Supervisor, error) {
	if cfg.Name == "" || cfg.Start == nil || cfg.Log == nil {
		return nil, errors.New("supervisor needs Name, Start and Log")
	}
	if err := cfg.Policy.Validate(); err != nil {
		return nil, fmt.Errorf("supervisor of %s: %w", cfg.Name, err)
	}
	s := &Supervisor{cfg: cfg}
	s.set(spec.PhasePending, "not started yet")
	return s, nil
}

// Status gives the newest status and a channel that is closed at the next.
func (s *Supervisor) Status() (Status, <-chan struct{}) { return s.status.Get() }

// Run keeps the child running until ctx ends, then stops it and returns nil
// (see ErrDetach). It returns ErrGaveUp with the reason when the policy does
// not allow another start. Call it once.
func (s *Supervisor) Run(ctx context.Context) error {
	for {
		started := time.Now()
		exit, over := s.once(ctx)
		if over {
			return nil
		}
		s.current.LastExit = exit.String()
		d := s.history.Next(s.cfg.Policy, started, time.Now())
		reason := fmt.Sprintf("%s; %s", exit, d.Reason)
		if d.Action == GiveUp {
			s.set(spec.PhaseFailed, reason)
			s.cfg.Log.Error("child ended, no further restart", "child", s.cfg.Name, "exit", exit.String(), "reason", d.Reason)
			return fmt.Errorf("%s: %w: %s", s.cfg.Name, ErrGaveUp, reason)
		}
		s.current.Cooling = d.Action == Cool
		s.set(spec.PhasePending, reason)
		s.cfg.Log.Warn("child ended", "child", s.cfg.Name, "exit", exit.String(), "next", d.Reason)
		if !sleep(ctx, d.After) {
			s.set(spec.PhaseStopped, "stopped before its restart")
			return nil
		}
		s.current.Restarts++
		s.current.Cooling = false
	}
}

// once runs the child once. over says that ctx has ended and the child was
// stopped, or left.
func (s *Supervisor) once(ctx context.Context) (e Exit, over bool) {
	p, how := s.cfg.Adopt, "adopted"
	s.cfg.Adopt = nil
	if p == nil {
		if ctx.Err() != nil {
			s.set(spec.PhaseStopped, "stopped before its start")
			return Exit{}, true
		}
		s.set(spec.PhaseStarting, "being started")
		var err error
		if p, err = s.cfg.Start(ctx); err != nil {
			return Exit{Code: -1, Detail: err.Error()}, false
		}
		how = "started"
	}
	s.current.Identity = p.Identity()
	s.set(spec.PhaseStarting, how+", not ready yet")
	s.cfg.Log.Info("child "+how, "child", s.cfg.Name, "pid", p.Identity().PID)
	return s.watch(ctx, p)
}

func (s *Supervisor) watch(ctx context.Context, p Process) (e Exit, over bool) {
	ready := p.Ready()
	var late <-chan time.Time
	if s.cfg.ReadyWithin > 0 {
		t := time.NewTimer(s.cfg.ReadyWithin)
		defer t.Stop()
		late = t.C
	}
	for {
		select {
		case <-p.Done():
			return p.Exit(), false
		case <-ready:
			ready, late = nil, nil
			s.set(spec.PhaseReady, "ready")
			s.cfg.Log.Info("child ready", "child", s.cfg.Name, "pid", p.Identity().PID)
		case <-late:
			s.set(spec.PhaseStopping, fmt.Sprintf("not ready within %v", s.cfg.ReadyWithin))
			e := Stop(ctx, p, s.cfg.Grace)
			e.Detail = fmt.Sprintf("not ready within %v", s.cfg.ReadyWithin)
			return e, false
		case <-ctx.Done():
			s.end(ctx, p)
			return Exit{}, true
		}
	}
}

func (s *Supervisor) end(ctx context.Context, p Process) {
	if errors.Is(context.Cause(ctx), ErrDetach) {
		s.cfg.Log.Info("child left running", "child", s.cfg.Name, "pid", p.Identity().PID)
		return
	}
	s.set(spec.PhaseStopping, "asked to stop")
	exit := Stop(context.WithoutCancel(ctx), p, s.cfg.Grace)
	s.current.Identity = Identity{}
	s.current.LastExit = exit.String()
	s.set(spec.PhaseStopped, "stopped: "+exit.String())
	s.cfg.Log.Info("child stopped", "child", s.cfg.Name, "exit", exit.String())
}

func (s *Supervisor) set(p spec.Phase, reason string) {
	if p == spec.PhasePending || p == spec.PhaseFailed || p == spec.PhaseStopped {
		s.current.Identity = Identity{}
	}
	s.current.Condition = spec.Condition{Phase: p, Reason: reason, Since: time.Now()}
	s.status.Set(s.current)
}

// sleep waits; it says no when ctx ended first.
func sleep(ctx context.Context, d time.Duration) bool {
	t := time.NewTimer(d)
	defer t.Stop()
	select {
	case <-t.C:
		return true
	case <-ctx.Done():
		return false
	}
}
