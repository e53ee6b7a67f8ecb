// SPDX-License-Identifier: Apache-2.0

package bus

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/davit-dpu/davit/firmware/spec"
	"github.com/davit-dpu/davit/tests/vm"
	"github.com/davit-dpu/davit/tools/packages"
)

const poolSize = 256 << 20

// program builds davit-hostd once.
var program = sync.OnceValues(func() (string, error) {
	dir, err := os.MkdirTemp("", "davit-hostd-")
	if err != nil {
		return "", err
	}
	out := filepath.Join(dir, "davit-hostd")
	b, err := exec.Command("go", "build", "-o", out, "github.com/davit-dpu/davit/tools/hostd").CombinedOutput()
	if err != nil {
		return "", fmt.Errorf("build davit-hostd: %w\n%s", err, b)
	}
	return out, nil
})

func TestMain(m *testing.M) {
	code := m.Run()
	if p, err := program(); err == nil {
		_ = os.RemoveAll(filepath.Dir(p))
	}
	os.Exit(code)
}

// host is a host's files and the hostd that runs on it, if any.
type host struct {
	t    *testing.T
	dir  string
	bus  string
	pool string
	qemu *exec.Cmd // how QEMU is called
	cmd  *exec.Cmd
	log  *os.File
}

// newHost makes a host whose run directory has a name too long for a socket
// address. All VMMs are gone when the test is over.
func newHost(t *testing.T, needs ...packages.Need) *host {
	t.Helper()
	set := vm.Need(t, append(needs, packages.QEMU)...)
	root := t.TempDir()
	h := &host{t: t, dir: filepath.Join(root, strings.Repeat("deep", 25)), bus: filepath.Join(root, "bus"), pool: filepath.Join(root, "pool"), qemu: set.Command("qemu-system-x86_64")}
	if h.qemu.Err != nil {
		t.Fatal(h.qemu.Err)
	}
	f, err := os.Create(h.pool)
	if err == nil {
		err = errors.Join(f.Truncate(poolSize), f.Close())
	}
	if err == nil {
		h.log, err = os.Create(filepath.Join(root, "hostd.log"))
	}
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		h.sweep()
		_ = h.log.Close()
		if b, err := os.ReadFile(h.log.Name()); t.Failed() && err == nil {
			t.Logf("hostd:\n%s", b)
		}
	})
	return h
}

// command is how hostd is called.
func (h *host) command(exe string, extra ...string) *exec.Cmd {
	args := append([]string{"--bus", "unix:" + h.bus, "--pool", h.pool, "--run", h.dir, "--qemu", h.qemu.Path, "--accel", "tcg"}, extra...)
	for _, a := range h.qemu.Args[1:] {
		args = append(args, "--qemu-arg", a)
	}
	cmd := exec.Command(exe, args...)
	cmd.Env = h.qemu.Env
	cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
	return cmd
}

// start starts hostd.
func (h *host) start(extra ...string) {
	h.t.Helper()
	exe, err := program()
	if err != nil {
		h.t.Fatal(err)
	}
	h.cmd = h.command(exe, extra...)
	h.cmd.Stderr = h.log
	if err := h.cmd.Start(); err != nil {
		h.t.Fatal(err)
	}
}

// end ends hostd with a signal and returns what Wait says.
func (h *host) end(sig syscall.Signal) error {
	if h.cmd == nil {
		return nil
	}
	_ = h.cmd.Process.Signal(sig)
	err := h.cmd.Wait()
	h.cmd = nil
	return err
}

// sweep ends hostd and whatever works in the run directory.
func (h *host) sweep() {
	_ = h.end(syscall.SIGKILL)
	for _, pid := range h.vmms() {
		_ = syscall.Kill(pid, syscall.SIGKILL)
	}
	deadline := time.Now().Add(5 * time.Second)
	for len(h.vmms()) > 0 && time.Now().Before(deadline) {
		time.Sleep(10 * time.Millisecond)
	}
}

// vmms finds processes that work in the run directory, zombies not counted.
func (h *host) vmms() []int {
	links, _ := filepath.Glob("/proc/[0-9]*/cwd")
	var pids []int
	for _, l := range links {
		if to, err := os.Readlink(l); err == nil && strings.HasPrefix(to, h.dir+"/") {
			var pid int
			if _, err := fmt.Sscanf(l, "/proc/%d/cwd", &pid); err == nil {
				pids = append(pids, pid)
			}
		}
	}
	return pids
}

// pid is the one VMM's.
func (h *host) pid() int {
	h.t.Helper()
	pids := h.vmms()
	if len(pids) != 1 {
		h.t.Fatalf("processes %v, want one", pids)
	}
	return pids[0]
}

// clean checks that nothing of VMMs is left.
func (h *host) clean() {
	h.t.Helper()
	if left, err := os.ReadDir(filepath.Join(h.dir, "vmm")); err != nil || len(left) != 0 {
		h.t.Errorf("left in the run directory: %v, %v", left, err)
	}
	if pids := h.vmms(); len(pids) != 0 {
		h.t.Errorf("left running: %v", pids)
	}
}

func generation(n int) string { return fmt.Sprintf("%032x", n) }

func order(n int) spec.VMMOrder {
	return spec.VMMOrder{
		Instance: "guest", Generation: generation(n), VCPUs: 1, Memory: 64 * spec.MiB, PoolOffset: 64 * spec.MiB,
		Firmware: spec.FirmwareBIOS, Disks: []spec.VMMDisk{{Device: "root", Queues: 2}},
	}
}

// silent reads a console until ctx ends and fails if the guest complained.
func silent(ctx context.Context, t *testing.T, c interface {
	Read([]byte) (int, error)
	Close() error
}) <-chan struct{} {
	done := make(chan struct{})
	stop := context.AfterFunc(ctx, func() { _ = c.Close() })
	go func() {
		defer close(done)
		defer stop()
		buf := make([]byte, 4096)
		for {
			n, err := c.Read(buf)
			if bytes.ContainsRune(buf[:n], 'F') {
				t.Errorf("the guest says %q", buf[:n])
			}
			if err != nil {
				return
			}
		}
	}()
	return done
}
