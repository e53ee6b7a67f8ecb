// SPDX-License-Identifier: Apache-2.0

package packages

import (
	"errors"
	"os"
	"path/filepath"
	"runtime"
	"strings"
	"testing"
)

func TestCheckNeed(t *testing.T) {
	t.Parallel()
	dir := fakeDir(t)
	c := mustOpen(t, dir)
	set := &Set{places: map[Need]place{}}
	f := c.checkNeed(t.Context(), E2fsprogs, set)
	if f.Status != StatusFetch || f.Remedy != "make run" || !strings.Contains(f.Detail, "e2fsprogs") {
		t.Errorf("before the fetch: %v", f)
	}
	mustEnsure(t, c)
	calls(t, dir)
	f = c.checkNeed(t.Context(), E2fsprogs, set)
	if f.Status != StatusOK || f.Version != "1.47.0-2" || !strings.HasSuffix(f.Path, "/mke2fs") || f.Remedy != "" {
		t.Errorf("after the fetch: %v", f)
	}
	if f := c.checkNeed(t.Context(), "coffee", set); f.Status != StatusMissing {
		t.Errorf("unknown need: %v", f)
	}
	if got := calls(t, dir); got != nil {
		t.Errorf("a check called %q", got)
	}
}

func TestCheckNamesTheRemedy(t *testing.T) {
	t.Parallel()
	for _, tc := range []struct {
		name, osRelease string
		need            Need
		want            string
	}{
		{"ubuntu", "ID=ubuntu\nID_LIKE=debian\nVERSION_CODENAME=noble", QEMU, "sudo apt-get install qemu-system-arm qemu-system-x86 qemu-utils"},
		{"a child of ubuntu", "ID=mint\nID_LIKE=\"ubuntu debian\"", SWTPM, "sudo apt-get install swtpm swtpm-tools gnutls-bin"},
		{"fedora", "ID=fedora", SWTPM, "sudo dnf install swtpm swtpm-tools gnutls-utils"},
		{"arch", "ID=arch", E2fsprogs, "sudo pacman -S --needed e2fsprogs"},
		{"kernel", "ID=fedora", KernelFor(ArchARM64), "dpkg -x PACKAGE.deb "},
		{"unknown", "ID=nixos", QEMU, "dpkg -x PACKAGE.deb "},
		{"nothing known", "", QEMU, "dpkg -x PACKAGE.deb "},
		{"debian with sources of nobody", "ID=debian\nVERSION_CODENAME=forky", QEMU, "sudo apt-get install qemu-system-arm"},
	} {
		t.Run(tc.name, func(t *testing.T) {
			t.Parallel()
			dir := fakeDir(t)
			writeFile(t, filepath.Join(dir, "system/etc/os-release"), tc.osRelease, 0o644)
			f := mustOpen(t, dir).checkNeed(t.Context(), tc.need, &Set{places: map[Need]place{}})
			if f.Status != StatusMissing || !strings.Contains(f.Remedy, tc.want) || !strings.Contains(f.String(), tc.want) {
				t.Errorf("finding %v, want remedy %q", f, tc.want)
			}
		})
	}
}

func TestCheckWholeSystem(t *testing.T) {
	t.Parallel()
	dir := fakeDir(t)
	findings := mustOpen(t, dir).Check(t.Context(), E2fsprogs)
	var names []string
	for _, f := range findings {
		names = append(names, f.Name)
		if f.Status == StatusMissing && f.Remedy == "" {
			t.Errorf("no remedy: %v", f)
		}
		if f.Purpose == "" || strings.Contains(f.String(), "\n") {
			t.Errorf("not one readable line: %q", f)
		}
	}
	if got, want := strings.Join(names, ","), "go,e2fsprogs,kvm,disk,shared memory,user namespaces"; got != want {
		t.Errorf("checks %s, want %s", got, want)
	}
	if _, err := os.Stat(filepath.Join(dir, "cache")); err == nil {
		t.Error("a check has made the cache")
	}
}

func TestCheckSpace(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	if f := checkSpace(Finding{}, dir, 1, "mend"); f.Status != StatusOK || f.Remedy != "" {
		t.Errorf("one byte: %v", f)
	}
	if f := checkSpace(Finding{}, dir, 1<<62, "mend"); f.Status != StatusMissing || f.Remedy != "mend" {
		t.Errorf("too much: %v", f)
	}
	if f := checkSpace(Finding{}, filepath.Join(dir, "no"), 1, "mend"); f.Status != StatusMissing {
		t.Errorf("no folder: %v", f)
	}
}

func TestTrialWatch(t *testing.T) {
	t.Parallel()
	stopped := 0
	w := &trialWatch{stop: func() { stopped++ }}
	for _, chunk := range []string{"Booting\r\nKernel pan", "ic - not sync", "ing: VFS"} {
		if n, err := w.Write([]byte(chunk)); n != len(chunk) || err != nil {
			t.Fatal(n, err)
		}
	}
	if stopped != 1 || !strings.Contains(w.text(), trialBooted) {
		t.Errorf("stopped %d times with %q", stopped, w.text())
	}
	w = &trialWatch{stop: func() { stopped++ }}
	for range 3 {
		if n, err := w.Write(make([]byte, maxTrialOutput/2+1)); n != maxTrialOutput/2+1 || err != nil {
			t.Fatal(n, err)
		}
	}
	if len(w.text()) != maxTrialOutput || stopped < 2 {
		t.Errorf("%d bytes kept, stopped %d times", len(w.text()), stopped)
	}
	if got := oneLine("a\x1b[31m\nb" + strings.Repeat("x", 1000)); strings.ContainsAny(got, "\x1b\n") || len(got) > 300 {
		t.Errorf("oneLine = %q", got)
	}
}

func TestProbeKVM(t *testing.T) {
	t.Parallel()
	if err := openKVM(); err != nil {
		if !errors.Is(err, ErrNoKVM) {
			t.Errorf("openKVM: %v, want ErrNoKVM", err)
		}
		t.Skipf("nothing to probe: %v", err)
	}
	c, set := cached(t, QEMU, KernelFor(runtime.GOARCH))
	c.dir = t.TempDir()
	first := c.ProbeKVM(t.Context(), set)
	t.Logf("kvm: %v", first)
	if first != nil && !errors.Is(first, ErrNoKVM) {
		t.Errorf("ProbeKVM: %v, want nil or ErrNoKVM", first)
	}
	notes, err := os.ReadDir(filepath.Join(c.dir, "kvm"))
	if err != nil || len(notes) != 1 {
		t.Fatalf("kept answers: %v, %v; want one", notes, err)
	}
	writeFile(t, filepath.Join(c.dir, "kvm", notes[0].Name()), "as noted\n", 0o644)
	if again := c.ProbeKVM(t.Context(), set); again == nil || !strings.HasSuffix(again.Error(), "as noted") {
		t.Errorf("second probe: %v, want the kept answer", again)
	}
}
