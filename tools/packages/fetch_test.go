// SPDX-License-Identifier: Apache-2.0

package packages

import (
	"bufio"
	"context"
	"errors"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"
)

// mustOpen opens the fake cache.
func mustOpen(t *testing.T, dir string) *Cache {
	t.Helper()
	c, err := openFake(dir)
	if err != nil {
		t.Fatal(err)
	}
	return c
}

// mustEnsure fetches e2fsprogs and gives the path of mke2fs.
func mustEnsure(t *testing.T, c *Cache) string {
	t.Helper()
	set, err := c.Ensure(t.Context(), nil, E2fsprogs)
	if err != nil {
		t.Fatal(err)
	}
	path, err := set.Tool("mke2fs")
	if err != nil {
		t.Fatal(err)
	}
	return path
}

func TestEnsureFetchesOnce(t *testing.T) {
	t.Parallel()
	dir := fakeDir(t)
	c := mustOpen(t, dir)
	var steps []string
	set, err := c.Ensure(t.Context(), func(s Step) { steps = append(steps, string(s.Phase)) }, E2fsprogs)
	if err != nil {
		t.Fatal(err)
	}
	want := []Phase{PhaseIndex, PhasePlan, PhaseDownload, PhaseUnpack, PhaseReady}
	for i, p := range want {
		if i >= len(steps) || steps[i] != string(p) {
			t.Fatalf("steps %q, want %q", steps, want)
		}
	}
	root, version, err := set.Where(E2fsprogs)
	if err != nil || version != "1.47.0-2" || !strings.HasPrefix(root, filepath.Join(dir, "cache/packages/bookworm-")) {
		t.Errorf("Where = %s, %s, %v", root, version, err)
	}
	got := strings.Join(calls(t, dir), "\n")
	for _, call := range []string{"update", "install --print-uris", "e2fsprogs:", "-x "} {
		if !strings.Contains(got, call) {
			t.Errorf("no %q in calls\n%s", call, got)
		}
	}
	if strings.Contains(got, "allow-unauthenticated") {
		t.Errorf("unverified content accepted:\n%s", got)
	}
	if tmp, err := os.ReadDir(filepath.Join(c.store(), tmpName)); err != nil || len(tmp) != 0 {
		t.Errorf("left behind: %v, %v", tmp, err)
	}
	mustEnsure(t, mustOpen(t, dir))
	if again := calls(t, dir); again != nil {
		t.Errorf("second Ensure called %q", again)
	}
}

func TestEnsureOfflineWithFilledCache(t *testing.T) {
	t.Parallel()
	dir := fakeDir(t)
	path := mustEnsure(t, mustOpen(t, dir))
	// Not even the programs that could fetch are there any more.
	if err := os.RemoveAll(filepath.Join(dir, "bin")); err != nil {
		t.Fatal(err)
	}
	c := mustOpen(t, dir)
	c.cfg.Offline = true
	if got := mustEnsure(t, c); got != path {
		t.Errorf("mke2fs is %s, want %s", got, path)
	}
	set, err := c.Ensure(t.Context(), nil, E2fsprogs, SWTPM)
	if !errors.Is(err, ErrMissing) || set != nil || !strings.Contains(err.Error(), "sudo apt-get install swtpm") {
		t.Errorf("Ensure of what is not there: %v, %v; want the remedy", set, err)
	}
}

func TestUpdateKeepsPredecessor(t *testing.T) {
	t.Parallel()
	dir := fakeDir(t)
	c := mustOpen(t, dir)
	first := mustEnsure(t, c)
	var paths []string
	for _, v := range []string{"1.47.1-1", "1.47.2-1"} {
		setArchive(t, dir, v, "usr/sbin/mke2fs "+v+"\nsbin/debugfs x\nsbin/e2fsck x\n")
		if err := c.Update(t.Context(), nil, E2fsprogs); err != nil {
			t.Fatal(err)
		}
		path := mustEnsure(t, c)
		if b, err := os.ReadFile(path); err != nil || string(b) != v {
			t.Errorf("after the update mke2fs is %q, %v; want %q", b, err, v)
		}
		paths = append(paths, path)
	}
	if !isFile(paths[0]) || !isFile(paths[1]) || isFile(first) {
		t.Errorf("first there: %v (want removed), second: %v, third: %v", isFile(first), isFile(paths[0]), isFile(paths[1]))
	}
	calls(t, dir)
	if err := c.Update(t.Context(), nil, E2fsprogs); err != nil {
		t.Fatal(err)
	}
	for _, call := range calls(t, dir) {
		if strings.HasPrefix(call, "download") {
			t.Errorf("nothing new, and yet %q", call)
		}
	}
}

func TestUpdateWithDeadMirror(t *testing.T) {
	t.Parallel()
	dir := fakeDir(t)
	c := mustOpen(t, dir)
	before := mustEnsure(t, c)
	writeFile(t, filepath.Join(dir, "bin/fail-update"), "", 0o644)
	err := c.Update(t.Context(), nil, E2fsprogs)
	if err == nil || !strings.Contains(err.Error(), "update went wrong") || strings.Contains(err.Error(), "noise") {
		t.Errorf("error is %v, want apt's own and nothing else", err)
	}
	if after := mustEnsure(t, c); after != before {
		t.Errorf("after a failed update mke2fs is %s, want %s", after, before)
	}
}

