// SPDX-License-Identifier: Apache-2.0

package instance

import (
	"testing"
	"testing/synctest"
	"time"

	"github.com/davit-dpu/davit/firmware/spec"
)

// left tells how many disks and ranges of memory are held.
func (w *world) left() (devices, memory int) {
	w.mu.Lock()
	defer w.mu.Unlock()
	p := w.svc.pool
	p.mu.Lock()
	defer p.mu.Unlock()
	return len(w.devices), len(p.used)
}

// startCut starts demo on a host that goes away in the middle.
func startCut(t *testing.T, w *world, delivered bool) {
	t.Helper()
	w.change(func() { w.cut, w.deliver = true, delivered })
	must(t, w.svc.Start(t.Context(), "demo"))
	w.expect(t, spec.PhaseUnknown, "the host went away before it answered")
	if _, memory := w.left(); memory != 1 {
		t.Errorf("%d ranges of memory are reserved for a vmm that may run", memory)
	}
}

// An order that got lost is no VMM that crashed.
func TestLostOrderIsNotACrash(t *testing.T) {
	tests := []struct {
		policy spec.RestartPolicy
		later  spec.Phase
		reason string
	}{
		{spec.RestartNever, spec.PhaseFailed, "start: the order was not carried out"},
		{spec.RestartOnFailure, spec.PhaseRunning, ""},
		{spec.RestartAlways, spec.PhaseRunning, ""},
	}
	for _, tt := range tests {
		t.Run(string(tt.policy), func(t *testing.T) {
			inWorld(t, tt.policy, func(t *testing.T, w *world, _ string) {
				startCut(t, w, false)
				w.change(func() { w.host = true })
				w.expect(t, spec.PhaseFailed, "start: the order was not carried out: the host has no vmm of it")
				if devices, memory := w.left(); devices != 0 || memory != 0 {
					t.Errorf("left behind: %d devices, %d ranges of memory", devices, memory)
				}
				time.Sleep(2 * firstRetry)
				w.expect(t, tt.later, tt.reason)
				if st, _ := w.svc.Show("demo"); st.Restarts != 0 {
					t.Errorf("counted %d restarts of a vmm that never ran", st.Restarts)
				}
			})
		})
	}
}

func TestOrderThatWasCarriedOutUnheardIsAdopted(t *testing.T) {
	inWorld(t, spec.RestartNever, func(t *testing.T, w *world, _ string) {
		startCut(t, w, true)
		w.mu.Lock()
		ordered := w.vmms["demo"].Generation
		w.mu.Unlock()
		w.change(func() { w.host = true })
		w.expect(t, spec.PhaseRunning, "")
		if st, _ := w.svc.Show("demo"); st.Generation != ordered || w.count(killDemo) != 0 || w.count("start demo") != 1 {
			t.Errorf("runs %s, ordered %s, %d kills", st.Generation, ordered, w.count(killDemo))
		}
	})
}

func TestOrderThatWasCarriedOutUnheardAndEnded(t *testing.T) {
	inWorld(t, spec.RestartOnFailure, func(t *testing.T, w *world, _ string) {
		startCut(t, w, true)
		w.exit("demo", "exit status 1", false)
		w.change(func() { w.host = true })
		w.expect(t, spec.PhaseFailed, "vmm exited: exit status 1")
		if st, _ := w.svc.Show("demo"); st.Restarts != 1 {
			t.Errorf("counted %d restarts, want 1", st.Restarts)
		}
	})
}

func TestStopOfALostOrder(t *testing.T) {
	for _, delivered := range []bool{false, true} {
		inWorld(t, spec.RestartAlways, func(t *testing.T, w *world, _ string) {
			startCut(t, w, delivered)
			must(t, w.svc.Stop(t.Context(), "demo", 0))
			w.change(func() { w.host = true })
			w.expect(t, spec.PhaseStopped, "stopped as asked")
			if _, memory := w.left(); w.state("demo") == spec.VMMRunning || memory != 0 {
				t.Errorf("vmm is %s, %d ranges of memory are reserved", w.state("demo"), memory)
			}
		})
	}
}

// What was seen of an earlier connection may be acted on during the next one, on
// which the VMM runs: what the kill then ends is not called an order that was lost.
func TestKilledOnAnOldViewIsToldAsKilled(t *testing.T) {
	inWorld(t, spec.RestartNever, func(t *testing.T, w *world, _ string) {
		startCut(t, w, true)
		w.mu.Lock()
		ran := w.vmms["demo"]
		delete(w.vmms, "demo")
		w.host = true
		stale := Observation{At: time.Now(), Serving: true, Host: true}
		w.vmms["demo"] = ran
		w.mu.Unlock()
		w.svc.Observe(stale)
		w.expect(t, spec.PhaseFailed, "vmm exited: told to")
	})
}

// A server that lost its power has forgotten its VMMs: they ran nevertheless.
func TestVMMThatRanIsNoLostOrderForTheNextAgent(t *testing.T) {
	dir := t.TempDir()
	synctest.Test(t, func(t *testing.T) {
		w := newWorld()
		stop := w.open(t, dir)
		must(t, w.svc.Create(demo(spec.RestartOnFailure)))
		must(t, w.svc.Start(t.Context(), "demo"))
		w.expect(t, spec.PhaseRunning, "")
		stop()
		clear(w.vmms)
		stop = w.open(t, dir)
		defer stop()
		w.expect(t, spec.PhaseFailed, "vmm exited: the host no longer has it, and gave no report")
		if st, _ := w.svc.Show("demo"); st.Restarts != 1 {
			t.Errorf("counted %d restarts, want 1", st.Restarts)
		}
	})
}

// An agent that dies in the middle of a start leaves its successor with the same
// three possibilities.
func TestNextAgentAdoptsWhatWasOrdered(t *testing.T) {
	dir := t.TempDir()
	synctest.Test(t, func(t *testing.T) {
		w := newWorld()
		stop := w.open(t, dir)
		must(t, w.svc.Create(demo(spec.RestartNever)))
		startCut(t, w, true)
		stop()
		w.host = true
		stop = w.open(t, dir)
		defer stop()
		w.expect(t, spec.PhaseRunning, "")
		if n := w.count(killDemo); n != 0 {
			t.Errorf("killed %d times", n)
		}
	})
}

// What was ruled out once and is seen to run after all must be ruled out again
// before its memory is given to another instance.
func TestVMMThatComesBackIsRuledOutAgain(t *testing.T) {
	inWorld(t, spec.RestartNever, func(t *testing.T, w *world, _ string) {
		must(t, w.svc.Start(t.Context(), "demo"))
		w.expect(t, spec.PhaseRunning, "")
		w.change(func() { w.deaf = true })
		w.svc.Observe(Observation{At: time.Now(), Serving: true, Host: true})
		w.expect(t, spec.PhaseUnknown, "was told to start none")
		time.Sleep(time.Second)
		w.show()
		w.expect(t, spec.PhaseRunning, "")
		time.Sleep(time.Second)
		w.change(func() { delete(w.vmms, "demo") })
		w.expect(t, spec.PhaseFailed, "gave no report")
		if n := w.count(killDemo); n != 2 {
			t.Errorf("ordered %d times to kill it, want 2", n)
		}
	})
}
