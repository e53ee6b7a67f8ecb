// SPDX-License-Identifier: Apache-2.0

package boot

import (
	"os"
	"path/filepath"
	"reflect"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/davit-dpu/davit/firmware/spec"
)

func TestLifecycle(t *testing.T) {
	t.Parallel()
	for cmdline, want := range map[string]spec.Lifecycle{
		"":                                 spec.Production,
		"console=ttyAMA0 quiet\n":          spec.Production,
		"davit.lifecycle=development":      spec.Development,
		"a davit.lifecycle=rma b\n":        spec.RMA,
		"davit.lifecycle=production":       spec.Production,
		"davit.lifecycle=Development":      spec.Production,
		"davit.lifecycle=":                 spec.Production,
		"xdavit.lifecycle=development":     spec.Production,
		"davit.lifecycle=development x=\"": spec.Development,
		"davit.lifecycle=development davit.lifecycle=development": spec.Development,
		"davit.lifecycle=development davit.lifecycle=production":  spec.Production,
		"davit.lifecycle=production davit.lifecycle=development":  spec.Production,
	} {
		if got := lifecycle(cmdline); got != want {
			t.Errorf("lifecycle(%q) = %s, want %s", cmdline, got, want)
		}
	}
}

// FuzzLifecycle states: nothing but the exact word, unopposed, is less than
// production.
func FuzzLifecycle(f *testing.F) {
	f.Add("davit.lifecycle=development")
	f.Fuzz(func(t *testing.T, cmdline string) {
		if lifecycle(cmdline) == spec.Development && !strings.Contains(cmdline, "davit.lifecycle=development") {
			t.Fatalf("%q is development", cmdline)
		}
		if lifecycle(cmdline+" davit.lifecycle=production") != spec.Production {
			t.Fatalf("%q overrules production", cmdline)
		}
	})
}

func TestValidHostname(t *testing.T) {
	t.Parallel()
	for _, name := range []string{"a", "card-1", "0", strings.Repeat("x", 63)} {
		if !validHostname(name) {
			t.Errorf("%q was refused", name)
		}
	}
	for _, name := range []string{"", "-a", "a-", "a.b", "A", "a_b", "ä", strings.Repeat("x", 64), "a\n"} {
		if validHostname(name) {
			t.Errorf("%q was taken", name)
		}
	}
}

func TestParseModules(t *testing.T) {
	t.Parallel()
	got, err := parseModules([]byte("# order matters\n/lib/modules/6.12/b.ko\n\n  /lib/modules/6.12/a.ko.xz \n"))
	if want := []string{"/lib/modules/6.12/b.ko", "/lib/modules/6.12/a.ko.xz"}; err != nil || !reflect.DeepEqual(got, want) {
		t.Errorf("got %q, %v; want %q", got, err, want)
	}
	for _, bad := range []string{"a.ko", "/tmp/a.ko", "/lib/modules/../../tmp/a.ko", "/lib/modules/a//b.ko", "/lib/modules/" + strings.Repeat("x", 70000)} {
		if got, err := parseModules([]byte("/lib/modules/ok.ko\n" + bad)); err == nil || got != nil {
			t.Errorf("%.40q: got %q, %v", bad, got, err)
		}
	}
}

func FuzzParseModules(f *testing.F) {
	f.Add([]byte("/lib/modules/a.ko\n#x\n"))
	f.Fuzz(func(t *testing.T, b []byte) {
		paths, err := parseModules(b)
		if err != nil && paths != nil {
			t.Fatalf("%q with error %v", paths, err)
		}
		for _, p := range paths {
			if !strings.HasPrefix(p, modulePlace) || filepath.Clean(p) != p {
				t.Fatalf("path %q", p)
			}
		}
	})
}