func TestEnsureFailures(t *testing.T) {
	t.Parallel()
	for _, tc := range []struct {
		name  string
		spoil func(t *testing.T, dir string)
		want  string
		is    error
	}{
		{"update fails", func(t *testing.T, dir string) { writeFile(t, filepath.Join(dir, "bin/fail-update"), "", 0o644) }, "apt-get update", nil},
		{"resolving fails", func(t *testing.T, dir string) { writeFile(t, filepath.Join(dir, "bin/fail-install"), "", 0o644) }, "resolve e2fsprogs", nil},
		{"download fails", func(t *testing.T, dir string) { writeFile(t, filepath.Join(dir, "bin/fail-download"), "", 0o644) }, "download", nil},
		{"unpacking fails", func(t *testing.T, dir string) { writeFile(t, filepath.Join(dir, "bin/fail-unpack"), "", 0o644) }, "unpack package e2fsprogs", nil},
		{"package not in the archive", func(t *testing.T, dir string) { writeFile(t, filepath.Join(dir, "bin/plan"), "", 0o644) }, "package e2fsprogs is not in the archive", ErrMissing},
		{"version too old", func(t *testing.T, dir string) { setArchive(t, dir, "1.40-1", "usr/sbin/mke2fs x\n") }, "package e2fsprogs is version 1.40, want 1.45", ErrMissing},
		{"program not in the package", func(t *testing.T, dir string) { setArchive(t, dir, "1.47-1", "usr/sbin/mke2fs x\n") }, "no program debugfs", ErrMissing},
		{"altered download", alterDownload, "signed metadata says", nil},
		{"foreign archive", func(t *testing.T, dir string) { writeFile(t, filepath.Join(dir, "bin/origin"), "Vendor", 0o644) }, "sudo apt-get install e2fsprogs", ErrNoArchive},
		{"no sources", func(t *testing.T, dir string) {
			if err := os.RemoveAll(filepath.Join(dir, "system/etc/apt")); err != nil {
				t.Fatal(err)
			}
		}, "sudo apt-get install e2fsprogs", ErrNoArchive},
		{"no apt", func(t *testing.T, dir string) {
			if err := os.RemoveAll(filepath.Join(dir, "bin")); err != nil {
				t.Fatal(err)
			}
		}, "sudo apt-get install e2fsprogs", ErrMissing},
		{"another system", func(t *testing.T, dir string) {
			writeFile(t, filepath.Join(dir, "system/etc/os-release"), testdata(t, "os-release.ubuntu24"), 0o644)
		}, "sudo apt-get install e2fsprogs", ErrMissing},
	} {
		t.Run(tc.name, func(t *testing.T) {
			t.Parallel()
			dir := fakeDir(t)
			tc.spoil(t, dir)
			c := mustOpen(t, dir)
			set, err := c.Ensure(t.Context(), nil, E2fsprogs)
			if err == nil || set != nil || !strings.Contains(err.Error(), tc.want) || (tc.is != nil && !errors.Is(err, tc.is)) {
				t.Errorf("Ensure = %v, %v; want error %v with %q", set, err, tc.is, tc.want)
			}
			if _, err := os.Lstat(filepath.Join(c.store(), string(E2fsprogs), currentName)); err == nil {
				t.Error("something is published")
			}
		})
	}
}

// alterDownload changes an archive after the metadata was made.
func alterDownload(t *testing.T, dir string) {
	debs, err := filepath.Glob(filepath.Join(dir, "bin/e2fsprogs_*.deb"))
	if err != nil || len(debs) != 1 {
		t.Fatal(debs, err)
	}
	writeFile(t, debs[0], "usr/sbin/mke2fs evil\nsbin/debugfs evil\nsbin/e2fsck evil\n", 0o644)
}

func TestEnsureUnknownNeed(t *testing.T) {
	t.Parallel()
	if set, err := mustOpen(t, fakeDir(t)).Ensure(t.Context(), nil, "coffee"); !errors.Is(err, ErrUnknownNeed) || set != nil {
		t.Errorf("Ensure = %v, %v; want ErrUnknownNeed", set, err)
	}
}

func TestEnsureConcurrently(t *testing.T) {
	t.Parallel()
	dir := fakeDir(t)
	const processes = 4
	var wg sync.WaitGroup
	outs := make([]string, processes)
	for i := range processes {
		wg.Go(func() {
			out, err := fetchProcess(t.Context(), dir).CombinedOutput()
			outs[i] = string(out)
			if err != nil {
				t.Errorf("process %d: %v\n%s", i, err, out)
			}
		})
	}
	wg.Wait()
	updates := 0
	for _, call := range calls(t, dir) {
		if strings.HasPrefix(call, "download") {
			updates++
		}
	}
	if updates != 1 {
		t.Errorf("%d downloads, want 1; output %q", updates, outs)
	}
}

