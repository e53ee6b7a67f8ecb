// SPDX-License-Identifier: Apache-2.0

package nbd

import (
	"context"
	"errors"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/davit-dpu/davit/firmware/disk/nbd"
	harness "github.com/davit-dpu/davit/tests/vm"
	"github.com/davit-dpu/davit/tools/packages"
)

const (
	size   = 32 << 20
	export = "disk"
)

// server is a server program that serves a file.
type server struct {
	t       *testing.T
	file    string
	socket  string
	command func() *exec.Cmd

	mu  sync.Mutex
	cmd *exec.Cmd // guarded by mu
}

// servers are the programs. A read-only one refuses to change the file.
func servers(t *testing.T) map[string]func(t *testing.T, readOnly bool) *server {
	set := harness.Need(t, packages.QEMU, packages.NBDKit)
	return map[string]func(t *testing.T, readOnly bool) *server{
		"qemu-nbd": func(t *testing.T, readOnly bool) *server {
			s := newServer(t)
			args := []string{"--persistent", "--shared=4", "--format=raw", "--discard=unmap", "--detect-zeroes=off", "--export-name=" + export, "--socket=" + s.socket, s.file}
			if readOnly {
				args = append([]string{"--read-only"}, args...)
			}
			s.command = func() *exec.Cmd { return set.Command("qemu-nbd", args...) }
			s.start()
			return s
		},
		"nbdkit": func(t *testing.T, readOnly bool) *server {
			s := newServer(t)
			args := []string{"--foreground", "--unix", s.socket, plugin(t, set), s.file}
			if readOnly {
				args = append([]string{"--readonly"}, args...)
			}
			s.command = func() *exec.Cmd { return set.Command("nbdkit", args...) }
			s.start()
			return s
		},
	}
}

// plugin is nbdkit's plugin for files: by path, since an unpacked nbdkit looks
// for its name where it was not installed.
func plugin(t *testing.T, set *packages.Set) string {
	t.Helper()
	root, _, err := set.Where(packages.NBDKit)
	if err != nil {
		t.Fatal(err)
	}
	found, err := filepath.Glob(filepath.Join(root, "usr/lib*/*/nbdkit/plugins/nbdkit-file-plugin.so"))
	if err != nil || len(found) == 0 {
		return "file"
	}
	return found[0]
}

func newServer(t *testing.T) *server {
	t.Helper()
	dir := t.TempDir()
	s := &server{t: t, file: filepath.Join(dir, "disk"), socket: filepath.Join(dir, "s")}
	if err := errors.Join(os.WriteFile(s.file, nil, 0o600), os.Truncate(s.file, size)); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(s.kill)
	return s
}

func (s *server) start() {
	s.mu.Lock()
	defer s.mu.Unlock()
	if err := os.Remove(s.socket); err != nil && !errors.Is(err, os.ErrNotExist) {
		s.t.Error(err)
	}
	s.cmd = s.command()
	s.cmd.Stderr = s.t.Output()
	s.cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
	if err := s.cmd.Start(); err != nil {
		s.t.Errorf("start server: %v", err)
	}
}

// kill ends the program at once, and waits until it is gone.
func (s *server) kill() {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.cmd != nil && s.cmd.Process != nil && s.cmd.ProcessState == nil {
		_ = s.cmd.Process.Kill()
		_ = s.cmd.Wait()
	}
}

// open makes a volume of the server, once that listens.
func (s *server) open(t *testing.T, cfg nbd.Config) *nbd.Volume {
	t.Helper()
	cfg.Dial = s.dial
	var v *nbd.Volume
	harness.Eventually(t, 20*time.Second, func() (err error) {
		v, err = nbd.Open(t.Context(), cfg)
		return err
	})
	t.Cleanup(func() { _ = v.Close() })
	return v
}

func (s *server) dial(ctx context.Context) (net.Conn, error) {
	return (&net.Dialer{}).DialContext(ctx, "unix", s.socket)
}
