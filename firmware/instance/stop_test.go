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
