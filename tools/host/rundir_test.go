// SPDX-License-Identifier: Apache-2.0

package host

import (
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/davit-dpu/davit/firmware/spec"
)

func TestRunDirHasOneOwner(t *testing.T) {
	t.Parallel()
	path := filepath.Join(t.TempDir(), "run")
	d, err := openRunDir(t.Context(), path)
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithTimeout(t.Context(), 100*time.Millisecond)
	defer cancel()
	if second, err := openRunDir(ctx, path); second != nil || !errors.Is(err, ErrBusy) {
		t.Errorf("a second owner: %v", err)
	}
	if err := d.close(); err != nil {
		t.Fatal(err)
	}
	again, err := openRunDir(t.Context(), path)
	if err != nil {
		t.Fatal(err)
	}
	if err := again.close(); err != nil {
		t.Error(err)
	}
}

// TestRunDirBehindALink: VMMs are recognised by their working directory, which
// the kernel names without links.
func TestRunDirBehindALink(t *testing.T) {
	t.Parallel()
	real := t.TempDir()
	link := filepath.Join(t.TempDir(), "link")
	if err := os.Symlink(real, link); err != nil {
		t.Fatal(err)
	}
	d, err := openRunDir(t.Context(), link)
	if err != nil {
		t.Fatal(err)
	}
	defer d.close()
	if want, err := filepath.EvalSymlinks(real); err != nil || d.path != want {
		t.Errorf("path %s, want %s (%v)", d.path, want, err)
	}
}

func TestTombstones(t *testing.T) {
	t.Parallel()
	d, err := openRunDir(t.Context(), t.TempDir())
	if err != nil {
		t.Fatal(err)
	}
	defer d.close()
	st := spec.VMMStatus{Instance: "web", Generation: testGeneration, State: spec.VMMExited, Reason: "exit status 1"}
	for path, text := range map[string]string{
		filepath.Join(d.vmm("web"), "log"): "last words\n", d.exited("torn"): `{"instance":"to`, d.exited("liar"): `{"instance":"web","state":"exited"}`,
	} {
		if err := errors.Join(os.MkdirAll(filepath.Dir(path), 0o700), os.WriteFile(path, []byte(text), 0o600)); err != nil {
			t.Fatal(err)
		}
	}
	if err := d.bury(st); err != nil {
		t.Fatal(err)
	}
	got, err := d.tombstones()
	if err != nil || len(got) != 1 || got["web"] != st {
		t.Errorf("tombstones %+v, %v", got, err)
	}
	if b, err := os.ReadFile(d.log("web")); err != nil || string(b) != "last words\n" {
		t.Errorf("log %q, %v", b, err)
	}
	for _, path := range []string{d.vmm("web"), d.exited("torn"), d.exited("liar")} {
		if _, err := os.Stat(path); !errors.Is(err, os.ErrNotExist) {
			t.Errorf("%s is still there", path)
		}
	}
}

// sleeper starts a process that looks like a VMM of testGeneration in dir.
func sleeper(t *testing.T, dir string) *exec.Cmd {
	t.Helper()
	cmd := exec.Command("sh", "-c", "read x", "vmm", "-uuid", uuidOf(testGeneration))
	cmd.Dir = dir
	in, err := cmd.StdinPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		_ = in.Close()
		_ = cmd.Process.Kill()
		_ = cmd.Wait()
	})
	return cmd
}

func TestFindProcess(t *testing.T) {
	t.Parallel()
	dir, err := filepath.EvalSymlinks(t.TempDir())
	if err != nil {
		t.Fatal(err)
	}
	cmd := sleeper(t, dir)
	start, err := startTime(cmd.Process.Pid)
	if err != nil {
		t.Fatal(err)
	}
	uuid := uuidOf(testGeneration)
	for _, c := range []struct {
		name   string
		record *pidRecord
		uuid   string
		found  bool
	}{
		{"by its record", &pidRecord{cmd.Process.Pid, start}, uuid, true},
		{"without a record", nil, uuid, true},
		{"number used again", &pidRecord{cmd.Process.Pid, start - 1}, uuid, false},
		{"another process", &pidRecord{1, start}, uuid, false},
		{"no such process", &pidRecord{1 << 30, start}, uuid, false},
		{"another generation", nil, uuidOf(strings.Repeat("9", 32)), false},
	} {
		path := filepath.Join(dir, "pid.json")
		if err := os.RemoveAll(path); err != nil {
			t.Fatal(err)
		}
		if c.record != nil {
			if err := writeJSON(path, c.record); err != nil {
				t.Fatal(err)
			}
		}
		p, err := findProcess(dir, c.uuid)
		if (err == nil) != c.found || err != nil && !errors.Is(err, errGone) {
			t.Errorf("%s: %v", c.name, err)
		}
		if p != nil {
			if p.pid != cmd.Process.Pid || p.exited() {
				t.Errorf("%s: process %d", c.name, p.pid)
			}
			_ = p.pidfd.Close()
		}
	}
	if p, err := findProcess(t.TempDir(), uuid); err == nil {
		t.Errorf("process %d does not work in that directory", p.pid)
	}
	p, err := holdProcess(cmd.Process.Pid, func(int) error { return nil })
	if err != nil {
		t.Fatal(err)
	}
	ended := make(chan error, 1)
	go func() { ended <- p.wait() }()
	if err := p.kill(); err != nil {
		t.Fatal(err)
	}
	if err := <-ended; err != nil || !p.exited() {
		t.Errorf("wait: %v", err)
	}
}

// envHeadless has the test binary play a process without its first thread.
const envHeadless = "DAVIT_TEST_HEADLESS"

