// SPDX-License-Identifier: Apache-2.0

package host

import (
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"time"

	"context"

	"golang.org/x/sys/unix"

	"github.com/davit-dpu/davit/firmware/spec"
)

// ErrBusy says that another hostd uses the run directory.
var ErrBusy = errors.New("another hostd uses this run directory")

// logFile is a VMM's output in its directory.
const logFile = "log"

// runDir is the directory through which a Host finds its predecessors' VMMs.
type runDir struct {
	path string // absolute
	lock *os.File
}

// openRunDir creates what is missing and takes the lock. A predecessor that was
// killed a moment ago can still hold it through a child that has not executed
// QEMU yet, so it is given until ctx ends.
func openRunDir(ctx context.Context, path string) (*runDir, error) {
	abs, err := filepath.Abs(path)
	if err != nil {
		return nil, fmt.Errorf("open run directory: %w", err)
	}
	for _, d := range []string{"vmm", "exited", "logs"} {
		if err := os.MkdirAll(filepath.Join(abs, d), 0o700); err != nil {
			return nil, fmt.Errorf("open run directory: %w", err)
		}
	}
	// What the kernel calls a process' working directory (see worksIn) has no links in it.
	if abs, err = filepath.EvalSymlinks(abs); err != nil {
		return nil, fmt.Errorf("open run directory: %w", err)
	}
	f, err := os.OpenFile(filepath.Join(abs, "lock"), os.O_CREATE|os.O_RDWR, 0o600)
	if err != nil {
		return nil, fmt.Errorf("open run directory: %w", err)
	}
	for {
		err = flock(f)
		if err == nil {
			return &runDir{path: abs, lock: f}, nil
		}
		if !errors.Is(err, unix.EWOULDBLOCK) {
			return nil, errors.Join(fmt.Errorf("lock run directory: %w", err), f.Close())
		}
		if !sleep(ctx, 50*time.Millisecond) {
			return nil, errors.Join(fmt.Errorf("lock %s: %w", abs, ErrBusy), f.Close())
		}
	}
}

func flock(f *os.File) error {
	raw, err := f.SyscallConn()
	if err != nil {
		return err
	}
	cerr := raw.Control(func(fd uintptr) { err = unix.Flock(int(fd), unix.LOCK_EX|unix.LOCK_NB) })
	return errors.Join(cerr, err)
}

func (d *runDir) close() error { return d.lock.Close() }

func (d *runDir) vmm(instance string) string { return filepath.Join(d.path, "vmm", instance) }
func (d *runDir) log(instance string) string { return filepath.Join(d.path, "logs", instance+".log") }
func (d *runDir) exited(instance string) string {
	return filepath.Join(d.path, "exited", instance+".json")
}

// instances lists the directories of VMMs, running or not.
func (d *runDir) instances() ([]string, error) {
	entries, err := os.ReadDir(filepath.Join(d.path, "vmm"))
	if err != nil {
		return nil, fmt.Errorf("list VMMs: %w", err)
	}
	var names []string
	for _, e := range entries {
		if spec.CheckName("instance", e.Name()) == nil {
			names = append(names, e.Name())
		}
	}
	return names, nil
}

// pidRecord finds a process again; Start, in clock ticks since boot, tells it
// from a later one with the same number.
type pidRecord struct {
	PID   int    `json:"pid"`
	Start uint64 `json:"start"`
}

// writeJSON replaces a file as a whole.
func writeJSON(path string, v any) error {
	b, err := json.Marshal(v)
	if err != nil {
		return err
	}
	tmp := path + ".new"
	if err := os.WriteFile(tmp, b, 0o600); err != nil {
		return err
	}
	return os.Rename(tmp, path)
}

func readJSON(path string, v any) error {
	b, err := os.ReadFile(path)
	if err != nil {
		return err
	}
	if err := json.Unmarshal(b, v); err != nil {
		return fmt.Errorf("read %s: %w", path, err)
	}
	return nil
}

// tombstones reads how the last VMM of each instance ended. One that cannot be
// read is as good as none, and removed if it can be.
func (d *runDir) tombstones() (map[string]spec.VMMStatus, error) {
	out := map[string]spec.VMMStatus{}
	entries, err := os.ReadDir(filepath.Join(d.path, "exited"))
	if err != nil {
		return nil, fmt.Errorf("list exited VMMs: %w", err)
	}
	for _, e := range entries {
		name := strings.TrimSuffix(e.Name(), ".json")
		var st spec.VMMStatus
		if err := readJSON(d.exited(name), &st); err == nil && st.Instance == name && st.State == spec.VMMExited {
			out[name] = st
			continue
		}
		_ = os.Remove(filepath.Join(d.path, "exited", e.Name())) // what stays is not read again
	}
	return out, nil
}

// bury records how a VMM ended, keeps its output and removes its directory.
func (d *runDir) bury(st spec.VMMStatus) error {
	err := writeJSON(d.exited(st.Instance), st)
	if rerr := keepLog(d.log(st.Instance), filepath.Join(d.vmm(st.Instance), logFile)); rerr != nil && !errors.Is(rerr, fs.ErrNotExist) {
		err = errors.Join(err, rerr)
	}
	if err := errors.Join(err, os.RemoveAll(d.vmm(st.Instance))); err != nil {
		return fmt.Errorf("clean up after VMM of %s: %w", st.Instance, err)
	}
	return nil
}

// sleep waits for t and reports false if ctx ended first.
func sleep(ctx context.Context, t time.Duration) bool {
	timer := time.NewTimer(t)
	defer timer.Stop()
	select {
	case <-timer.C:
		return true
	case <-ctx.Done():
		return false
	}
}
