// SPDX-License-Identifier: Apache-2.0

package packages

import (
	"errors"
	"os"
	"os/exec"
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
		{"its static busybox", "ID=ubuntu\nID_LIKE=debian", BusyboxFor(runtime.GOARCH), "sudo apt-get install busybox-static"},
		{"the kernel, not the package that names it", "ID=ubuntu", KernelFor(ArchARM64), "linux-image-VERSION-cloud-arm64, on which linux-image-cloud-arm64 depends, for arm64 from https://"},
		{"unpacker", "ID=fedora", KernelFor(ArchARM64), "sudo dnf install dpkg && mkdir -p "},
		{"unknown", "ID=nixos", QEMU, "install qemu-system-aarch64, qemu-system-x86_64, qemu-img, qemu-nbd where PATH"},
		{"nothing known", "", FirmwareFor(ArchARM64), "Debian's qemu-efi-aarch64 for arm64 from https://"},
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

// A program that is there and too old is not "not found", and installing it
// once more is no remedy.
func TestCheckSaysTooOld(t *testing.T) {
	t.Parallel()
	dir := fakeDir(t)
	root := filepath.Join(dir, "system")
	writeFile(t, filepath.Join(root, "etc/os-release"), "ID=ubuntu\nID_LIKE=debian\nVERSION_CODENAME=noble", 0o644)
	for _, n := range []string{"qemu-system-aarch64", "qemu-system-x86_64", "qemu-img"} {
		script(t, root, filepath.Join("usr/bin", n), "QEMU emulator version 8.2.2 (Debian 1:8.2.2+ds-0ubuntu1)\nuser")
	}
	script(t, root, "usr/sbin/mke2fs", "mke2fs 1.44.1")
	script(t, root, "usr/sbin/debugfs", "debugfs 1.44.1")
	script(t, root, "usr/sbin/e2fsck", "e2fsck 1.44.1")
	c := mustOpen(t, dir)
	c.cfg.NoSystem = false
	for n, want := range map[Need][2]string{
		QEMU:      {"qemu-system-aarch64 is version 8.2.2, want 10.0 or later", "--target-list=aarch64-softmmu,x86_64-softmmu"},
		E2fsprogs: {"mke2fs is version 1.44.1, want 1.45 or later", "install 1.45 or later where PATH"},
		SWTPM:     {"not found, want 0.7 or later", "sudo apt-get install swtpm"},
	} {
		f := c.checkNeed(t.Context(), n, &Set{places: map[Need]place{}})
		if f.Status != StatusMissing || !strings.Contains(f.Detail, want[0]) || !strings.Contains(f.Remedy, want[1]) {
			t.Errorf("finding %v, want %q", f, want)
		}
		_, err := c.Ensure(t.Context(), nil, n)
		if !errors.Is(err, ErrMissing) || !strings.Contains(err.Error(), want[1]) {
			t.Errorf("Ensure: %v, want %q", err, want[1])
		}
	}
}

// What everything works without is no reason to fail.
func TestCheckNotesTheOptional(t *testing.T) {
	t.Parallel()
	dir := fakeDir(t)
	writeFile(t, filepath.Join(dir, "system/etc/os-release"), "ID=ubuntu", 0o644)
	f := mustOpen(t, dir).checkNeed(t.Context(), TPM2Tools, &Set{places: map[Need]place{}})
	if f.Status != StatusNote || f.Remedy != "sudo apt-get install tpm2-tools" {
		t.Errorf("finding %v, want a note with the remedy", f)
	}
}

// A tree that was unpacked and is not whole is named, with what it lacks.
func TestCheckSaysNotWhole(t *testing.T) {
	t.Parallel()
	dir := fakeDir(t)
	writeFile(t, filepath.Join(dir, "system/etc/os-release"), "ID=ubuntu", 0o644)
	c := mustOpen(t, dir)
	tree := c.localDir(KernelFor(ArchARM64))
	writeFile(t, filepath.Join(tree, "usr/share/doc/linux-image-cloud-arm64/copyright"), "x", 0o644)
	f := c.checkNeed(t.Context(), KernelFor(ArchARM64), &Set{places: map[Need]place{}})
	if f.Status != StatusMissing || !strings.Contains(f.Detail, tree+" has no boot/vmlinuz-") {
		t.Errorf("finding %v, want what %s lacks", f, tree)
	}
}

// What is printed to be typed does work: in a cache that isn't there yet, whose
// path the shell would take apart.
func TestUnpackCommandWorks(t *testing.T) {
	t.Parallel()
	bin := t.TempDir()
	// As the real one does, it makes the last folder only.
	writeFile(t, filepath.Join(bin, "dpkg"), "#!/bin/sh\ntest \"$1 $2\" = '-x FILE.deb' && { test -d \"$3\" || mkdir \"$3\"; } && echo x >\"$3/unpacked\"\n", 0o755)
	dir := fakeDir(t)
	writeFile(t, filepath.Join(dir, "system/etc/os-release"), "ID=ubuntu", 0o644)
	c := mustOpen(t, dir)
	c.dir = filepath.Join(t.TempDir(), "no", "it's $HOME")
	_, command, ok := strings.Cut(c.remedy(mustSpec(t, StubFor(ArchARM64)), errNotFound), ", then: ")
	if !ok {
		t.Fatal("no command in the remedy")
	}
	cmd := exec.Command("sh", "-c", command)
	cmd.Env = append(os.Environ(), "PATH="+bin+":"+os.Getenv("PATH"))
	if out, err := cmd.CombinedOutput(); err != nil {
		t.Fatalf("%s: %v: %s", command, err, out)
	}
	if file := filepath.Join(c.localDir(StubFor(ArchARM64)), "unpacked"); !isFile(file) {
		t.Errorf("%s didn't make %s", command, file)
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