// Such a process ends with its first thread, on which packages are
// initialized; those of the runtime go on until they are killed.
var _ = func() error {
	if os.Getenv(envHeadless) != "" {
		_, _, _ = unix.RawSyscall(unix.SYS_EXIT, 0, 0, 0)
	}
	return nil
}()

// TestFindEndingProcess: a VMM that was killed and of which some threads are
// still there has not ended, although it has no command line any more.
func TestFindEndingProcess(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	cmd := exec.Command(os.Args[0])
	cmd.Env = append(os.Environ(), envHeadless+"=1")
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	defer cmd.Wait()
	defer cmd.Process.Kill()
	pid := cmd.Process.Pid
	for deadline := time.Now().Add(10 * time.Second); !ending(pid) || hasArguments(pid); time.Sleep(time.Millisecond) {
		if time.Now().After(deadline) {
			t.Fatal("the first thread goes on")
		}
	}
	start, err := startTime(pid)
	if err != nil {
		t.Fatal(err)
	}
	if err := writeJSON(filepath.Join(dir, "pid.json"), pidRecord{pid, start}); err != nil {
		t.Fatal(err)
	}
	p, err := findProcess(dir, uuidOf(testGeneration))
	if err != nil {
		t.Fatalf("findProcess: %v, while the process is there", err)
	}
	defer p.pidfd.Close()
	if err := errors.Join(p.kill(), p.wait()); err != nil {
		t.Fatal(err)
	}
	if _, err := findProcess(dir, uuidOf(testGeneration)); !errors.Is(err, errGone) {
		t.Errorf("findProcess: %v after its end, want errGone", err)
	}
}

func hasArguments(pid int) bool {
	b, err := os.ReadFile(fmt.Sprintf("/proc/%d/cmdline", pid))
	return err == nil && len(b) > 0
}

// TestNoSocketAfterTheEnd: what is left of a VMM makes no socket in a directory
// that is being removed, or that is its successor's already.
func TestNoSocketAfterTheEnd(t *testing.T) {
	t.Parallel()
	v := &vmm{dir: t.TempDir()}
	l, err := v.listen("disk0.sock")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	v.close()
	if l, err := v.listen("disk1.sock"); l != nil || !errors.Is(err, errGone) {
		t.Errorf("listen = %v, %v; want errGone", l, err)
	}
	if _, err := v.listen("disk0.sock"); !errors.Is(err, errGone) || !exists(filepath.Join(v.dir, "disk0.sock")) {
		t.Errorf("listen = %v; want errGone, and the successor's socket left alone", err)
	}
}

func exists(path string) bool {
	_, err := os.Stat(path)
	return err == nil
}

// TestRecordOfTheDead: a VMM that ends while it is adopted is gone, and its
// descriptor closed.
func TestRecordOfTheDead(t *testing.T) {
	t.Parallel()
	cmd := sleeper(t, t.TempDir())
	p, err := holdProcess(cmd.Process.Pid, func(int) error { return nil })
	if err != nil {
		t.Fatal(err)
	}
	v := &vmm{dir: filepath.Join(t.TempDir(), "none"), proc: p}
	if err := v.recordAgain(); err == nil || errors.Is(err, errGone) {
		t.Errorf("a VMM that runs cannot be recorded: %v", err)
	}
	if err := p.kill(); err != nil {
		t.Fatal(err)
	}
	_ = cmd.Wait()
	if err := v.recordAgain(); !errors.Is(err, errGone) {
		t.Errorf("got %v, want errGone", err)
	}
	if err := p.pidfd.Close(); !errors.Is(err, os.ErrClosed) {
		t.Errorf("the pidfd is still open: %v", err)
	}
}

func TestCopyOut(t *testing.T) {
	t.Parallel()
	path := filepath.Join(t.TempDir(), "pool")
	data := make([]byte, 3<<20)
	copy(data[2<<20+100:], "kernel")
	if err := os.WriteFile(path, data, 0o600); err != nil {
		t.Fatal(err)
	}
	p, err := openPool(path)
	if err != nil {
		t.Fatal(err)
	}
	defer p.file.Close()
	sum := sha256.Sum256([]byte("kernel"))
	b := &spec.Blob{Offset: 2*spec.MiB + 100, Length: 6, SHA256: sum[:]}
	f, err := p.copyOut("kernel", b)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	if got, err := os.ReadFile(f.Name()); err == nil {
		t.Errorf("a memfd has no name to read: %q", got)
	}
	got := make([]byte, 7)
	if n, _ := f.ReadAt(got, 0); string(got[:n]) != "kernel" {
		t.Errorf("copied %q", got[:n])
	}
	if _, err := f.WriteAt([]byte("x"), 0); err == nil {
		t.Error("the copy can be changed")
	}
	for name, bad := range map[string]*spec.Blob{
		"other digest": {Offset: b.Offset, Length: 5, SHA256: b.SHA256},
		"past the end": {Offset: 3 * spec.MiB, Length: 6, SHA256: b.SHA256},
	} {
		if f, err := p.copyOut("kernel", bad); err == nil || f != nil {
			t.Errorf("%s: %v", name, err)
		}
	}
}

func TestLastLine(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	for text, want := range map[string]string{
		"": "", "one\n": "one", "one\ntwo\n\n": "two", strings.Repeat("x", 5000): strings.Repeat("x", 160),
	} {
		path := filepath.Join(dir, "log")
		if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
		if got := lastLine(path, time.Time{}); got != want {
			t.Errorf("%.20q…: %q, want %q", text, got, want)
		}
	}
	if got := lastLine(filepath.Join(dir, "none"), time.Time{}); got != "" {
		t.Errorf("no file: %q", got)
	}
}