func TestLoadModulesGoesOn(t *testing.T) {
	t.Parallel()
	results := map[string]error{"/m/a.ko": nil, "/m/b.ko": unix.EEXIST, "/m/c.ko": unix.ENODEV, "/m/d.ko": os.ErrNotExist, "/m/e.ko": unix.ENOKEY, "/m/f.ko": nil}
	paths := []string{"/m/a.ko", "/m/b.ko", "/m/c.ko", "/m/d.ko", "/m/e.ko", "/m/f.ko"}
	var order []string
	got := loadModules(paths, func(p string) error { order = append(order, p); return results[p] })
	if !reflect.DeepEqual(order, paths) {
		t.Errorf("loaded in order %v", order)
	}
	want := outcome{
		used:   []string{"/m/a.ko", "/m/b.ko", "/m/c.ko", "/m/e.ko", "/m/f.ko"},
		absent: []string{"c.ko"},
		failed: []string{"d.ko: file does not exist", "e.ko: required key not available"},
	}
	if !reflect.DeepEqual(got, want) {
		t.Errorf("got %+v, want %+v", got, want)
	}
}

func TestFindPartition(t *testing.T) {
	t.Parallel()
	uevent := func(dev, part string) string {
		return "MAJOR=254\nMINOR=1\nDEVNAME=" + dev + "\nDEVTYPE=partition\nPARTN=1\nPARTNAME=" + part + "\n"
	}
	tests := map[string]struct {
		devices map[string]string
		want    string
		err     string
	}{
		"none":         {nil, "", ""},
		"one":          {map[string]string{"vda": "DEVNAME=vda\n", "vda1": uevent("vda1", "efi"), "vda2": uevent("vda2", "davit-data")}, "vda2", ""},
		"other name":   {map[string]string{"vda1": uevent("vda1", "davit-data2"), "vda2": uevent("vda2", "xdavit-data")}, "", ""},
		"two":          {map[string]string{"vda1": uevent("vda1", "davit-data"), "vdb1": uevent("vdb1", "davit-data")}, "", "vda1 vdb1"},
		"not a device": {map[string]string{"vda1": uevent("../sda", "davit-data"), "vda2": uevent("", "davit-data"), "vda3": uevent("..", "davit-data")}, "", ""},
	}
	for name, c := range tests {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			dir := t.TempDir()
			for dev, text := range c.devices {
				check(t, os.Mkdir(filepath.Join(dir, dev), 0o700))
				check(t, os.WriteFile(filepath.Join(dir, dev, "uevent"), []byte(text), 0o600))
			}
			got, err := findPartition(dir, "davit-data")
			if got != c.want || (err != nil) != (c.err != "") || err != nil && !strings.Contains(err.Error(), c.err) {
				t.Errorf("got %q, %v; want %q, %q", got, err, c.want, c.err)
			}
		})
	}
}

func FuzzPartition(f *testing.F) {
	f.Add([]byte("DEVNAME=vda1\nPARTNAME=davit-data\n"))
	f.Add([]byte("DEVNAME=/\nPARTNAME=davit-data\n"))
	f.Fuzz(func(t *testing.T, b []byte) {
		dev, ok := partition(b, "davit-data")
		if ok != (dev != "") || strings.ContainsAny(dev, "/\n") {
			t.Fatalf("device %q, %v", dev, ok)
		}
	})
}

func TestSaneClock(t *testing.T) {
	t.Parallel()
	day := 24 * time.Hour
	tests := map[string]struct {
		now, rtc time.Time
		set      time.Time
		trusted  bool
	}{
		"fine":            {clockFloor.Add(day), time.Time{}, time.Time{}, true},
		"at the floor":    {clockFloor, time.Time{}, time.Time{}, true},
		"1970, no rtc":    {time.Unix(3, 0), time.Time{}, clockFloor, false},
		"1970, rtc fine":  {time.Unix(3, 0), clockFloor.Add(day), clockFloor.Add(day), true},
		"1970, rtc unset": {time.Unix(3, 0), time.Unix(9, 0), clockFloor, false},
	}
	for name, c := range tests {
		if set, trusted := saneClock(c.now, c.rtc); !set.Equal(c.set) || trusted != c.trusted {
			t.Errorf("%s: got %v, %v; want %v, %v", name, set, trusted, c.set, c.trusted)
		}
	}
}
