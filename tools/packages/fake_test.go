// SPDX-License-Identifier: Apache-2.0

package packages

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"fmt"
	"io"
	"log/slog"
	"os"
	"path/filepath"
	"runtime"
	"strings"
	"testing"
	"time"
)

// The test binary plays apt's programs when it is called by their names, and
// a whole fetching process when fetchEnv is set. What the fakes do is decided
// by files beside them:
//
//	plan           what --print-uris prints
//	NAME.deb       an archive: a line "PATH CONTENT" for each program in it
//	hang-WHAT      update, install, download or unpack stops there for good
//	fail-WHAT      … or fails
//	calls          one line for each call is appended
const fetchEnv = "DAVIT_TEST_FETCH"

// hangTime is longer than any test.
const hangTime = 10 * time.Minute

func TestMain(m *testing.M) {
	switch filepath.Base(os.Args[0]) {
	case "apt-config":
		return
	case "apt-get", "dpkg-deb":
		os.Exit(fakeProgram(filepath.Dir(os.Args[0]), os.Args[1:]))
	}
	if dir := os.Getenv(fetchEnv); dir != "" {
		os.Exit(fakeProcess(dir))
	}
	// Under the race detector each of the many fakes would end a second late.
	if err := os.Setenv("GORACE", "atexit_sleep_ms=0"); err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
	os.Exit(m.Run())
}

func fakeProgram(dir string, args []string) int {
	calls, err := os.OpenFile(filepath.Join(dir, "calls"), os.O_CREATE|os.O_APPEND|os.O_WRONLY, 0o644)
	if err != nil {
		return 2
	}
	fmt.Fprintln(calls, strings.Join(args, " "))
	_ = calls.Close()
	what := strings.ReplaceAll(args[0], "-x", "unpack")
	if _, err := os.Stat(filepath.Join(dir, "hang-"+what)); err == nil {
		<-time.After(hangTime)
	}
	if _, err := os.Stat(filepath.Join(dir, "fail-"+what)); err == nil {
		fmt.Fprintf(os.Stderr, "W: noise\nE: %s went wrong\n", what)
		return 100
	}
	switch what {
	case "indextargets":
		origin, err := os.ReadFile(filepath.Join(dir, "origin"))
		if err != nil {
			origin = []byte("Debian")
		}
		fmt.Printf("Debian|bookworm-backports|Packages\n%s|bookworm|Packages\n", origin)
	case "install":
		err = copyTo(os.Stdout, filepath.Join(dir, "plan"))
	case "download":
		err = fakeDownload(dir)
	case "unpack":
		err = fakeUnpack(args[1], args[2])
	}
	if err != nil {
		fmt.Fprintln(os.Stderr, "E:", err)
		return 100
	}
	return 0
}

func copyTo(w io.Writer, path string) error {
	b, err := os.ReadFile(path)
	if err == nil {
		_, err = w.Write(b)
	}
	return err
}

func fakeDownload(dir string) error {
	debs, _ := filepath.Glob(filepath.Join(dir, "*.deb"))
	for _, d := range debs {
		b, err := os.ReadFile(d)
		if err == nil {
			err = os.WriteFile(filepath.Base(d), b, 0o644)
		}
		if err != nil {
			return err
		}
	}
	return nil
}

func fakeUnpack(deb, root string) error {
	b, err := os.ReadFile(deb)
	if err != nil {
		return err
	}
	for line := range strings.Lines(string(b)) {
		path, content, _ := strings.Cut(strings.TrimSpace(line), " ")
		path = filepath.Join(root, path)
		if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
			return err
		}
		if err := os.WriteFile(path, []byte(content), 0o755); err != nil {
			return err
		}
	}
	return nil
}

// fakeProcess is a whole process that fetches into dir, and prints its steps.
func fakeProcess(dir string) int {
	c, err := openFake(dir)
	if err == nil {
		_, err = c.Ensure(context.Background(), func(s Step) { fmt.Println(s) }, E2fsprogs)
	}
	if err != nil {
		fmt.Println("error:", err)
		return 1
	}
	return 0
}

// openFake opens the cache dir/cache on a system below dir/system, with
// apt's programs in dir/bin.
func openFake(dir string) (*Cache, error) {
	c, err := Open(Config{
		Dir: filepath.Join(dir, "cache"), Root: filepath.Join(dir, "system"), NoSystem: true,
		Log: slog.New(slog.DiscardHandler),
	})
	if err != nil {
		return nil, err
	}
	// The disk of a test is nobody's to wait for; TestFetchFromArchive syncs.
	c.sync = func(string) error { return nil }
	c.apt.bin = filepath.Join(dir, "bin")
	return c, nil
}

// fakeDir makes what openFake expects: a Debian 12 whose archive has e2fsprogs.
func fakeDir(t *testing.T) string {
	t.Helper()
	dir := t.TempDir()
	writeFile(t, filepath.Join(dir, "system/etc/os-release"), "ID=debian\nVERSION_CODENAME=bookworm\nPRETTY_NAME=Fake", 0o644)
	writeFile(t, filepath.Join(dir, "system/etc/apt/sources.list.d/debian.sources"), testdata(t, "image.sources"), 0o644)
	self, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	if err := os.MkdirAll(filepath.Join(dir, "bin"), 0o755); err != nil {
		t.Fatal(err)
	}
	for _, n := range []string{"apt-get", "apt-config", "dpkg-deb"} {
		if err := os.Symlink(self, filepath.Join(dir, "bin", n)); err != nil {
			t.Fatal(err)
		}
	}
	setArchive(t, dir, "1.47.0-2", "usr/sbin/mke2fs #!/bin/true\nsbin/debugfs #!/bin/true\nsbin/e2fsck #!/bin/true\n")
	return dir
}

// setArchive makes the fake archive offer e2fsprogs in a version, with content.
func setArchive(t *testing.T, dir, version, content string) {
	t.Helper()
	bin := filepath.Join(dir, "bin")
	old, _ := filepath.Glob(filepath.Join(bin, "*.deb"))
	for _, o := range old {
		if err := os.Remove(o); err != nil {
			t.Fatal(err)
		}
	}
	var plan strings.Builder
	for name, c := range map[string]string{"e2fsprogs": content, "libext2fs2": "usr/lib/" + triplet() + "/libext2fs.so.2 x\n"} {
		file := name + "_" + version + "_" + runtime.GOARCH + ".deb"
		writeFile(t, filepath.Join(bin, file), c, 0o644)
		sum := sha256.Sum256([]byte(c))
		fmt.Fprintf(&plan, "'http://mirror.example.org/%s' %s %d SHA256:%s\n", file, file, len(c), hex.EncodeToString(sum[:]))
	}
	writeFile(t, filepath.Join(bin, "plan"), plan.String(), 0o644)
}

// calls gives the calls of apt's programs so far, and forgets them.
func calls(t *testing.T, dir string) []string {
	t.Helper()
	path := filepath.Join(dir, "bin/calls")
	b, err := os.ReadFile(path)
	if err != nil {
		return nil
	}
	if err := os.Remove(path); err != nil {
		t.Fatal(err)
	}
	return strings.Split(strings.TrimSpace(string(b)), "\n")
}
