// SPDX-License-Identifier: Apache-2.0

package instance

import (
	"errors"
	"fmt"
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
		w.expect(t, spec.PhaseFailed, "not carried out")
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

// What the vcard serves for a record that cannot be read is taken down before the
// record is forgotten.
func TestDeleteOfABrokenRecordTakesItsDisksDown(t *testing.T) {
	dir := t.TempDir()
	synctest.Test(t, func(t *testing.T) {
		w := newWorld()
		must(t, os.Mkdir(filepath.Join(dir, "instances"), 0o700))
		torn := filepath.Join(dir, "instances", "torn.yaml")
		must(t, os.WriteFile(torn, []byte("spec: {na"), 0o600))
		for _, d := range []Device{{Instance: "torn", Volume: spec.Volume{Name: "a"}}, {Instance: "torn", Volume: spec.Volume{Name: "b"}}, {Instance: "other", Volume: spec.Volume{Name: "c"}}} {
			w.devices[d.Instance+"/"+d.Volume.Name] = d
		}
		stop := w.open(t, dir)
		defer stop()
		w.change(func() { w.serving = false })
		if err := w.svc.Delete(t.Context(), "torn"); err == nil {
			t.Error("forgotten while nobody knows its disks")
		}
		w.change(func() { w.serving, w.fail = true, "remove" })
		if err := w.svc.Delete(t.Context(), "torn"); err == nil {
			t.Error("forgotten with a disk that was not removed")
		}
		if _, err := os.Stat(torn); err != nil || w.svc.List()[0].Spec.Name != "torn" {
			t.Errorf("the record is gone: %v", err)
		}
		w.show()
		must(t, w.svc.Delete(t.Context(), "torn"))
		if _, ok := w.devices["other/c"]; len(w.devices) != 1 || !ok {
			t.Errorf("left behind: %v", w.devices)
		}
		if _, err := os.Stat(torn); !errors.Is(err, os.ErrNotExist) || len(w.svc.List()) != 0 {
			t.Errorf("the record is still there: %v", err)
		}
	})
}

// A host may invent VMMs, not obey, and report all the time.
func TestKillsOfStraysAreBounded(t *testing.T) {
	inWorld(t, "", func(t *testing.T, w *world, _ string) {
		w.change(func() {
			for i := range 100 {
				name := fmt.Sprintf("ghost-%d", i)
				w.vmms[name] = spec.VMMStatus{Instance: name, Generation: newGeneration(), State: spec.VMMRunning}
			}
			w.calls, w.deaf = nil, true
		})
		const seconds = 10
		for range seconds * 20 {
			time.Sleep(time.Second / 20)
			w.show()
			synctest.Wait()
		}
		if n := len(w.calls); n < seconds || n > strayKills*(seconds+1) {
			t.Errorf("%d kills in %d s, want at most %d a second", n, seconds, strayKills)
		}
		w.change(func() { w.deaf = false })
		time.Sleep(20 * strayRound) // all of them, in rounds
		synctest.Wait()
		for name := range w.vmms {
			if w.state(name) == spec.VMMRunning {
				t.Fatalf("%s was never killed", name)
			}
		}
	})
}

func TestOneStrayIsKilledOnceASecond(t *testing.T) {
	inWorld(t, "", func(t *testing.T, w *world, _ string) {
		w.change(func() {
			w.vmms["ghost"] = spec.VMMStatus{Instance: "ghost", Generation: newGeneration(), State: spec.VMMRunning}
			w.calls, w.deaf = nil, true
		})
		for range 10 {
			w.show()
			synctest.Wait()
		}
		if len(w.calls) != 1 {
			t.Errorf("%d kills at once", len(w.calls))
		}
	})
}

func TestLeftOverFilesAreRemoved(t *testing.T) {
	dir := t.TempDir()
	synctest.Test(t, func(t *testing.T) {
		w := newWorld()
		stop := w.open(t, dir)
		must(t, w.svc.Create(demo("")))
		stop()
		var temps []string
		for _, sub := range []string{"instances", "volumes", "mem"} {
			f, err := os.CreateTemp(filepath.Join(dir, sub), ".demo-*")
			must(t, err)
			must(t, f.Close())
			temps = append(temps, f.Name())
		}
		must(t, os.WriteFile(filepath.Join(dir, "volumes", "a-b.img"), make([]byte, spec.SectorSize), 0o600))
		stop = w.open(t, dir)
		defer stop()
		for _, name := range temps {
			if _, err := os.Stat(name); !errors.Is(err, os.ErrNotExist) {
				t.Errorf("%s is still there: %v", name, err)
			}
		}
		w.expect(t, spec.PhaseStopped, "")
		if list, err := w.svc.Volumes(); err != nil || len(list) != 1 {
			t.Errorf("volumes %v, %v", list, err)
		}
	})
}
