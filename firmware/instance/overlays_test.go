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
	"time"

	"golang.org/x/sys/unix"

	"github.com/davit-dpu/davit/firmware/disk"
	"github.com/davit-dpu/davit/firmware/spec"
)

// golden makes the file volume golden, of 1 MiB.
func golden(t *testing.T, v *volumes) string {
	t.Helper()
	must(t, v.create(spec.VolumeFile, "golden", spec.MiB, nil))
	return v.path(spec.VolumeFile, "golden")
}

func overlay(name string) *spec.Volume {
	return &spec.Volume{Name: name, Kind: spec.VolumeOverlay, Base: "golden"}
}

// age makes a file look written at another time than it was.
func age(t *testing.T, path string) {
	t.Helper()
	when := time.Unix(1700000000, 5)
	must(t, os.Chtimes(path, when, when))
}

// refusedWith checks that err names all of want.
func refusedWith(t *testing.T, err error, want ...string) {
	t.Helper()
	for _, w := range want {
		if err == nil || !strings.Contains(err.Error(), w) {
			t.Errorf("error %v does not name %q", err, w)
		}
	}
}

func TestOverlayIsMadeAndFoundAgain(t *testing.T) {
	t.Parallel()
	v := roomy(t, spec.GiB, spec.GiB)
	golden(t, v)
	for name, size := range map[string]spec.Bytes{"same": 0, "larger": 2 * spec.MiB} {
		vol := overlay(name)
		vol.Size = size
		if _, err := v.open(vol, false); !errors.Is(err, fs.ErrNotExist) {
			t.Errorf("%s: opened before it was made: %v", name, err)
		}
		made, err := v.open(vol, true)
		must(t, err)
		again, err := v.open(vol, false)
		must(t, err)
		if made.BaseID != again.BaseID {
			t.Errorf("%s: base %x became %x", name, made.BaseID, again.BaseID)
		}
		store, err := disk.OpenFile(made.File, false)
		must(t, err)
		base, err := disk.OpenFile(made.Base, true)
		must(t, err)
		o, err := disk.OpenOverlay(base, store, made.BaseID)
		must(t, err)
		if got, want := spec.Bytes(o.Info().Size), max(size, spec.MiB); got != want {
			t.Errorf("%s: %s, want %s", name, got, want)
		}
		again.Close()
		must(t, o.Close())
	}
	list, err := v.list()
	must(t, err)
	if len(list) != 3 || list[1].Name != "larger" || list[1].Kind != spec.VolumeOverlay || list[1].Base != "golden" || list[1].Size != 2*spec.MiB || list[0].Base != "" {
		t.Errorf("list: %+v", list)
	}
	if _, err := v.digest(spec.VolumeOverlay, "same", 0, 512); err == nil {
		t.Error("an overlay's store was taken for its content")
	}
}

func TestOverlayIsRefused(t *testing.T) {
	t.Parallel()
	v := roomy(t, spec.GiB, 512*spec.MiB)
	_, err := v.open(overlay("o"), true)
	refusedWith(t, err, "volume o", "volume golden", "no such file")

	path := golden(t, v)
	small, large := overlay("o"), overlay("o")
	small.Size, large.Size = 512*spec.KiB, 512*spec.MiB
	_, err = v.open(small, true)
	refusedWith(t, err, "can not be smaller")
	if _, err = v.open(large, true); !errors.Is(err, unix.ENOSPC) {
		t.Errorf("no room: %v", err)
	}
	if left, err := os.ReadDir(v.files); err != nil || len(left) != 1 {
		t.Errorf("what was refused left %v, %v", left, err)
	}

	writer, err := os.OpenFile(path, os.O_RDWR, 0)
	must(t, err)
	must(t, unix.Flock(int(writer.Fd()), unix.LOCK_EX))
	_, err = v.open(overlay("o"), true)
	refusedWith(t, err, "being written")
	must(t, writer.Close())

	files, err := v.open(overlay("o"), true)
	must(t, err)
	if err := v.remove(spec.VolumeFile, "golden"); err == nil {
		t.Error("a base was deleted while it was open")
	}
	files.Close()
	sized := overlay("o")
	sized.Size = 2 * spec.MiB
	_, err = v.open(sized, true)
	refusedWith(t, err, "has 1MiB, the instance wants 2MiB")

	age(t, path)
	if _, err = v.open(overlay("o"), true); !errors.Is(err, disk.ErrOtherBase) {
		t.Errorf("a base that was written: %v", err)
	}
	list, err := v.list()
	must(t, err)
	if len(list) != 2 || list[1].Base != "" {
		t.Errorf("an overlay of a changed base: %+v", list)
	}
}

// What an overlay may come to take is promised to it, all of its store.
func TestOverlaysTakeRoom(t *testing.T) {
	t.Parallel()
	v := roomy(t, spec.GiB, 512*spec.MiB)
	golden(t, v)
	vol := overlay("o")
	vol.Size = 300 * spec.MiB
	files, err := v.open(vol, true)
	must(t, err)
	files.Close()
	if err := v.try(t, "b", spec.VolumeFile, 147*spec.MiB); !errors.Is(err, unix.ENOSPC) {
		t.Errorf("b: %v", err)
	}
	must(t, v.try(t, "b", spec.VolumeFile, 146*spec.MiB))
}

