// SPDX-License-Identifier: Apache-2.0

package supervise

import (
	"context"
	"errors"
	"io"
	"log/slog"
	"os"
	"strings"
	"sync"
	"syscall"
	"testing"
	"testing/synctest"
	"time"

	"github.com/davit-dpu/davit/firmware/spec"
)

// fake is a process without a kernel.
type fake struct {
	id       Identity
	stubborn bool // ignores SIGTERM
	ready    chan struct{}
	done     chan struct{}

	mu      sync.Mutex
	exit    Exit             // guarded by mu
	ended   bool             // guarded by mu
	signals []syscall.Signal // guarded by mu
}

func newFake(pid int) *fake {
	return &fake{id: Identity{PID: pid}, ready: make(chan struct{}), done: make(chan struct{})}
}

// live makes the fake ready, and ends it, in time.
func (f *fake) live(readyAfter, up time.Duration, e Exit) *fake {
	go func() {
		if readyAfter > 0 {
			time.Sleep(readyAfter)
			close(f.ready)
		}
		t := time.NewTimer(up - readyAfter)
		defer t.Stop()
		select {
		case <-t.C:
			f.end(e)
		case <-f.done:
		}
	}()
	return f
}

func (f *fake) end(e Exit) {
	f.mu.Lock()
	defer f.mu.Unlock()
	if !f.ended {
		f.ended, f.exit = true, e
		close(f.done)
	}
}

func (f *fake) Identity() Identity     { return f.id }
func (f *fake) Ready() <-chan struct{} { return f.ready }
func (f *fake) Done() <-chan struct{}  { return f.done }
func (f *fake) Exit() Exit {
	<-f.done
	f.mu.Lock()
	defer f.mu.Unlock()
	return f.exit
}

func (f *fake) Signal(s syscall.Signal) error {
	f.mu.Lock()
	ended := f.ended
	f.signals = append(f.signals, s)
	f.mu.Unlock()
	if ended {
		return os.ErrProcessDone
	}
	if s == syscall.SIGKILL || !f.stubborn {
		f.end(Exit{Known: true, Code: -1, Signal: s})
	}
	return nil
}

func quietLog() *slog.Logger { return slog.New(slog.NewTextHandler(io.Discard, nil)) }

func newSupervisor(t *testing.T, cfg Config) *Supervisor {
	t.Helper()
	cfg.Name, cfg.Log, cfg.Policy = "child", quietLog(), testPolicy
	s, err := New(cfg)
	if err != nil {
		t.Fatal(err)
	}
	return s
}

func wantPhase(t *testing.T, s *Supervisor, p spec.Phase, reason string) Status {
	t.Helper()
	synctest.Wait()
	got, _ := s.Status()
	if got.Phase != p || !strings.Contains(got.Reason, reason) {
		t.Fatalf("status %+v, want phase %s with %q", got, p, reason)
	}
	return got
}

func TestSupervisorRestartsAndGivesUp(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		var starts []time.Time
		s := newSupervisor(t, Config{Start: func(context.Context) (Process, error) {
			starts = append(starts, time.Now())
			return newFake(len(starts)).live(0, time.Second, Exit{Known: true, Code: 3}), nil
		}})
		began := time.Now()
		err := s.Run(t.Context())
		if !errors.Is(err, ErrGaveUp) || !strings.Contains(err.Error(), "exit code 3") {
			t.Fatalf("Run: %v", err)
		}
		// Up for 1 s each time, then 1, 2, 4 and 5 s of waiting.
		for i, want := range []time.Duration{0, 2, 5, 10, 16} {
			if got := starts[i].Sub(began); got != want*time.Second {
				t.Errorf("start %d after %v, want %v s", i, got, want)
			}
		}
		st := wantPhase(t, s, spec.PhaseFailed, "4 restarts within")
		if st.Restarts != 4 || st.LastExit != "exit code 3" || st.Identity != (Identity{}) {
			t.Errorf("status %+v", st)
		}
	})
}

func TestSupervisorReadiness(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		slow := newFake(1)
		slow.stubborn = true
		children := []*fake{slow, newFake(2).live(time.Second, time.Hour, Exit{})}
		s := newSupervisor(t, Config{ReadyWithin: 10 * time.Second, Grace: 2 * time.Second, Start: func(context.Context) (Process, error) {
			c := children[0]
			children = children[1:]
			return c, nil
		}})
		ctx, cancel := context.WithCancel(t.Context())
		done := make(chan error, 1)
		go func() { done <- s.Run(ctx) }()
		time.Sleep(9 * time.Second)
		wantPhase(t, s, spec.PhaseStarting, "not ready yet")
		time.Sleep(2 * time.Second)
		wantPhase(t, s, spec.PhaseStopping, "not ready within 10s")
		time.Sleep(1500 * time.Millisecond) // killed after the grace of 2 s
		wantPhase(t, s, spec.PhasePending, "not ready within 10s")
		time.Sleep(2 * time.Second)
		if st := wantPhase(t, s, spec.PhaseReady, "ready"); st.Identity.PID != 2 || st.Restarts != 1 {
			t.Errorf("status %+v", st)
		}
		if got := slow.signals; len(got) != 2 || got[0] != syscall.SIGTERM || got[1] != syscall.SIGKILL {
			t.Errorf("signals %v", got)
		}
		cancel()
		if err := <-done; err != nil {
			t.Errorf("Run: %v", err)
		}
		wantPhase(t, s, spec.PhaseStopped, "killed by signal 15")
	})
}

func TestSupervisorDetachAndAdopt(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		child := newFake(7)
		first := newSupervisor(t, Config{Start: func(context.Context) (Process, error) { return child, nil }})
		ctx, cancel := context.WithCancelCause(t.Context())
		done := make(chan error, 1)
		go func() { done <- first.Run(ctx) }()
		synctest.Wait()
		cancel(ErrDetach)
		if err := <-done; err != nil || len(child.signals) != 0 {
			t.Fatalf("detach: %v, signals %v", err, child.signals)
		}
		second := newSupervisor(t, Config{Adopt: child, Start: func(context.Context) (Process, error) { return newFake(8), nil }})
		ctx2, cancel2 := context.WithCancel(t.Context())
		go func() { done <- second.Run(ctx2) }()
		if st := wantPhase(t, second, spec.PhaseStarting, "adopted"); st.Identity.PID != 7 {
			t.Errorf("status %+v", st)
		}
		child.end(Exit{Code: -1})
		time.Sleep(1500 * time.Millisecond)
		if st := wantPhase(t, second, spec.PhaseStarting, "started"); st.Identity.PID != 8 || st.Restarts != 1 {
			t.Errorf("status %+v", st)
		}
		cancel2()
		<-done
	})
}

func TestSupervisorStartFails(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		s := newSupervisor(t, Config{Start: func(context.Context) (Process, error) { return nil, errors.New("exec: no such file") }})
		err := s.Run(t.Context())
		if !errors.Is(err, ErrGaveUp) || !strings.Contains(err.Error(), "no such file") {
			t.Errorf("Run: %v", err)
		}
	})
}

func TestSupervisorStoppedWhileItWaits(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		s := newSupervisor(t, Config{Start: func(context.Context) (Process, error) {
			return newFake(1).live(0, time.Millisecond, Exit{Known: true, Code: 1}), nil
		}})
		ctx, cancel := context.WithTimeout(t.Context(), 500*time.Millisecond)
		defer cancel()
		if err := s.Run(ctx); err != nil {
			t.Errorf("Run: %v", err)
		}
		wantPhase(t, s, spec.PhaseStopped, "before its restart")
	})
}
