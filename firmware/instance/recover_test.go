// SPDX-License-Identifier: Apache-2.0

package instance

import (
	"errors"
	"os"
	"path/filepath"
	"slices"
	"testing"
	"testing/synctest"
	"time"

	"github.com/davit-dpu/davit/firmware/spec"
)

func TestStopOfAFailedInstanceEndsItsTries(t *testing.T) {
	inWorld(t, spec.RestartAlways, func(t *testing.T, w *world, _ string) {
		w.fail = "start demo"
		must(t, w.svc.Start(t.Context(), "demo"))
		w.expect(t, spec.PhaseFailed, "next try in")
		must(t, w.svc.Stop(t.Context(), "demo", 0))
		w.expect(t, spec.PhaseStopped, "it had failed: start: injected")
		time.Sleep(2 * lastRetry)
		w.expect(t, spec.PhaseStopped, "as asked")
	})
}

func TestFailureOutlivesTheAgent(t *testing.T) {
	dir := t.TempDir()
	synctest.Test(t, func(t *testing.T) {
		w := newWorld()
		stop := w.open(t, dir)
		must(t, w.svc.Create(demo(spec.RestartNever)))
		must(t, w.svc.Start(t.Context(), "demo"))
		w.expect(t, spec.PhaseRunning, "")
		w.exit("demo", "signal: killed", false)
		w.expect(t, spec.PhaseFailed, "signal: killed")
		stop()
		stop = w.open(t, dir)
		w.expect(t, spec.PhaseFailed, "signal: killed")
		must(t, w.svc.Start(t.Context(), "demo"))
		w.expect(t, spec.PhaseRunning, "")
		must(t, w.svc.Stop(t.Context(), "demo", 0))
		w.expect(t, spec.PhaseStopped, "")
		stop()
		stop = w.open(t, dir)
		w.expect(t, spec.PhaseStopped, "")
		stop()
	})
}

// An agent that dies between "its memory is free" and "it is not to run again"
// would have the next one start what was to stay down.
func TestReleaseAndVerdictAreOneRecord(t *testing.T) {
	inWorld(t, spec.RestartNever, func(t *testing.T, w *world, dir string) {
		must(t, w.svc.Start(t.Context(), "demo"))
		w.expect(t, spec.PhaseRunning, "")
		r, err := w.svc.runner("demo")
		must(t, err)
		must(t, r.release(t.Context(), verdict{phase: spec.PhaseFailed}.apply))
		rec, err := store{filepath.Join(dir, "instances")}.read("demo")
		must(t, err)
		if rec.Generation != "" || rec.Desired != spec.PhaseStopped {
			t.Errorf("record says generation %q, desired %s", rec.Generation, rec.Desired)
		}
	})
}

// The order of an agent that died may still be under way at the host: that the
// host has no such VMM yet does not free its memory.
func TestOrderThatIsUnderWayKeepsItsMemory(t *testing.T) {
	dir := t.TempDir()
	synctest.Test(t, func(t *testing.T) {
		w := newWorld()
		w.hold = true
		stop := w.open(t, dir)
		must(t, w.svc.Create(demo(spec.RestartNever)))
		must(t, w.svc.Start(t.Context(), "demo"))
		synctest.Wait()
		stop()
		w.calls = nil
		stop = w.open(t, dir)
		w.expect(t, spec.PhaseFailed, "gave no report")
		kill, remove := slices.Index(w.calls, "stop demo force=true"), slices.Index(w.calls, "remove root")
		if kill < 0 || remove < kill {
			t.Errorf("released before the host was told to kill it: %v", w.calls)
		}
		stop()
	})
}

func TestGuestThatGoesDownGetsItsDisksBack(t *testing.T) {
	inWorld(t, "", func(t *testing.T, w *world, _ string) {
		w.stubborn = true
		must(t, w.svc.Start(t.Context(), "demo"))
		w.expect(t, spec.PhaseRunning, "")
		must(t, w.svc.Stop(t.Context(), "demo", time.Minute))
		w.expect(t, spec.PhaseStopping, "power down")
		w.change(func() { clear(w.devices) })
		synctest.Wait()
		if len(w.devices) != 2 {
			t.Errorf("a guest that writes its last has disks %v", w.devices)
		}
	})
}

func TestRunningGuestGetsNoEmptyDisk(t *testing.T) {
	inWorld(t, "", func(t *testing.T, w *world, dir string) {
		must(t, w.svc.Start(t.Context(), "demo"))
		w.expect(t, spec.PhaseRunning, "")
		root := filepath.Join(dir, "volumes", "root.img")
		must(t, os.Remove(root))
		w.change(func() { clear(w.devices) })
		w.expect(t, spec.PhaseUnknown, "its I/O waits")
		w.show()
		w.expect(t, spec.PhaseUnknown, "open volume root")
		if _, err := os.Stat(root); !errors.Is(err, os.ErrNotExist) {
			t.Errorf("the lost volume was made anew: %v", err)
		}
	})
}

func TestPowerDownThatWasNotPassedOnIsAskedAgain(t *testing.T) {
	inWorld(t, "", func(t *testing.T, w *world, _ string) {
		must(t, w.svc.Start(t.Context(), "demo"))
		w.expect(t, spec.PhaseRunning, "")
		w.fail = "stop demo force=false"
		must(t, w.svc.Stop(t.Context(), "demo", time.Minute))
		w.expect(t, spec.PhaseStopping, "injected")
		time.Sleep(2 * firstRetry)
		w.expect(t, spec.PhaseStopped, "")
		if slices.Contains(w.calls, "stop demo force=true") {
			t.Errorf("killed: %v", w.calls)
		}
	})
}

func TestStartOfWhatGoesDownIsRefused(t *testing.T) {
	inWorld(t, "", func(t *testing.T, w *world, _ string) {
		w.stubborn = true
		must(t, w.svc.Start(t.Context(), "demo"))
		w.expect(t, spec.PhaseRunning, "")
		must(t, w.svc.Stop(t.Context(), "demo", 10*time.Second))
		w.expect(t, spec.PhaseStopping, "")
		if err := w.svc.Start(t.Context(), "demo"); !errors.Is(err, ErrBusy) {
			t.Errorf("start while it is stopped: %v", err)
		}
		time.Sleep(11 * time.Second)
		w.expect(t, spec.PhaseStopped, "")
		must(t, w.svc.Start(t.Context(), "demo"))
		w.expect(t, spec.PhaseRunning, "")
	})
}

// What no record accounts for may be anywhere in the pool.
func TestNothingStartsBesideAnUnknownVMM(t *testing.T) {
	dir := t.TempDir()
	synctest.Test(t, func(t *testing.T) {
		w := newWorld()
		must(t, os.Mkdir(filepath.Join(dir, "instances"), 0o700))
		must(t, os.WriteFile(filepath.Join(dir, "instances", "torn.yaml"), []byte("spec: {na"), 0o600))
		w.vmms["torn"] = spec.VMMStatus{Instance: "torn", Generation: newGeneration(), State: spec.VMMRunning}
		stop := w.open(t, dir)
		defer stop()
		must(t, w.svc.Create(demo("")))
		must(t, w.svc.Start(t.Context(), "demo"))
		w.expect(t, spec.PhasePending, "torn")
		must(t, w.svc.Delete(t.Context(), "torn"))
		w.show() // the next look
		w.expect(t, spec.PhaseRunning, "")
		if got := w.state("torn"); got != spec.VMMExited {
			t.Errorf("the unknown vmm is %s", got)
		}
	})
}
