// SPDX-License-Identifier: Apache-2.0

package packages

import (
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strings"
	"sync"
	"testing"
)

// openReal opens a new cache on the real system, whose own programs don't
// count, or skips where there is no apt of Debian's to fetch with.
func openReal(t *testing.T, dir string) *Cache {
	t.Helper()
	c, err := Open(Config{Dir: dir, NoSystem: true})
	if err != nil {
		t.Fatal(err)
	}
	if err := c.mayFetch(mustSpec(t, BusyboxFor(runtime.GOARCH)), nil); err != nil {
		t.Skipf("this machine cannot fetch packages: %v", err)
	}
	return c
}

// needArchive skips where the archive is not to be reached: that is the
// machine's, not this package's, business.
func needArchive(t *testing.T, c *Cache) {
	t.Helper()
	_, err := openApt(t.Context(), filepath.Join(t.TempDir(), "apt"), c.distro, c.apt)
	if err == nil {
		return
	}
	for _, network := range []string{"resolv", "connect", "unreachable", "timed out"} {
		if strings.Contains(err.Error(), network) {
			t.Skipf("this machine doesn't reach its package archive: %v", err)
		}
	}
	t.Fatal(err)
}

func TestFetchFromArchive(t *testing.T) {
	t.Parallel()
	dir := filepath.Join(t.TempDir(), "cache with space")
	c := openReal(t, dir)
	needArchive(t, c)
	need := BusyboxFor(runtime.GOARCH)
	var wg sync.WaitGroup
	paths := make([]string, 2)
	for i := range paths {
		wg.Go(func() {
			set, err := openReal(t, dir).Ensure(t.Context(), func(s Step) { t.Log(i, s.Elapsed, s) }, need, E2fsprogs)
			if err != nil {
				t.Error(err)
				return
			}
			paths[i], err = set.Busybox(runtime.GOARCH)
			if err != nil {
				t.Error(err)
			}
		})
	}
	wg.Wait()
	if paths[0] == "" || paths[0] != paths[1] {
		t.Fatalf("two processes' busybox: %q", paths)
	}
	if out, err := exec.Command(paths[0], "echo", "it", "runs").CombinedOutput(); err != nil || string(out) != "it runs\n" {
		t.Errorf("busybox echo: %q, %v", out, err)
	}
	checkMke2fs(t, c)
	offlineAfter(t, dir, paths[0])
}

// checkMke2fs runs a fetched program that is linked with fetched libraries.
func checkMke2fs(t *testing.T, c *Cache) {
	t.Helper()
	set, err := c.Ensure(t.Context(), nil, E2fsprogs)
	if err != nil {
		t.Fatal(err)
	}
	image := filepath.Join(t.TempDir(), "image")
	if out, err := set.Command("mke2fs", "-q", "-t", "ext4", image, "8M").CombinedOutput(); err != nil {
		t.Fatalf("mke2fs: %v: %s", err, out)
	}
	out, err := set.Command("debugfs", "-R", "stats", image).CombinedOutput()
	if err != nil || !strings.Contains(string(out), "Filesystem magic number:  0xEF53") {
		t.Errorf("debugfs: %v: %s", err, out)
	}
}

// offlineAfter proves that a filled cache needs neither apt nor a mirror: apt's
// programs are replaced by ones that leave a trace and fail.
func offlineAfter(t *testing.T, dir, want string) {
	t.Helper()
	c := openReal(t, dir)
	c.apt.bin = t.TempDir()
	trace := filepath.Join(c.apt.bin, "trace")
	for _, n := range []string{"apt-get", "apt-config", "dpkg-deb"} {
		writeFile(t, filepath.Join(c.apt.bin, n), "#!/bin/sh\necho \"$0 $*\" >>'"+trace+"'\nexit 1\n", 0o755)
	}
	set, err := c.Ensure(t.Context(), nil, BusyboxFor(runtime.GOARCH), E2fsprogs)
	if err != nil {
		t.Fatal(err)
	}
	if got, err := set.Busybox(runtime.GOARCH); err != nil || got != want {
		t.Errorf("busybox offline: %s, %v; want %s", got, err, want)
	}
	if b, err := os.ReadFile(trace); err == nil {
		t.Errorf("called with a filled cache: %s", b)
	}
	if err := c.Update(t.Context(), nil, E2fsprogs); err == nil {
		t.Error("Update without a mirror succeeds")
	}
	if _, err := os.Stat(trace); err != nil {
		t.Error("Update, which must ask the archive, didn't: the trace proves nothing")
	}
}

