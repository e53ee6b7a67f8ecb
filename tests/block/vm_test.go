// SPDX-License-Identifier: Apache-2.0

package block

import (
	"bufio"
	"context"
	"errors"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/davit-dpu/davit/tools/packages"
)

// vm is a running QEMU with one vhost-user disk.
type vm struct {
	t     *testing.T
	cmd   *exec.Cmd
	in    io.Writer
	lines chan string // of the serial console; closed when QEMU ends
	done  chan error
	all   strings.Builder // what was read from lines
	log   string
}

// startVM starts QEMU, whose disk is the back end listening in dir.
func startVM(t *testing.T, set *packages.Set, dir string, args ...string) *vm {
	t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), 4*time.Minute)
	t.Cleanup(cancel)
	args = append([]string{
		"-nodefaults", "-no-user-config", "-display", "none", "-serial", "stdio", "-no-reboot",
		"-M", "q35,accel=tcg", "-cpu", "max", "-m", "256M",
		"-object", "memory-backend-memfd,id=ram,size=256M,share=on", "-machine", "memory-backend=ram",
		"-chardev", "socket,id=disk,reconnect-ms=100,path=" + filepath.Join(dir, "sock"),
	}, args...)
	var cmd *exec.Cmd
	if qemu := os.Getenv("DAVIT_QEMU_X86"); qemu != "" {
		cmd = exec.CommandContext(ctx, qemu, args...)
	} else {
		cmd = set.CommandContext(ctx, "qemu-system-x86_64", args...)
	}
	log, err := os.CreateTemp(dir, "qemu*.log")
	if err != nil {
		t.Fatal(err)
	}
	cmd.Stderr = log
	cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
	in, err := cmd.StdinPipe()
	if err != nil {
		t.Fatal(err)
	}
	out, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	v := &vm{t: t, cmd: cmd, in: in, lines: make(chan string, 4096), done: make(chan error, 1), log: log.Name()}
	go func() {
		s := bufio.NewScanner(out)
		for s.Scan() {
			v.lines <- strings.TrimRight(s.Text(), "\r")
		}
		err := cmd.Wait()
		_ = log.Close()
		v.done <- err
		close(v.lines)
	}()
	t.Cleanup(func() {
		cancel()
		for range v.lines {
		}
	})
	return v
}

// until reads console lines until one has the prefix, and returns what follows it.
func (v *vm) until(prefix string) string {
	v.t.Helper()
	for line := range v.lines {
		v.all.WriteString(line + "\n")
		if reason, failed := strings.CutPrefix(line, "failed: "); failed {
			v.fail("guest: " + reason)
		}
		if rest, ok := strings.CutPrefix(line, prefix); ok {
			return rest
		}
	}
	v.fail("QEMU ended before the guest said " + prefix)
	return ""
}

// progress waits until the guest's I/O goes on, whatever it said before.
func (v *vm) progress() {
	v.t.Helper()
	for len(v.lines) > 0 {
		v.until("ops ")
	}
	v.until("ops ") // may have been on its way
	v.until("ops ")
}

// end waits for QEMU's end and returns its exit code.
func (v *vm) end() int {
	v.t.Helper()
	for line := range v.lines {
		v.all.WriteString(line + "\n")
	}
	err := <-v.done
	v.done <- err
	var exit *exec.ExitError
	if err != nil && !errors.As(err, &exit) {
		v.t.Fatal(err)
	}
	return v.cmd.ProcessState.ExitCode()
}

// fail ends the test with all that is known.
func (v *vm) fail(reason string) {
	v.t.Helper()
	qemu, _ := os.ReadFile(v.log)
	backEnd, _ := os.ReadFile(filepath.Join(filepath.Dir(v.log), "backend.log"))
	v.t.Fatalf("%s\n--- console\n%s--- qemu\n%s--- back end\n%s", reason, v.all.String(), qemu, backEnd)
}

// newVolume makes a volume file that begins with content.
func newVolume(t *testing.T, dir string, size int64, content []byte) string {
	t.Helper()
	path := filepath.Join(dir, "volume")
	if err := errors.Join(os.WriteFile(path, content, 0o600), os.Truncate(path, size)); err != nil {
		t.Fatal(err)
	}
	return path
}
