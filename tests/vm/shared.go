// SPDX-License-Identifier: Apache-2.0

package vm

import (
	"context"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"sync"
	"testing"

	"github.com/davit-dpu/davit/tools/packages"
	"github.com/davit-dpu/davit/tools/rig"
)

// shared is what all tests of one test program use and none changes.
var shared struct {
	dir string // made by Main, which removes it

	mu       sync.Mutex
	programs map[string]func() (string, error) // guarded by mu; by package
}

// Main runs the tests of a package, with a folder for what they share. Call it
// from TestMain.
func Main(m *testing.M) int {
	dir, err := os.MkdirTemp("", "davit-tests-")
	if err != nil {
		fmt.Fprintln(os.Stderr, "tests:", err)
		return 1
	}
	shared.dir = dir
	code := m.Run()
	if err := os.RemoveAll(dir); err != nil {
		fmt.Fprintln(os.Stderr, "tests:", err)
		return 1
	}
	return code
}

// sharedDir fails a test whose package does not use Main.
func sharedDir(t testing.TB) string {
	t.Helper()
	if shared.dir == "" {
		t.Fatal("the package's TestMain must call vm.Main")
	}
	return shared.dir
}

// Source is the module's folder.
func Source(t testing.TB) string {
	t.Helper()
	dir, err := os.Getwd()
	if err != nil {
		t.Fatal(err)
	}
	for {
		if _, err := os.Stat(filepath.Join(dir, "go.mod")); err == nil {
			return dir
		}
		parent := filepath.Dir(dir)
		if parent == dir {
			t.Fatal("no go.mod above the test")
		}
		dir = parent
	}
}

// State is the checkout's folder for what is built.
func State(t testing.TB) string { return filepath.Join(Source(t), ".davit") }

var packagesOnce = sync.OnceValues(func() (*packages.Set, error) {
	cache, err := packages.Open(packages.Config{})
	if err != nil {
		return nil, err
	}
	return cache.Ensure(context.Background(), func(s packages.Step) {
		if s.Phase != packages.PhaseDownload || s.Bytes == s.Total {
			fmt.Printf("packages: %s %s\n", s.Need, s.Phase)
		}
	}, packages.Default()...)
})

// Packages are the programs, firmware and kernels; what lacks is fetched.
func Packages(t testing.TB) *packages.Set {
	t.Helper()
	set, err := packagesOnce()
	if err != nil {
		t.Fatal(err)
	}
	return set
}

// Program builds one of our programs for this machine, once, and returns its
// path.
func Program(t testing.TB, pkg string) string {
	t.Helper()
	dir, source := sharedDir(t), Source(t)
	shared.mu.Lock()
	build := shared.programs[pkg]
	if build == nil {
		build = sync.OnceValues(func() (string, error) {
			out := filepath.Join(dir, "bin", filepath.Base(pkg))
			cmd := exec.Command("go", "build", "-trimpath", "-o", out, pkg)
			cmd.Dir = source
			if text, err := cmd.CombinedOutput(); err != nil {
				return "", fmt.Errorf("build %s: %w\n%s", pkg, err, text)
			}
			return out, nil
		})
		if shared.programs == nil {
			shared.programs = map[string]func() (string, error){}
		}
		shared.programs[pkg] = build
	}
	shared.mu.Unlock()
	path, err := build()
	if err != nil {
		t.Fatal(err)
	}
	return path
}

var seedOnce struct {
	sync.Once
	seed rig.Seed
	err  error
}

// Seed is what the demonstration needs on a card's storage. It is made once for
// all that boot it from a kernel, which is the same with and without load.
func Seed(t testing.TB, d rig.Demo) rig.Seed {
	t.Helper()
	dir, source, set := sharedDir(t), Source(t), Packages(t)
	if d.Disk {
		seed, err := d.Seed(t.Context(), set, source, runtime.GOARCH, t.TempDir())
		if err != nil {
			t.Fatal(err)
		}
		return seed
	}
	seedOnce.Do(func() {
		seedOnce.seed, seedOnce.err = d.Seed(context.Background(), set, source, runtime.GOARCH, filepath.Join(dir, "seed"))
	})
	if seedOnce.err != nil {
		t.Fatal(seedOnce.err)
	}
	return seedOnce.seed
}

// Image builds the development image, or finds it built.
func Image(t testing.TB) *rig.BuiltImage {
	t.Helper()
	return BuildImage(t, rig.ImageOptions{})
}

// BuildImage builds an image with options that differ from the usual.
func BuildImage(t testing.TB, o rig.ImageOptions) *rig.BuiltImage {
	t.Helper()
	o.Source, o.Set = Source(t), Packages(t)
	o.Keys, o.Cache, o.Out = filepath.Join(State(t), "keys"), filepath.Join(State(t), "cache"), t.TempDir()
	built, err := rig.BuildImage(t.Context(), o)
	if err != nil {
		t.Fatal(err)
	}
	return built
}
