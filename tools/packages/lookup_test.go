// SPDX-License-Identifier: Apache-2.0

package packages

import (
	"errors"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"slices"
	"strings"
	"testing"
)

// script makes a program below root that prints an answer.
func script(t *testing.T, root, path, answer string) {
	t.Helper()
	writeFile(t, filepath.Join(root, path), "#!/bin/sh\ncat <<'X'\n"+answer+"\nX\n", 0o755)
}

func TestOpenSystem(t *testing.T) {
	t.Parallel()
	const user = "Available netdev backend types:\nsocket\nuser\ntap"
	for _, tc := range []struct {
		name string
		arm  string
		x86  string
		ok   bool
	}{
		{"recent", "QEMU emulator version 10.0.2 (Debian)\n" + user, "QEMU emulator version 10.2.0\n" + user, true},
		{"one too old", "QEMU emulator version 10.0.2\n" + user, "QEMU emulator version 8.2.2\n" + user, false},
		{"without user networking", "QEMU emulator version 10.0.2\nsocket", "QEMU emulator version 10.0.2\nsocket", false},
		{"one not there", "QEMU emulator version 10.0.2\n" + user, "", false},
		{"answer without version", "hello\n" + user, "hello\n" + user, false},
	} {
		t.Run(tc.name, func(t *testing.T) {
			t.Parallel()
			root := t.TempDir()
			script(t, root, "usr/bin/qemu-system-aarch64", tc.arm)
			if tc.x86 != "" {
				script(t, root, "usr/bin/qemu-system-x86_64", tc.x86)
			}
			script(t, root, "usr/bin/qemu-img", "qemu-img version 10.0.2")
			script(t, root, "usr/bin/qemu-nbd", "qemu-nbd 10.0.2")
			p, err := openSystem(t.Context(), root, mustSpec(t, QEMU))
			if (err == nil) != tc.ok {
				t.Fatalf("openSystem = %v, want found %v", err, tc.ok)
			}
			if tc.ok && (p.version != "10.0.2" || p.kind != kindSystem) {
				t.Errorf("found version %s as %s", p.version, p.kind)
			}
		})
	}
}

func TestOpenSystemProgramFails(t *testing.T) {
	t.Parallel()
	root := t.TempDir()
	for _, n := range []string{"mke2fs", "debugfs", "e2fsck"} {
		writeFile(t, filepath.Join(root, "sbin", n), "#!/bin/sh\necho 1.47.0\nexit 3\n", 0o755)
	}
	if _, err := openSystem(t.Context(), root, mustSpec(t, E2fsprogs)); err == nil {
		t.Error("a program that fails is taken")
	}
}

func TestKernelNeverFromSystem(t *testing.T) {
	t.Parallel()
	root := t.TempDir()
	writeFile(t, filepath.Join(root, "boot/vmlinuz-6.12.1-cloud-arm64"), "x", 0o644)
	if _, err := openSystem(t.Context(), root, mustSpec(t, KernelFor(ArchARM64))); !errors.Is(err, ErrMissing) {
		t.Errorf("openSystem = %v, want ErrMissing", err)
	}
}

func TestLocalTreeComesFirst(t *testing.T) {
	t.Parallel()
	dir := fakeDir(t)
	c := mustOpen(t, dir)
	tree := c.localDir(KernelFor(ArchARM64))
	for _, f := range []string{"boot/vmlinuz-6.9", "boot/vmlinuz-7.0", "boot/config-7.0", "lib/modules/7.0/modules.builtin"} {
		writeFile(t, filepath.Join(tree, f), "x", 0o644)
	}
	set, err := c.Ensure(t.Context(), nil, KernelFor(ArchARM64))
	if err != nil {
		t.Fatal(err)
	}
	got, err := set.Kernel(ArchARM64)
	want := Kernel{
		Image: filepath.Join(tree, "boot/vmlinuz-7.0"), Config: filepath.Join(tree, "boot/config-7.0"),
		ModulesDir: filepath.Join(tree, "lib/modules/7.0"), Release: "7.0",
	}
	if err != nil || got != want {
		t.Errorf("Kernel = %+v, %v; want %+v", got, err, want)
	}
	if got := calls(t, dir); got != nil {
		t.Errorf("apt was called: %q", got)
	}
	if err := os.RemoveAll(filepath.Join(tree, "lib")); err != nil {
		t.Fatal(err)
	}
	if _, err := set.Kernel(ArchARM64); !errors.Is(err, ErrMissing) {
		t.Errorf("kernel without modules: %v, want ErrMissing", err)
	}
}