// TestDeadMirror has the system's apt ask a mirror that nobody answers for.
func TestDeadMirror(t *testing.T) {
	t.Parallel()
	c := openReal(t, t.TempDir())
	c.apt.etc = t.TempDir()
	writeFile(t, filepath.Join(c.apt.etc, "sources.list"), "deb file:"+t.TempDir()+" "+c.distro.codename+" main\n", 0o644)
	set, err := c.Ensure(t.Context(), nil, E2fsprogs)
	if err == nil || set != nil || !strings.Contains(err.Error(), "apt-get update") {
		t.Errorf("Ensure = %v, %v; want an error with what to check", set, err)
	}
}

// TestUnsignedArchive has an archive that nobody signed, and that the system's
// configuration calls trusted: it must not be used.
func TestUnsignedArchive(t *testing.T) {
	t.Parallel()
	c := openReal(t, t.TempDir())
	c.apt.etc = t.TempDir()
	repo := t.TempDir()
	release := "Origin: Debian\nCodename: " + c.distro.codename + "\nSuite: stable\nComponents: main\nArchitectures: amd64 arm64\n"
	writeFile(t, filepath.Join(repo, "dists", c.distro.codename, "Release"), release, 0o644)
	writeFile(t, filepath.Join(c.apt.etc, "sources.list"), "deb [trusted=yes allow-insecure=yes] file:"+repo+" "+c.distro.codename+" main\n", 0o644)
	set, err := c.Ensure(t.Context(), nil, E2fsprogs)
	if err == nil || set != nil || !strings.Contains(err.Error(), "not signed") {
		t.Errorf("Ensure = %v, %v; want that the archive is not signed", set, err)
	}
}

// cached gives a set of needs that the user's cache or the system has, or
// skips: the emulated server's own start fills it.
func cached(t *testing.T, needs ...Need) (*Cache, *Set) {
	t.Helper()
	c, err := Open(Config{Offline: true})
	if err != nil {
		t.Skipf("no cache: %v", err)
	}
	set, err := c.Ensure(t.Context(), nil, needs...)
	if err != nil {
		t.Skipf("not in the cache: %v", err)
	}
	return c, set
}

func TestManufactureTPM(t *testing.T) {
	t.Parallel()
	_, set := cached(t, SWTPM)
	dir := t.TempDir()
	state, ca := filepath.Join(dir, "tpm state"), filepath.Join(dir, "ca")
	if err := set.ManufactureTPM(t.Context(), state, ca); err != nil {
		t.Fatal(err)
	}
	for _, f := range []string{filepath.Join(state, "tpm2-00.permall"), filepath.Join(ca, "issuercert.pem")} {
		if !isFile(f) {
			t.Errorf("%s is not there", f)
		}
	}
	if err := set.ManufactureTPM(t.Context(), state, ca); err == nil {
		t.Error("a TPM is manufactured over another")
	}
	if err := set.ManufactureTPM(t.Context(), filepath.Join(dir, "second"), ca); err != nil {
		t.Errorf("second TPM of the same maker: %v", err)
	}
	if err := set.ManufactureTPM(t.Context(), filepath.Join(dir, "line\nbreak"), ca); err == nil {
		t.Error("a folder name with a line break gets into the configuration")
	}
}

func TestFetchedProgramsRun(t *testing.T) {
	t.Parallel()
	_, set := cached(t, QEMU, SWTPM, E2fsprogs)
	for _, args := range [][]string{
		{"qemu-system-aarch64", "--version"}, {"qemu-system-x86_64", "--version"}, {"qemu-img", "--version"},
		{"swtpm", "--version"}, {"swtpm_cert", "--version"}, {"certtool", "--version"}, {"mke2fs", "-V"}, {"debugfs", "-V"}, {"e2fsck", "-V"},
		{"qemu-system-aarch64", "-M", "virt", "-device", "virtio-net-pci,help"},
		{"qemu-system-x86_64", "-M", "q35", "-device", "vhost-user-blk-pci,help"},
	} {
		if out, err := set.Command(args[0], args[1:]...).CombinedOutput(); err != nil {
			t.Errorf("%q: %v: %s", args, err, out)
		}
	}
}
