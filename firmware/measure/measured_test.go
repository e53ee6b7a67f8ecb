// SPDX-License-Identifier: Apache-2.0

package measure

import (
	"crypto/sha256"
	"errors"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"golang.org/x/sys/unix"
)

func unanchored(t *testing.T) *Measurer {
	t.Helper()
	m, err := OpenUnanchored(filepath.Join(t.TempDir(), "log"))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { m.Close() })
	return m
}

func openFDs(t *testing.T) int {
	t.Helper()
	list, err := os.ReadDir("/proc/self/fd")
	if err != nil {
		t.Fatal(err)
	}
	return len(list)
}

// What was measured stays what it was, whatever becomes of the file, and
// cannot be written.
func TestMeasuredIsSealed(t *testing.T) {
	t.Parallel()
	path := filepath.Join(t.TempDir(), "config")
	if err := os.WriteFile(path, []byte("measured"), 0o600); err != nil {
		t.Fatal(err)
	}
	got, err := unanchored(t).File(t.Context(), KindConfig, path)
	if err != nil {
		t.Fatal(err)
	}
	defer got.Close()
	if err := os.WriteFile(path, []byte("replaced"), 0o600); err != nil {
		t.Fatal(err)
	}
	for what, err := range map[string]error{
		"write":    second(got.File().WriteAt([]byte("x"), 0)),
		"truncate": got.File().Truncate(0),
		"grow":     got.File().Truncate(1 << 20),
		"unseal":   second(unix.FcntlInt(got.File().Fd(), unix.F_ADD_SEALS, 0)),
	} {
		if err == nil {
			t.Errorf("%s of measured content succeeds", what)
		}
	}
	content, err := got.Read()
	if err != nil || string(content) != "measured" {
		t.Errorf("content %q, %v, want what was measured", content, err)
	}
	if got.Digest != sha256.Sum256([]byte("measured")) || got.Size != 8 {
		t.Errorf("digest %x of %d bytes", got.Digest, got.Size)
	}
}

// What was captured early is measured as it was then, and is given up when it
// cannot be measured.
func TestCaptureBeforeMeasure(t *testing.T) {
	t.Parallel()
	path := filepath.Join(t.TempDir(), "program")
	if err := os.WriteFile(path, []byte("captured"), 0o600); err != nil {
		t.Fatal(err)
	}
	c, err := Capture(path)
	if err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(path, []byte("replaced"), 0o600); err != nil {
		t.Fatal(err)
	}
	m := unanchored(t)
	files, err := m.Measure(t.Context(), KindProgram, c)
	if err != nil {
		t.Fatal(err)
	}
	defer files[0].Close()
	content, err := files[0].Read()
	if err != nil || string(content) != "captured" || files[0].Digest != sha256.Sum256([]byte("captured")) || files[0].Name != path {
		t.Errorf("got %q of %s, digest %x, %v", content, files[0].Name, files[0].Digest, err)
	}
	c, err = Capture(path)
	if err != nil {
		t.Fatal(err)
	}
	if files, err := m.Measure(t.Context(), "no such kind", c); err == nil || files != nil {
		t.Errorf("measured as a kind that is not there: %v, %v", files, err)
	}
	if err := c.Close(); err == nil {
		t.Error("what could not be measured is still open")
	}
	if c, err := Capture(filepath.Dir(path)); !errors.Is(err, ErrFile) || c != nil {
		t.Errorf("captured a folder: %v", err)
	}
}

func second[T any](_ T, err error) error { return err }

// A measured program runs from its descriptor, with more inherited files than
// lie below it in a small process.
func TestMeasuredRuns(t *testing.T) {
	t.Parallel()
	shell, err := exec.LookPath("sh")
	if err != nil {
		t.Skipf("no program to run: %v", err)
	}
	got, err := unanchored(t).File(t.Context(), KindProgram, shell)
	if err != nil {
		t.Fatal(err)
	}
	defer got.Close()
	cmd := exec.Command(got.ExecPath(), "-c", "echo measured")
	for range 64 {
		cmd.ExtraFiles = append(cmd.ExtraFiles, os.Stdin)
	}
	out, err := cmd.CombinedOutput()
	if err != nil || string(out) != "measured\n" {
		t.Errorf("output %q, %v", out, err)
	}
}

func TestFilesIsOneEvent(t *testing.T) {
	t.Parallel()
	f := setUp(t)
	m := f.open()
	var paths []string
	for _, name := range []string{"a.ko", "b.ko", "c.ko"} {
		path := filepath.Join(t.TempDir(), name)
		if err := os.WriteFile(path, []byte(name), 0o600); err != nil {
			t.Fatal(err)
		}
		paths = append(paths, path)
	}
	files, err := m.Files(t.Context(), KindModule, paths...)
	if err != nil {
		t.Fatal(err)
	}
	for i, got := range files {
		if content, err := got.Read(); err != nil || string(content) != filepath.Base(paths[i]) {
			t.Errorf("%s holds %q, %v", paths[i], content, err)
		}
		if err := got.Close(); err != nil {
			t.Error(err)
		}
	}
	f.replays(1)
}

// Not parallel: it counts descriptors.
func TestFileRefuses(t *testing.T) {
	dir := t.TempDir()
	plain, fifo, large := filepath.Join(dir, "plain"), filepath.Join(dir, "fifo"), filepath.Join(dir, "large")
	if err := errors.Join(os.WriteFile(plain, nil, 0o600), unix.Mkfifo(fifo, 0o600), os.WriteFile(large, nil, 0o600), os.Truncate(large, MaxFile+1)); err != nil {
		t.Fatal(err)
	}
	m := unanchored(t)
	before := openFDs(t)
	for name, test := range map[string]struct {
		kind  Kind
		paths []string
		want  error
	}{
		"not there":        {KindConfig, []string{filepath.Join(dir, "none")}, os.ErrNotExist},
		"a folder":         {KindConfig, []string{dir}, ErrFile},
		"a pipe":           {KindConfig, []string{fifo}, ErrFile},
		"too large":        {KindConfig, []string{large}, ErrFile},
		"no files":         {KindConfig, nil, nil},
		"the second fails": {KindConfig, []string{plain, fifo}, ErrFile},
		"unknown kind":     {"nonsense", []string{plain}, ErrUnknownKind},
	} {
		files, err := m.Files(t.Context(), test.kind, test.paths...)
		if err == nil || files != nil || (test.want != nil && !errors.Is(err, test.want)) {
			t.Errorf("%s: Files = %v, %v, want %v", name, files, err, test.want)
		}
	}
	if got := openFDs(t); got != before {
		t.Errorf("%d descriptors open, %d before", got, before)
	}
	err := m.Snapshot(func(log []byte) error {
		if strings.Contains(string(log), dir) {
			t.Errorf("what was refused is in the log")
		}
		return nil
	})
	if err != nil {
		t.Error(err)
	}
}