// The card's firmware must measure, where the distribution has one that doesn't.
func TestFirmwareWithTPM(t *testing.T) {
	t.Parallel()
	root := t.TempDir()
	s := mustSpec(t, FirmwareFor(ArchARM64))
	for _, name := range []string{"AAVMF_CODE.fd", "AAVMF_CODE.secboot.fd"} { // Debian 12, 13
		writeFile(t, filepath.Join(root, "usr/share/AAVMF", name), "x", 0o644)
		writeFile(t, filepath.Join(root, "usr/share/AAVMF/AAVMF_VARS.fd"), "x", 0o644)
		p, err := openTree(root, s)
		if err != nil {
			t.Fatal(err)
		}
		if got := filepath.Base(p.files[fileCode]); got != name {
			t.Errorf("firmware %s, want %s", got, name)
		}
	}
}

func TestBusyboxMustBeStatic(t *testing.T) {
	t.Parallel()
	self, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	other := ArchARM64
	if runtime.GOARCH == ArchARM64 {
		other = ArchAMD64
	}
	if isStatic(self, other) {
		t.Errorf("%s counts as a program for %s", self, other)
	}
	sh, err := exec.LookPath("sh")
	if err != nil {
		t.Fatal(err)
	}
	if isStatic(sh, runtime.GOARCH) {
		t.Errorf("%s counts as static", sh)
	}
	root := t.TempDir()
	writeFile(t, filepath.Join(root, "bin/busybox"), "#!/bin/sh\n", 0o755)
	if _, err := openTree(root, mustSpec(t, BusyboxFor(runtime.GOARCH))); !errors.Is(err, ErrMissing) {
		t.Errorf("a script for a busybox: %v, want ErrMissing", err)
	}
}

func TestCommand(t *testing.T) {
	t.Parallel()
	root := filepath.Join(t.TempDir(), "a [tree]*")
	lib := filepath.Join(root, "usr/lib", triplet())
	writeFile(t, filepath.Join(root, "etc/mke2fs.conf"), "", 0o644)
	for _, d := range []string{"usr/share/qemu", "usr/share/seabios", "usr/lib/" + triplet() + "/qemu"} {
		if err := os.MkdirAll(filepath.Join(root, d), 0o755); err != nil {
			t.Fatal(err)
		}
	}
	for _, n := range []string{"qemu-system-aarch64", "qemu-system-x86_64", "qemu-img", "qemu-nbd", "qemu-io"} {
		writeFile(t, filepath.Join(root, "usr/bin", n), "#!/bin/sh\necho $$ $LD_LIBRARY_PATH $QEMU_MODULE_DIR\n", 0o755)
	}
	p, err := openTree(root, mustSpec(t, QEMU))
	if err != nil {
		t.Fatal(err)
	}
	p.kind = kindFetched
	set := &Set{places: map[Need]place{QEMU: p}}
	cmd := set.Command("qemu-system-aarch64", "-M", "virt")
	want := []string{"-L", filepath.Join(root, "usr/share/qemu"), "-L", filepath.Join(root, "usr/share/seabios"), "-M", "virt"}
	if cmd.Err != nil || !slices.Equal(cmd.Args[1:], want) {
		t.Errorf("arguments %q, %v; want %q", cmd.Args[1:], cmd.Err, want)
	}
	for _, v := range []string{"QEMU_MODULE_DIR=" + filepath.Join(lib, "qemu"), "MKE2FS_CONFIG=" + filepath.Join(root, "etc/mke2fs.conf")} {
		if !slices.Contains(cmd.Env, v) {
			t.Errorf("no %s in the environment", v)
		}
	}
	if i := slices.IndexFunc(cmd.Env, func(s string) bool { return strings.HasPrefix(s, "LD_LIBRARY_PATH="+lib) }); i < 0 {
		t.Error("no LD_LIBRARY_PATH in the environment")
	}
	if os.Getenv("QEMU_MODULE_DIR") != "" {
		t.Error("the process's own environment is changed")
	}
	if got := set.Command("qemu-io", "-c").Args[1:]; !slices.Equal(got, []string{"-c"}) {
		t.Errorf("a program that is not a system emulator gets %q", got)
	}
	if err := set.Command("sh", "-c", "true").Run(); !errors.Is(err, ErrMissing) {
		t.Errorf("a program outside of the set: %v, want ErrMissing", err)
	}
}

