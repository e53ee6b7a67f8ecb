// SPDX-License-Identifier: Apache-2.0

package rig

import (
	"context"
	"errors"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"syscall"
	"testing"
	"time"
)

func TestListens(t *testing.T) {
	t.Parallel()
	const table = `Num       RefCount Protocol Flags    Type St Inode Path
0000000000000000: 00000002 00000000 00010000 0001 01 10001 /run/a
0000000000000000: 00000002 00000000 00000000 0001 01 10002 /run/bound
0000000000000000: 00000003 00000000 00000000 0001 03 10003 /run/connected
0000000000000000: 00000003 00000000 00000000 0001 03 10004
`
	for path, want := range map[string]bool{"/run/a": true, "/run/bound": false, "/run/connected": false, "/run": false, "": false} {
		if got := listens(table, path); got != want {
			t.Errorf("listens(%q) = %v, want %v", path, got, want)
		}
	}
}

// A socket of a process that was killed is not that of the next one.
func TestWaitListeningIsNotMisledByAnOldSocket(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	path := filepath.Join(dir, "sock")
	stale, err := net.ListenUnix("unix", &net.UnixAddr{Name: path, Net: "unix"})
	if err != nil {
		t.Fatal(err)
	}
	stale.SetUnlinkOnClose(false)
	if err := stale.Close(); err != nil {
		t.Fatal(err)
	}
	p, err := startProcess("sleeper", exec.Command("sleep", "60"), filepath.Join(dir, "log"), syscall.SIGKILL)
	if err != nil {
		t.Fatal(err)
	}
	defer p.Kill()
	if err := waitSocket(t.Context(), p, path); err != nil {
		t.Fatal("the file is there:", err)
	}
	short, cancel := context.WithTimeout(t.Context(), 50*time.Millisecond)
	defer cancel()
	if err := waitListening(short, p, path); !errors.Is(err, context.DeadlineExceeded) {
		t.Errorf("nobody listens: got %v, want %v", err, context.DeadlineExceeded)
	}
	if err := os.Remove(path); err != nil {
		t.Fatal(err)
	}
	l, err := net.ListenUnix("unix", &net.UnixAddr{Name: path, Net: "unix"})
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	if err := waitListening(t.Context(), p, path); err != nil {
		t.Error(err)
	}
}
