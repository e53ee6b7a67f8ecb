// SPDX-License-Identifier: Apache-2.0

package instance

import (
	"errors"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"testing/synctest"

	"golang.org/x/sys/unix"

	"github.com/davit-dpu/davit/firmware/spec"
)

func TestCreateVolume(t *testing.T) {
	inWorld(t, "", func(t *testing.T, w *world, dir string) {
		must(t, w.svc.CreateVolume("v", spec.MiB))
		path := filepath.Join(dir, "volumes", "v.img")
		must(t, os.WriteFile(path, []byte(strings.Repeat("x", 512)), 0o600))
		if err := w.svc.CreateVolume("v", spec.MiB); !errors.Is(err, fs.ErrExist) {
			t.Errorf("a volume that is there: %v", err)
		}
		if st, err := os.Stat(path); err != nil || st.Size() != 512 {
			t.Errorf("it was replaced: %v, %v", st, err)
		}
		for name, size := range map[string]spec.Bytes{"../v": 512, "a": 0, "b": 511, "c": spec.MaxVolumeBytes + 512} {
			if err := w.svc.CreateVolume(name, size); err == nil {
				t.Errorf("%s of %s was made", name, size)
			}
		}
		left, err := os.ReadDir(filepath.Join(dir, "volumes"))
		if err != nil || len(left) != 1 {
			t.Errorf("the folder holds %v, %v", left, err)
		}
	})
}

func TestVolumeUses(t *testing.T) {
	inWorld(t, "", func(t *testing.T, w *world, _ string) {
		must(t, w.svc.Limit(t.Context(), "demo", "root", &spec.Limits{IOPS: 3}))
		must(t, w.svc.Start(t.Context(), "demo"))
		synctest.Wait()
		v, err := w.svc.Volume(spec.VolumeFile, "root")
		must(t, err)
		if len(v.Uses) != 1 || v.Uses[0].Instance != "demo" || v.Uses[0].Limits.IOPS != 3 || v.Uses[0].Device == nil || v.Uses[0].Device.Phase != spec.PhaseReady || v.Size != spec.MiB {
			t.Errorf("got %+v", v)
		}
		if _, err := w.svc.Volume(spec.VolumeMemory, "root"); !errors.Is(err, ErrNoVolume) {
			t.Errorf("a volume of another kind: %v", err)
		}
	})
}

func TestDeleteVolume(t *testing.T) {
	inWorld(t, "", func(t *testing.T, w *world, dir string) {
		path := filepath.Join(dir, "volumes", "root.img")
		refused := func(want string) {
			t.Helper()
			if err := w.svc.DeleteVolume(spec.VolumeFile, "root"); err == nil || !strings.Contains(err.Error(), want) {
				t.Errorf("error %v does not name %q", err, want)
			}
			if _, err := os.Stat(path); err != nil {
				t.Fatal(err)
			}
		}
		must(t, w.svc.CreateVolume("root", spec.MiB))
		refused("belongs to instance demo")
		must(t, w.svc.Delete(t.Context(), "demo"))

		f, err := os.Open(path)
		must(t, err)
		must(t, unix.Flock(int(f.Fd()), unix.LOCK_SH))
		refused("in use")
		must(t, f.Close())

		w.svc.broken["torn"] = errors.New("torn")
		refused("instance torn")
		delete(w.svc.broken, "torn")

		must(t, w.svc.DeleteVolume(spec.VolumeFile, "root"))
		if err := w.svc.DeleteVolume(spec.VolumeFile, "root"); !errors.Is(err, fs.ErrNotExist) {
			t.Errorf("a volume that is gone: %v", err)
		}
		for kind, name := range map[spec.VolumeKind]string{spec.VolumeFile: "../boot/vmlinuz", "tape": "root"} {
			if err := w.svc.DeleteVolume(kind, name); err == nil {
				t.Errorf("%s of kind %s was deleted", name, kind)
			}
		}
	})
}
