// SPDX-License-Identifier: Apache-2.0

package instance

import (
	"errors"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/davit-dpu/davit/firmware/spec"
)

// roomy gives volumes on a file system of which the test says how full it is.
func roomy(t *testing.T, total, free spec.Bytes) *volumes {
	t.Helper()
	v := &volumes{files: t.TempDir(), memory: t.TempDir()}
	v.statfs = func(_ string, st *unix.Statfs_t) error {
		st.Bsize, st.Blocks, st.Bavail = 4096, uint64(total/4096), uint64(free/4096)
		return nil
	}
	return v
}

func (v *volumes) try(t *testing.T, name string, kind spec.VolumeKind, size spec.Bytes) error {
	t.Helper()
	f, err := v.openFile(&spec.Volume{Name: name, Kind: kind, Size: size}, true)
	if err == nil {
		must(t, f.Close())
	}
	return err
}

func TestVolumesFit(t *testing.T) {
	t.Parallel()
	for name, c := range map[string]struct {
		total, free, size spec.Bytes
		fits              bool
	}{
		"small":                      {spec.GiB, 512 * spec.MiB, spec.MiB, true},
		"all but the reserve":        {spec.GiB, 512 * spec.MiB, 448 * spec.MiB, true},
		"a sector of the reserve":    {spec.GiB, 512 * spec.MiB, 448*spec.MiB + spec.SectorSize, false},
		"a twentieth is kept":        {20 * spec.GiB, 2 * spec.GiB, spec.GiB, true},
		"and no less":                {20 * spec.GiB, 2 * spec.GiB, spec.GiB + spec.SectorSize, false},
		"more than there is":         {spec.GiB, spec.GiB, spec.TiB, false},
		"less free than the reserve": {spec.GiB, spec.MiB, spec.SectorSize, false},
		"full":                       {spec.GiB, 0, spec.SectorSize, false},
	} {
		for _, kind := range []spec.VolumeKind{spec.VolumeFile, spec.VolumeMemory} {
			v := roomy(t, c.total, c.free)
			err := v.try(t, "v", kind, c.size)
			if (err == nil) != c.fits {
				t.Errorf("%s, %s: %v", name, kind, err)
			}
			if err != nil && (!errors.Is(err, unix.ENOSPC) || !strings.Contains(err.Error(), c.free.String()+" free")) {
				t.Errorf("%s, %s: error %q does not name the free space", name, kind, err)
			}
			if left, err := os.ReadDir(v.dir(kind)); err != nil || (len(left) == 1) != c.fits {
				t.Errorf("%s, %s: folder holds %v, %v", name, kind, left, err)
			}
		}
	}
}

// A sparse volume takes no room yet, and its guest may fill it later: together
// they must not be able to fill the card.
func TestVolumesFitTogether(t *testing.T) {
	t.Parallel()
	v := roomy(t, spec.GiB, 512*spec.MiB)
	must(t, v.try(t, "a", spec.VolumeFile, 300*spec.MiB))
	if err := v.try(t, "b", spec.VolumeFile, 200*spec.MiB); !errors.Is(err, unix.ENOSPC) || !strings.Contains(err.Error(), "300MiB are promised") {
		t.Errorf("b: %v", err)
	}
	must(t, v.try(t, "b", spec.VolumeFile, 148*spec.MiB))
	must(t, v.try(t, "b", spec.VolumeFile, 148*spec.MiB)) // is there already
	must(t, v.try(t, "c", spec.VolumeMemory, 300*spec.MiB))
	must(t, os.Remove(filepath.Join(v.files, "a.img")))
	must(t, v.try(t, "d", spec.VolumeFile, 300*spec.MiB))
}

func TestVolumesMadeAtOnceFitTogether(t *testing.T) {
	t.Parallel()
	v := roomy(t, spec.GiB, 512*spec.MiB)
	var wg sync.WaitGroup
	made := make([]error, 8)
	for i := range made {
		wg.Go(func() { made[i] = v.try(t, string(rune('a'+i)), spec.VolumeFile, 200*spec.MiB) })
	}
	wg.Wait()
	n := 0
	for _, err := range made {
		if err == nil {
			n++
		} else if !errors.Is(err, unix.ENOSPC) {
			t.Error(err)
		}
	}
	if n != 2 {
		t.Errorf("%d volumes of 200 MiB were made in 448 MiB", n)
	}
}

func TestUnknownRoomIsNone(t *testing.T) {
	t.Parallel()
	v := roomy(t, spec.GiB, spec.GiB)
	v.statfs = func(string, *unix.Statfs_t) error { return unix.EIO }
	if err := v.try(t, "v", spec.VolumeFile, spec.MiB); !errors.Is(err, unix.EIO) {
		t.Errorf("error %v, want %v", err, unix.EIO)
	}
}

// A card that can lose power alone must not hold writes in a volatile cache.
func TestDurableVolumesHaveNoVolatileCache(t *testing.T) {
	t.Parallel()
	for _, durable := range []bool{false, true} {
		v := roomy(t, spec.GiB, spec.GiB)
		v.durable = durable
		for kind, want := range map[spec.VolumeKind]bool{spec.VolumeFile: durable, spec.VolumeMemory: false} {
			for _, moment := range []string{"made", "opened again"} {
				f, err := v.openFile(&spec.Volume{Name: "v", Kind: kind, Size: spec.MiB}, true)
				if err != nil {
					t.Fatal(err)
				}
				flags, err := unix.FcntlInt(f.Fd(), unix.F_GETFL, 0)
				if err != nil {
					t.Fatal(err)
				}
				if got := flags&unix.O_DSYNC != 0; got != want {
					t.Errorf("durable %v, %s volume %s: O_DSYNC is %v, want %v", durable, kind, moment, got, want)
				}
				must(t, f.Close())
			}
		}
	}
}