func TestSetWithoutNeed(t *testing.T) {
	t.Parallel()
	set := &Set{}
	if _, err := set.Kernel(ArchARM64); !errors.Is(err, ErrMissing) {
		t.Errorf("Kernel: %v", err)
	}
	if _, err := set.Firmware(ArchARM64); !errors.Is(err, ErrMissing) {
		t.Errorf("Firmware: %v", err)
	}
	if _, err := set.Stub(ArchARM64); !errors.Is(err, ErrMissing) {
		t.Errorf("Stub: %v", err)
	}
	if _, err := set.Busybox(ArchAMD64); !errors.Is(err, ErrMissing) {
		t.Errorf("Busybox: %v", err)
	}
	if _, _, err := set.Where(QEMU); !errors.Is(err, ErrMissing) {
		t.Errorf("Where: %v", err)
	}
}

func TestTidyTree(t *testing.T) {
	t.Parallel()
	root := t.TempDir()
	writeFile(t, filepath.Join(root, "usr/lib/real"), "x", 0o644)
	writeFile(t, filepath.Join(root, "usr/bin/helper"), "x", 0o755)
	if err := os.Chmod(filepath.Join(root, "usr/bin/helper"), 0o755|os.ModeSetuid); err != nil {
		t.Fatal(err)
	}
	links := map[string][2]string{
		"etc/abs":     {"/usr/lib/real", "../usr/lib/real"},
		"etc/rel":     {"../usr/lib/real", "../usr/lib/real"},
		"etc/outside": {"/nowhere/at/all", "/nowhere/at/all"},
	}
	if err := os.Mkdir(filepath.Join(root, "etc"), 0o755); err != nil {
		t.Fatal(err)
	}
	for name, l := range links {
		if err := os.Symlink(l[0], filepath.Join(root, name)); err != nil {
			t.Fatal(err)
		}
	}
	if err := tidyTree(root); err != nil {
		t.Fatal(err)
	}
	for name, l := range links {
		if got, err := os.Readlink(filepath.Join(root, name)); err != nil || got != l[1] {
			t.Errorf("%s points to %q, %v; want %q", name, got, err, l[1])
		}
	}
	if info, err := os.Stat(filepath.Join(root, "usr/bin/helper")); err != nil || info.Mode() != 0o755 {
		t.Errorf("helper's mode is %v, %v; want 0755", info.Mode(), err)
	}
}

func TestTableIsWhole(t *testing.T) {
	t.Parallel()
	seen := map[Need]bool{}
	for _, s := range table() {
		if seen[s.need] || s.purpose == "" || len(s.roots) == 0 || len(s.commands)+len(s.files) == 0 {
			t.Errorf("row %q is not whole, or there twice", s.need)
		}
		seen[s.need] = true
		if s.closure && s.arch != "" && s.arch != runtime.GOARCH {
			t.Errorf("%s: programs of another architecture cannot be run here", s.need)
		}
	}
	for _, n := range append(Default(), TPM2Tools, NBDKit) {
		if !seen[n] {
			t.Errorf("%s is not in the table", n)
		}
	}
}