// fetchProcess prepares a process that fetches, as another clone's would.
func fetchProcess(ctx context.Context, dir string) *exec.Cmd {
	self, err := os.Executable()
	if err != nil {
		self = os.Args[0]
	}
	cmd := exec.CommandContext(ctx, self)
	cmd.Env = append(os.Environ(), fetchEnv+"="+dir)
	return cmd
}

func TestKilledFetchRecovers(t *testing.T) {
	t.Parallel()
	for what, phase := range map[string]Phase{
		"update": PhaseIndex, "install": PhasePlan, "download": PhaseDownload, "unpack": PhaseUnpack,
	} {
		t.Run(what, func(t *testing.T) {
			t.Parallel()
			dir := fakeDir(t)
			hang := filepath.Join(dir, "bin/hang-"+what)
			writeFile(t, hang, "", 0o644)
			killAt(t, dir, phase)
			c := mustOpen(t, dir)
			if _, err := c.find(t.Context(), mustSpec(t, E2fsprogs)); err == nil {
				t.Error("a killed fetch has met the need")
			}
			if err := os.Remove(hang); err != nil {
				t.Fatal(err)
			}
			mustEnsure(t, c)
			if tmp, err := os.ReadDir(filepath.Join(c.store(), tmpName)); err != nil || len(tmp) != 0 {
				t.Errorf("left behind: %v, %v", tmp, err)
			}
		})
	}
}

func mustSpec(t *testing.T, n Need) spec {
	t.Helper()
	s, err := specOf(n)
	if err != nil {
		t.Fatal(err)
	}
	return s
}

// killAt starts a fetching process and kills it once it has come to a phase.
func killAt(t *testing.T, dir string, phase Phase) {
	t.Helper()
	cmd := fetchProcess(t.Context(), dir)
	out, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	lines := bufio.NewScanner(out)
	for lines.Scan() && !strings.Contains(lines.Text(), string(phase)) {
		if strings.Contains(lines.Text(), "error:") {
			t.Error(lines.Text())
		}
	}
	if err := cmd.Process.Signal(syscall.SIGKILL); err != nil {
		t.Fatal(err)
	}
	if err := cmd.Wait(); err == nil {
		t.Errorf("the process ended by itself before %q", phase)
	}
}

func TestEnsureCancelled(t *testing.T) {
	t.Parallel()
	for what, phase := range map[string]Phase{"update": PhaseIndex, "download": PhaseDownload, "unpack": PhaseUnpack} {
		t.Run(what, func(t *testing.T) {
			t.Parallel()
			dir := fakeDir(t)
			writeFile(t, filepath.Join(dir, "bin/hang-"+what), "", 0o644)
			ctx, cancel := context.WithCancel(t.Context())
			defer cancel()
			_, err := mustOpen(t, dir).Ensure(ctx, func(s Step) {
				if s.Phase == phase {
					time.AfterFunc(50*time.Millisecond, cancel)
				}
			}, E2fsprogs)
			if err == nil || ctx.Err() == nil {
				t.Errorf("Ensure gave %v before it was cancelled", err)
			}
		})
	}
}

func TestEnsureWaitsForTheLock(t *testing.T) {
	t.Parallel()
	dir := fakeDir(t)
	c := mustOpen(t, dir)
	holder := &fetcher{cache: c, store: c.store(), progress: func(Step) {}}
	if err := os.MkdirAll(c.store(), 0o755); err != nil {
		t.Fatal(err)
	}
	unlock, err := holder.lock(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	_, err = c.Ensure(ctx, func(s Step) {
		if s.Phase == PhaseWait {
			cancel()
		}
	}, E2fsprogs)
	if !errors.Is(err, context.Canceled) {
		t.Errorf("Ensure = %v, want cancelled at the lock", err)
	}
	if _, err := c.Ensure(t.Context(), func(s Step) {
		if s.Phase == PhaseWait {
			unlock()
		}
	}, E2fsprogs); err != nil {
		t.Errorf("after the lock was free: %v", err)
	}
}

func TestDamagedGenerationIsReplaced(t *testing.T) {
	t.Parallel()
	for name, damage := range map[string]func(gen string) error{
		"marker gone":    func(gen string) error { return os.Remove(filepath.Join(gen, completeName)) },
		"marker cut":     func(gen string) error { return os.Truncate(filepath.Join(gen, completeName), 10) },
		"program gone":   func(gen string) error { return os.Remove(filepath.Join(gen, "root/usr/sbin/mke2fs")) },
		"not executable": func(gen string) error { return os.Chmod(filepath.Join(gen, "root/sbin/debugfs"), 0o644) },
		"tree gone":      func(gen string) error { return os.RemoveAll(gen) },
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			dir := fakeDir(t)
			c := mustOpen(t, dir)
			path := mustEnsure(t, c)
			gen := strings.TrimSuffix(path, "/root/usr/sbin/mke2fs")
			if err := damage(gen); err != nil {
				t.Fatal(err)
			}
			calls(t, dir)
			if again := mustEnsure(t, c); again != path {
				t.Errorf("mke2fs is %s, want %s", again, path)
			}
			if calls(t, dir) == nil {
				t.Error("the damage went unnoticed")
			}
		})
	}
}
