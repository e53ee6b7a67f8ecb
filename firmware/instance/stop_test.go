// SPDX-License-Identifier: Apache-2.0

package instance

import (
	"os"
	"path/filepath"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/davit-dpu/davit/firmware/spec"
)

// The time that a stop gives its guest is the operator's, whichever agent counts
// it: above all, to kill at once is not to leave it open.
func TestGraceOutlivesTheAgent(t *testing.T) {
	tests := []struct {
		name   string
		grace  time.Duration
		forget bool // the record is one of an agent that did not keep it
		want   time.Duration
	}{
		{"none", 0, false, 0},
		{"some", 50 * time.Second, false, 50 * time.Second},
		{"not recorded", 50 * time.Second, true, defaultGrace},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			dir := t.TempDir()
			synctest.Test(t, func(t *testing.T) {
				w := newWorld()
				w.stubborn = true
				stop := w.open(t, dir)
				must(t, w.svc.Create(demo("")))
				must(t, w.svc.Start(t.Context(), "demo"))
				w.expect(t, spec.PhaseRunning, "")
				w.change(func() { w.host = false }) // nothing can be stopped now
				must(t, w.svc.Stop(t.Context(), "demo", tt.grace))
				stop()
				records := store{filepath.Join(dir, "instances")}
				if tt.forget {
					rec, err := records.read("demo")
					must(t, err)
					rec.Grace = nil
					must(t, records.save(rec))
				}
				w.host = true
				stop = w.open(t, dir)
				defer stop()
				began := time.Now()
				for synctest.Wait(); w.state("demo") == spec.VMMRunning && time.Since(began) < time.Hour; synctest.Wait() {
					time.Sleep(time.Second)
				}
				if took := time.Since(began); took != tt.want {
					t.Errorf("killed after %v, want %v", took, tt.want)
				}
				w.expect(t, spec.PhaseStopped, "")
				if rec, err := records.read("demo"); err != nil || rec.Grace != nil {
					t.Errorf("record of a stopped instance: %+v, %v", rec, err)
				}
			})
		})
	}
}

// count tells how often the world was called so.
func (w *world) count(call string) int {
	w.mu.Lock()
	defer w.mu.Unlock()
	n := 0
	for _, c := range w.calls {
		if c == call {
			n++
		}
	}
	return n
}

const askDemo, killDemo = "stop demo force=false", "stop demo force=true"

// A guest that still boots does not hear the power button.
func TestGuestIsAskedToPowerDownUntilItListens(t *testing.T) {
	inWorld(t, "", func(t *testing.T, w *world, _ string) {
		w.stubborn = true
		must(t, w.svc.Start(t.Context(), "demo"))
		w.expect(t, spec.PhaseRunning, "")
		must(t, w.svc.Stop(t.Context(), "demo", time.Minute))
		for range 12 {
			w.expect(t, spec.PhaseStopping, "asked the guest to power down")
			w.show() // what is reported meanwhile makes it no more urgent
			time.Sleep(time.Second)
		}
		w.change(func() { w.stubborn = false })
		time.Sleep(askAgain)
		w.expect(t, spec.PhaseStopped, "as asked")
		if asked, killed := w.count(askDemo), w.count(killDemo); asked != 4 || killed != 0 {
			t.Errorf("asked %d times, want 4 (after 0, 5, 10 and 15 s), and killed %d times", asked, killed)
		}
	})
}

// The grace bounds the requests, and a kill ends them.
func TestGuestIsNotAskedAfterItsGrace(t *testing.T) {
	inWorld(t, "", func(t *testing.T, w *world, _ string) {
		w.stubborn, w.deaf = true, true
		must(t, w.svc.Start(t.Context(), "demo"))
		w.expect(t, spec.PhaseRunning, "")
		must(t, w.svc.Stop(t.Context(), "demo", 7*time.Second))
		time.Sleep(time.Minute)
		w.expect(t, spec.PhaseStopping, "killing")
		if asked, killed := w.count(askDemo), w.count(killDemo); asked != 2 || killed != 6 {
			t.Errorf("asked %d times, want 2 (after 0 and 5 s), killed %d times, want 6 (after 7, 17, … 57 s)", asked, killed)
		}
		w.change(func() { w.deaf = false })
		time.Sleep(stopTimeout)
		w.expect(t, spec.PhaseStopped, "")
	})
}

// Whoever asks next does not know whether the last one was heard.
func TestPowerDownIsAskedAgainByTheNextAgent(t *testing.T) {
	dir := t.TempDir()
	synctest.Test(t, func(t *testing.T) {
		w := newWorld()
		w.stubborn = true
		stop := w.open(t, dir)
		must(t, w.svc.Create(demo("")))
		must(t, w.svc.Start(t.Context(), "demo"))
		w.expect(t, spec.PhaseRunning, "")
		must(t, w.svc.Stop(t.Context(), "demo", time.Minute))
		w.expect(t, spec.PhaseStopping, "asked the guest")
		stop()
		w.stubborn = false
		stop = w.open(t, dir)
		defer stop()
		w.expect(t, spec.PhaseStopped, "as asked")
		if n := w.count(killDemo); n != 0 {
			t.Errorf("killed %d times", n)
		}
	})
}

// A vcard that was restarted connects to QMP some time later.
func TestPowerDownIsAskedAgainOfTheNextVcard(t *testing.T) {
	inWorld(t, "", func(t *testing.T, w *world, _ string) {
		w.stubborn = true
		must(t, w.svc.Start(t.Context(), "demo"))
		w.expect(t, spec.PhaseRunning, "")
		must(t, w.svc.Stop(t.Context(), "demo", time.Minute))
		w.expect(t, spec.PhaseStopping, "asked the guest")
		w.change(func() { w.serving, w.host = false, false })
		w.expect(t, spec.PhaseUnknown, "last seen stopping")
		time.Sleep(askAgain)
		w.change(func() { w.serving, w.host, w.stubborn, w.fail = true, true, false, askDemo })
		w.expect(t, spec.PhaseStopping, "injected")
		time.Sleep(firstRetry)
		w.expect(t, spec.PhaseStopped, "as asked")
		if n := w.count(killDemo); n != 0 {
			t.Errorf("killed %d times", n)
		}
	})
}

func TestRecordWithAGraceThatNobodyCanGive(t *testing.T) {
	dir := t.TempDir()
	records := store{dir}
	must(t, records.save(&record{Spec: demo(""), Desired: spec.PhaseStopped, Grace: new(time.Duration)}))
	text, err := os.ReadFile(filepath.Join(dir, "demo.yaml"))
	must(t, err)
	if rec, err := records.read("demo"); err != nil || rec.Grace == nil || *rec.Grace != 0 {
		t.Fatalf("a grace of zero is read as %+v, %v, from\n%s", rec, err, text)
	}
	for _, bad := range []string{"-1s", "1h0m1s"} {
		changed := strings.Replace(string(text), "grace: 0s", "grace: "+bad, 1)
		must(t, os.WriteFile(filepath.Join(dir, "demo.yaml"), []byte(changed), 0o600))
		if rec, err := records.read("demo"); err == nil || rec != nil || !strings.Contains(err.Error(), "grace of") {
			t.Errorf("%s: %+v, %v", bad, rec, err)
		}
	}
}
