// SPDX-License-Identifier: Apache-2.0

package supervise

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"os/signal"
	"sync"
	"syscall"
)

// Reaper collects all dead children of pid 1 (or of a subreaper): its own and
// the orphans. See the package documentation.
type Reaper struct {
	wake chan struct{} // asks Run for a sweep

	mu    sync.Mutex
	owned map[int]chan<- Exit // guarded by mu; children started through this Reaper
	empty []chan struct{}     // guarded by mu; closed when no child is left
}

// NewReaper makes a Reaper. From then on every child of this process must be
// started with it, and nothing ends until Run runs.
func NewReaper() *Reaper {
	return &Reaper{wake: make(chan struct{}, 1), owned: map[int]chan<- Exit{}}
}

// Run collects until ctx ends, and tells orphan (when not nil) of each process
// that was not started here.
func (r *Reaper) Run(ctx context.Context, orphan func(pid int, e Exit)) {
	sig := make(chan os.Signal, 1)
	signal.Notify(sig, syscall.SIGCHLD)
	defer signal.Stop(sig)
	for {
		for {
			pid, e, own, ok := r.reapOne()
			if !ok {
				break
			}
			if !own && orphan != nil {
				orphan(pid, e)
			}
		}
		select {
		case <-ctx.Done():
			return
		case <-sig:
		case <-r.wake:
		}
	}
}

// WaitEmpty waits until no child is left, dead or alive, or until ctx ends.
// Run must run.
func (r *Reaper) WaitEmpty(ctx context.Context) error {
	done := make(chan struct{})
	r.mu.Lock()
	r.empty = append(r.empty, done)
	r.mu.Unlock()
	select {
	case r.wake <- struct{}{}:
	default:
	}
	select {
	case <-done:
		return nil
	case <-ctx.Done():
		return fmt.Errorf("wait for the last process: %w", ctx.Err())
	}
}

// reapOne collects one dead child, if there is one.
func (r *Reaper) reapOne() (pid int, e Exit, own, ok bool) {
	r.mu.Lock()
	defer r.mu.Unlock()
	var ws syscall.WaitStatus
	for {
		got, err := syscall.Wait4(-1, &ws, syscall.WNOHANG, nil)
		if errors.Is(err, syscall.EINTR) {
			continue
		}
		if errors.Is(err, syscall.ECHILD) {
			for _, done := range r.empty {
				close(done)
			}
			r.empty = nil
		}
		if err != nil || got <= 0 {
			return 0, Exit{}, false, false
		}
		pid = got
		break
	}
	e = ExitFromStatus(ws)
	status, own := r.owned[pid]
	if own {
		delete(r.owned, pid)
		status <- e // has room for one, and there is one
	}
	return pid, e, own, true
}

// start starts a command and gives the function that waits for its end. A nil
// Reaper leaves the waiting to os/exec.
func (r *Reaper) start(cmd *exec.Cmd) (func() Exit, error) {
	if r == nil {
		if err := cmd.Start(); err != nil {
			return nil, err
		}
		return func() Exit { return execWait(cmd) }, nil
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	if err := cmd.Start(); err != nil {
		return nil, err
	}
	status := make(chan Exit, 1)
	r.owned[cmd.Process.Pid] = status
	return func() Exit { return <-status }, nil
}

func execWait(cmd *exec.Cmd) Exit {
	err := cmd.Wait()
	var exitErr *exec.ExitError
	if err == nil || errors.As(err, &exitErr) {
		if ws, ok := cmd.ProcessState.Sys().(syscall.WaitStatus); ok {
			return ExitFromStatus(ws)
		}
	}
	return Exit{Code: -1, Detail: fmt.Sprintf("wait: %v", err)}
}
