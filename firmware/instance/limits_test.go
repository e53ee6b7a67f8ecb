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

// limited compares the limits of demo's root: as wanted, and as the vcard has them.
func (w *world) limited(t *testing.T, wanted, served *spec.Limits) {
	t.Helper()
	synctest.Wait()
	st, err := w.svc.Show("demo")
	must(t, err)
	w.mu.Lock()
	defer w.mu.Unlock()
	if got := st.Spec.Volumes[0].Limits; !spec.SameLimits(got, wanted) {
		t.Errorf("wanted limits are %v, want %v", got, wanted)
	}
	if got := w.devices["demo/root"].Volume.Limits; !spec.SameLimits(got, served) {
		t.Errorf("served limits are %v, want %v", got, served)
	}
}

func TestLimits(t *testing.T) {
	dir := t.TempDir()
	synctest.Test(t, func(t *testing.T) {
		w := newWorld()
		stop := w.open(t, dir)
		must(t, w.svc.Create(demo("")))
		slow, fast := &spec.Limits{IOPS: 10}, &spec.Limits{Bandwidth: spec.MiB, Burst: spec.MaxBurst}
		must(t, w.svc.Limit(t.Context(), "demo", "root", slow))
		w.limited(t, slow, nil)
		must(t, w.svc.Start(t.Context(), "demo"))
		w.limited(t, slow, slow)
		must(t, w.svc.Limit(t.Context(), "demo", "root", fast))
		w.limited(t, fast, fast)

		w.change(func() { clear(w.devices) }) // another vcard
		w.limited(t, fast, fast)
		stop()
		stop = w.open(t, dir) // another agent
		w.limited(t, fast, fast)

		w.change(func() { w.fail = "limit root" })
		if err := w.svc.Limit(t.Context(), "demo", "root", nil); err == nil || !strings.Contains(err.Error(), "stored") {
			t.Errorf("a vcard that refuses: %v", err)
		}
		w.show()
		w.limited(t, nil, nil)

		w.change(func() { // an agent that died between the two
			d := w.devices["demo/root"]
			d.Volume.Limits = slow
			w.devices["demo/root"] = d
			w.fail = "limit root"
		})
		time.Sleep(2 * firstRetry)
		w.limited(t, nil, nil)
		stop()
	})
}

// A disk that cannot be given back keeps no limits from the others.
func TestLimitsWhileADiskIsMissing(t *testing.T) {
	inWorld(t, "", func(t *testing.T, w *world, dir string) {
		must(t, w.svc.Start(t.Context(), "demo"))
		w.limited(t, nil, nil)
		must(t, os.Remove(filepath.Join(dir, "mem", "tmp.img")))
		w.change(func() {
			delete(w.devices, "demo/tmp")
			w.fail = "limit root"
		})
		slow := &spec.Limits{IOPS: 10}
		if err := w.svc.Limit(t.Context(), "demo", "root", slow); err == nil {
			t.Error("a vcard that refuses, and no error")
		}
		time.Sleep(2 * firstRetry)
		w.limited(t, slow, slow)
	})
}

func TestLimitRefuses(t *testing.T) {
	inWorld(t, "", func(t *testing.T, w *world, _ string) {
		for _, tt := range []struct {
			instance, volume string
			limits           *spec.Limits
			want             string
		}{
			{"nonesuch", "root", nil, "no such instance"},
			{"demo", "nonesuch", nil, "no volume nonesuch"},
			{"demo", "root", &spec.Limits{}, "neither iops nor bandwidth"},
			{"demo", "root", &spec.Limits{IOPS: spec.MaxIOPS + 1}, "iops"},
		} {
			if err := w.svc.Limit(t.Context(), tt.instance, tt.volume, tt.limits); err == nil || !strings.Contains(err.Error(), tt.want) {
				t.Errorf("%+v: error %v does not name %q", tt, err, tt.want)
			}
		}
		w.limited(t, nil, nil)
	})
}