// A card that can lose power alone holds nothing of an overlay in a volatile cache.
func TestDurableOverlay(t *testing.T) {
	t.Parallel()
	v := roomy(t, spec.GiB, spec.GiB)
	v.durable = true
	golden(t, v)
	files, err := v.open(overlay("o"), true)
	must(t, err)
	defer files.Close()
	flags, err := unix.FcntlInt(files.File.Fd(), unix.F_GETFL, 0)
	must(t, err)
	base, err := unix.FcntlInt(files.Base.Fd(), unix.F_GETFL, 0)
	must(t, err)
	if flags&unix.O_DSYNC == 0 || base&unix.O_ACCMODE != unix.O_RDONLY {
		t.Errorf("store open with %#o, base with %#o", flags, base)
	}
}

func TestBaseIsNeitherWrittenNorDeleted(t *testing.T) {
	inWorld(t, "", func(t *testing.T, w *world, dir string) {
		golden(t, &w.svc.volumes)
		in := func(name string, vols ...spec.Volume) spec.Instance {
			i := demo("")
			i.Name, i.Volumes = name, vols
			return i
		}
		writer := spec.Volume{Name: "golden", Kind: spec.VolumeFile}
		reader := writer
		reader.ReadOnly = true

		must(t, w.svc.Create(in("writer", writer)))
		refusedWith(t, w.svc.Create(in("web", *overlay("web-root"))), "volume web-root", "base golden", "instance writer")
		must(t, w.svc.Delete(t.Context(), "writer"))

		must(t, w.svc.Create(in("web", *overlay("web-root"))))
		must(t, w.svc.Create(in("db", *overlay("db-root"), reader)))
		must(t, w.svc.Delete(t.Context(), "db"))
		must(t, w.svc.Create(in("db", *overlay("db-root"))))
		named := []string{"volume golden", "base of overlay", "of instance"}
		refusedWith(t, w.svc.Create(in("writer", writer)), named...)
		refusedWith(t, w.svc.DeleteVolume(spec.VolumeFile, "golden"), named...)
		_, err := w.svc.OpenVolume("golden")
		refusedWith(t, err, named...)

		must(t, w.svc.Start(t.Context(), "web"))
		synctest.Wait()
		if d := w.devices["web/web-root"]; d.Volume.Base != "golden" {
			t.Errorf("device %+v", d)
		}
		must(t, w.svc.Stop(t.Context(), "web", 0))
		synctest.Wait()
		must(t, w.svc.Delete(t.Context(), "web"))
		must(t, w.svc.Delete(t.Context(), "db"))

		// Nobody names the base any more; an overlay is there.
		named = []string{"volume golden", "base of overlay web-root"}
		refusedWith(t, w.svc.Create(in("writer", writer)), named...)
		refusedWith(t, w.svc.DeleteVolume(spec.VolumeFile, "golden"), named...)
		_, err = w.svc.OpenVolume("golden")
		refusedWith(t, err, named...)
		_, err = w.svc.volumes.open(&writer, true)
		refusedWith(t, err, named...)

		// What cannot be read protects a base from deletion only.
		torn := filepath.Join(dir, "volumes", "web-root.overlay")
		must(t, os.WriteFile(torn, make([]byte, 4096), 0o600))
		refusedWith(t, w.svc.DeleteVolume(spec.VolumeFile, "golden"), "overlay web-root", "cannot be read")
		if v, err := w.svc.Volume(spec.VolumeOverlay, "web-root"); err != nil || v.Size != 0 || v.Base != "" {
			t.Errorf("a torn overlay: %+v, %v", v, err)
		}
		must(t, w.svc.Create(in("writer", writer)))
		must(t, w.svc.Delete(t.Context(), "writer"))
		must(t, w.svc.DeleteVolume(spec.VolumeOverlay, "web-root"))
		must(t, w.svc.DeleteVolume(spec.VolumeFile, "golden"))
		if left, err := os.ReadDir(filepath.Join(dir, "volumes")); err != nil || len(left) != 0 {
			t.Errorf("left: %v, %v", left, err)
		}
	})
}

// A link, or another mode, leaves a base what it is.
func TestContentOfABase(t *testing.T) {
	t.Parallel()
	path := filepath.Join(t.TempDir(), "base")
	must(t, os.WriteFile(path, make([]byte, 512), 0o600))
	id := func() disk.BaseID {
		f, err := os.Open(path)
		must(t, err)
		defer f.Close()
		id, err := contentOf(f)
		must(t, err)
		return id
	}
	first := id()
	must(t, os.Link(path, path+"2"))
	must(t, os.Chmod(path, 0o400))
	if got := id(); got != first {
		t.Errorf("linked: %x became %x", first, got)
	}
	seen := map[disk.BaseID]string{first: "as made"}
	must(t, os.Chmod(path, 0o600))
	for _, c := range []struct {
		name   string
		change func() error
	}{
		{"written", func() error { age(t, path); return nil }},
		{"grown", func() error { return os.Truncate(path, 1024) }},
		{"grown, at the same time", func() error { age(t, path); return nil }},
		{"replaced", func() error {
			return errors.Join(os.WriteFile(path+"3", make([]byte, 1024), 0o600), os.Rename(path+"3", path))
		}},
		{"replaced, at the same time", func() error { age(t, path); return nil }},
	} {
		must(t, c.change())
		got := id()
		if was, ok := seen[got]; ok {
			t.Errorf("%s is taken for %s", c.name, was)
		}
		seen[got] = c.name
	}
}
