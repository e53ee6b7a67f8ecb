// SPDX-License-Identifier: Apache-2.0

package main

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/davit-dpu/davit/firmware/control"
	"github.com/davit-dpu/davit/firmware/spec"
	"github.com/davit-dpu/davit/firmware/vcard/vcardtest"
)

const (
	generation = "00000000000000000000000000000001"
	memOffset  = 64 << 20
	memSize    = 64 << 20
)

// program is the vcard as it is shipped: without a C library.
var program string

func TestMain(m *testing.M) {
	dir, err := os.MkdirTemp("", "vcard-test")
	if err == nil {
		program = filepath.Join(dir, "vcard")
		build := exec.Command("go", "build", "-o", program, ".")
		build.Env = append(os.Environ(), "CGO_ENABLED=0")
		var out []byte
		if out, err = build.CombinedOutput(); err != nil {
			err = fmt.Errorf("%w: %s", err, out)
		}
	}
	if err == nil {
		err = os.Chmod(dir, 0o755) // for tests as another user
	}
	code := 1
	if err == nil {
		code = m.Run()
	} else {
		fmt.Fprintln(os.Stderr, "build vcard:", err)
	}
	_ = os.RemoveAll(dir)
	os.Exit(code)
}

// process is a running vcard.
type process struct {
	t    *testing.T
	path string
	cmd  *exec.Cmd
	log  bytes.Buffer // read it after the end
}

// spawn starts a vcard that listens at path.
func spawn(t *testing.T, path string, args ...string) *process {
	t.Helper()
	p := &process{t: t, path: path}
	socket, err := control.Bind(path)
	if err != nil {
		t.Fatal(err)
	}
	defer socket.Close()
	p.cmd = control.Command(context.Background(), program, socket, args...)
	p.cmd.Stderr = &p.log
	if err := p.cmd.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		_ = p.cmd.Process.Kill()
		_ = p.cmd.Wait()
		if t.Failed() {
			t.Logf("log of the vcard:\n%s", p.log.String())
		}
	})
	return p
}

// end waits for the end of the process.
func (p *process) end() error {
	p.t.Helper()
	ended := make(chan error, 1)
	go func() { ended <- p.cmd.Wait() }()
	select {
	case err := <-ended:
		return err
	case <-time.After(vcardtest.Timeout):
		p.t.Fatal("the process goes on")
		return nil
	}
}

// strictly reports whether the strict sandbox is to be had here, or why not.
func strictly() (bool, string) {
	if os.Geteuid() != 0 {
		return false, "the strict sandbox needs root"
	}
	var st unix.Statx_t
	const root = unix.STATX_ATTR_MOUNT_ROOT
	if err := unix.Statx(unix.AT_FDCWD, "/", 0, 0, &st); err == nil && st.Attributes_mask&root != 0 && st.Attributes&root == 0 {
		return false, "the strict sandbox needs a root that is a mount point; this is a chroot"
	}
	return true, ""
}

func sandboxArgs() []string {
	if strict, _ := strictly(); strict {
		return nil
	}
	return []string{"--sandbox=available"}
}

func addRoot(t *testing.T, r *vcardtest.Rig, c *control.Client, vol *os.File) {
	t.Helper()
	again := r.Reopen(vol)
	defer again.Close()
	err := c.AddDevice(r.Context(), control.AddDevice{
		Instance: "web", Name: "root", Queues: 1, Generation: generation, MemoryOffset: memOffset, MemorySize: memSize,
	}, control.DeviceFiles{Volume: again})
	if err != nil {
		t.Fatal(err)
	}
}

func boot(t *testing.T, r *vcardtest.Rig, d *vcardtest.Disk) {
	t.Helper()
	f, err := r.Front("web", generation, "root")
	if err == nil {
		err = f.Open(memOffset, memSize, d.Driver)
	}
	if err != nil {
		t.Fatal(err)
	}
	d.Attach(f)
}

const blockSize = 4096

// block is what round writes to block n.
func block(n, round int) []byte {
	b := bytes.Repeat([]byte(fmt.Sprintf("%08d/%08d|", n, round)), blockSize/18+1)
	return b[:blockSize]
}

// TestKilledAtAnyMoment: a vcard is killed again and again while a guest
// writes; its successors go on, no request is lost, and everything that was
// said to be written is in the volume.
func TestKilledAtAnyMoment(t *testing.T) {
	r := vcardtest.NewRig(t)
	vol := r.Volume(4 << 20)
	path := filepath.Join(t.TempDir(), "vcard.sock")
	r.Pool.Free(memOffset + 4096)
	d := vcardtest.NewDisk(r.Pool, 64, 16, blockSize)
	written := map[int]int{} // block to the newest round that completed
	const rounds, blocks = 6, 16
	for round := range rounds {
		p := spawn(t, path, sandboxArgs()...)
		c := r.Connect(path, nil)
		addRoot(t, r, c, vol)
		boot(t, r, d)
		for d.Pending() > 0 { // of the vcard that was killed
			if err := d.Complete(); err != nil {
				t.Fatalf("round %d: a request of the round before: %v", round, err)
			}
		}
		for n := range written {
			if got, err := d.Read(uint64(n) * blockSize / 512); err != nil || !bytes.Equal(got, block(n, written[n])) {
				t.Fatalf("round %d: block %d: %v, %.18q", round, n, err, got)
			}
		}
		for n := range blocks {
			written[n] = round // it completes in this round or the next
			if err := d.SubmitWrite(uint64(n)*blockSize/512, block(n, round)); err != nil {
				t.Fatal(err)
			}
		}
		for range round * 3 { // another moment each time
			if err := d.Complete(); err != nil {
				t.Fatal(err)
			}
		}
		if err := p.cmd.Process.Kill(); err != nil {
			t.Fatal(err)
		}
		_ = p.end()
		select {
		case <-c.Done():
		case <-time.After(vcardtest.Timeout):
			t.Fatal("the controller does not see the end")
		}
	}
	p := spawn(t, path, sandboxArgs()...)
	c := r.Connect(path, nil)
	addRoot(t, r, c, vol)
	boot(t, r, d)
	for d.Pending() > 0 {
		if err := d.Complete(); err != nil {
			t.Fatal(err)
		}
	}
	if err := c.Shutdown(r.Context()); err != nil {
		t.Fatal(err)
	}
	if err := p.end(); err != nil {
		t.Errorf("after a shutdown: %v", err)
	}
	got := make([]byte, blockSize)
	for n, round := range written {
		if _, err := vol.ReadAt(got, int64(n)*blockSize); err != nil || !bytes.Equal(got, block(n, round)) {
			t.Errorf("block %d in the volume: %v, %.18q, want round %d", n, err, got, round)
		}
	}
}

// TestControllerIsKilled: I/O goes on while there is no controller, and the
// next one finds everything as it is.
func TestControllerIsKilled(t *testing.T) {
	r := vcardtest.NewRig(t)
	vol := r.Volume(1 << 20)
	p := spawn(t, filepath.Join(t.TempDir(), "vcard.sock"), sandboxArgs()...)
	c := r.Connect(p.path, nil)
	if c.PID() != p.cmd.Process.Pid {
		t.Errorf("PID() = %d, want %d", c.PID(), p.cmd.Process.Pid)
	}
	addRoot(t, r, c, vol)
	r.Pool.Free(memOffset + 4096)
	d := vcardtest.NewDisk(r.Pool, 64, 16, blockSize)
	boot(t, r, d)
	_ = c.Close()
	for n := range 50 {
		if err := d.Write(uint64(n)*8, block(n, 1)); err != nil {
			t.Fatal(err)
		}
	}
	c = r.Connect(p.path, nil)
	st, err := c.Status(r.Context())
	if err != nil || len(st.Devices) != 1 || st.Devices[0].Phase != spec.PhaseReady || st.Devices[0].Queues[0].Writes != 50 || st.Host.Sessions != 1 {
		t.Errorf("status %+v, %v", st, err)
	}
}

func TestSandboxOfTheProcess(t *testing.T) {
	if strict, why := strictly(); !strict {
		t.Skip(why)
	}
	r := vcardtest.NewRig(t)
	p := spawn(t, filepath.Join(t.TempDir(), "vcard.sock"))
	c := r.Connect(p.path, nil)
	checks := c.Peer().Sandbox
	if len(checks) < 6 {
		t.Errorf("checks %+v", checks)
	}
	for _, check := range checks {
		if check.Result != "passed" {
			t.Errorf("%+v", check)
		}
	}
	pid := p.cmd.Process.Pid
	status, err := os.ReadFile(fmt.Sprintf("/proc/%d/status", pid))
	if err != nil {
		t.Fatal(err)
	}
	for _, want := range []string{
		"Uid:\t64200\t64200\t64200\t64200\n", "Gid:\t64200\t64200\t64200\t64200\n", "Groups:\t \n",
		"CapPrm:\t0000000000000000\n", "CapEff:\t0000000000000000\n", "NoNewPrivs:\t1\n", "Seccomp:\t2\n",
	} {
		if !strings.Contains(string(status), want) {
			t.Errorf("want %q in\n%s", want, status)
		}
	}
	threads, err := os.ReadDir(fmt.Sprintf("/proc/%d/task", pid))
	if err != nil {
		t.Fatal(err)
	}
	for _, th := range threads {
		b, err := os.ReadFile(fmt.Sprintf("/proc/%d/task/%s/status", pid, th.Name()))
		if err == nil && !strings.Contains(string(b), "Seccomp:\t2\n") {
			t.Errorf("thread %s is not confined", th.Name())
		}
	}
	fds, err := os.ReadDir(fmt.Sprintf("/proc/%d/fd", pid))
	if err != nil {
		t.Fatal(err)
	}
	for _, fd := range fds {
		to, err := os.Readlink(fmt.Sprintf("/proc/%d/fd/%s", pid, fd.Name()))
		if err == nil && strings.HasPrefix(to, "/") && !strings.HasPrefix(to, "/dev/null") && !strings.HasPrefix(to, "/memfd:") {
			t.Errorf("descriptor %s is %s", fd.Name(), to)
		}
	}
}

// TestOrdinaryUser: strict refuses to run, available runs and says what lacks.
func TestOrdinaryUser(t *testing.T) {
	if os.Geteuid() != 0 {
		t.Skip("becoming another user needs root")
	}
	run := func(path, mode string) *process {
		p := &process{t: t, path: path}
		socket, err := control.Bind(path)
		if err != nil {
			t.Fatal(err)
		}
		defer socket.Close()
		p.cmd = control.Command(context.Background(), program, socket, "--sandbox="+mode)
		p.cmd.Stderr = &p.log
		p.cmd.SysProcAttr = &syscall.SysProcAttr{Credential: &syscall.Credential{Uid: 65534, Gid: 65534}}
		if err := p.cmd.Start(); err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { _ = p.cmd.Process.Kill(); _ = p.cmd.Wait() })
		return p
	}
	strict := run(filepath.Join(t.TempDir(), "vcard.sock"), "strict")
	if err := strict.end(); err == nil || !strings.Contains(strict.log.String(), "needs root") {
		t.Errorf("strict: %v, %s", err, strict.log.String())
	}
	r := vcardtest.NewRig(t)
	p := run(filepath.Join(t.TempDir(), "vcard.sock"), "available")
	c := r.Connect(p.path, nil)
	results := map[string]string{}
	for _, check := range c.Peer().Sandbox {
		results[check.Name] = check.Result
	}
	if results["system-calls"] != "passed" || results["identity"] != "failed" {
		t.Errorf("checks %v", results)
	}
	addRoot(t, r, c, r.Volume(1<<20))
	r.Pool.Free(memOffset + 4096)
	d := vcardtest.NewDisk(r.Pool, 64, 16, blockSize)
	boot(t, r, d)
	if err := d.Write(0, block(0, 0)); err != nil {
		t.Error(err)
	}
}

func TestSIGTERMDrains(t *testing.T) {
	r := vcardtest.NewRig(t)
	vol := r.Volume(1 << 20)
	p := spawn(t, filepath.Join(t.TempDir(), "vcard.sock"), sandboxArgs()...)
	c := r.Connect(p.path, nil)
	addRoot(t, r, c, vol)
	if err := p.cmd.Process.Signal(syscall.SIGTERM); err != nil {
		t.Fatal(err)
	}
	if err := p.end(); err != nil {
		t.Errorf("got %v, want a clean exit; log:\n%s", err, p.log.String())
	}
	if !strings.Contains(p.log.String(), "device removed") {
		t.Errorf("log:\n%s", p.log.String())
	}
}

// TestLogReaderIsGone: a closed log does not end the process.
func TestLogReaderIsGone(t *testing.T) {
	read, write, err := os.Pipe()
	if err != nil {
		t.Fatal(err)
	}
	path := filepath.Join(t.TempDir(), "vcard.sock")
	socket, err := control.Bind(path)
	if err != nil {
		t.Fatal(err)
	}
	cmd := control.Command(context.Background(), program, socket, sandboxArgs()...)
	cmd.Stderr = write
	if err := errors.Join(read.Close(), cmd.Start(), write.Close(), socket.Close()); err != nil {
		t.Fatal(err)
	}
	defer func() { _ = cmd.Process.Kill(); _ = cmd.Wait() }()
	r := vcardtest.NewRig(t)
	c := r.Connect(path, nil)
	addRoot(t, r, c, r.Volume(1<<20))
	if err := c.RemoveDevice(r.Context(), "web", "root"); err != nil {
		t.Error(err)
	}
}

// Who asks for the usage gets it, and no error.
func TestHelp(t *testing.T) {
	out, err := exec.Command(program, "--help").CombinedOutput()
	if err != nil || !strings.Contains(string(out), "--sandbox") {
		t.Errorf("%v, %s", err, out)
	}
}

func TestFlags(t *testing.T) {
	for _, tt := range []struct{ args, want string }{
		{"--sandbox=none", "want strict or available"},
		{"--id=0 --sandbox=available", "not an unprivileged one"},
		{"extra", "takes only flags"},
		{"", "control socket"}, // no descriptor 3
	} {
		cmd := exec.Command(program, strings.Fields(tt.args)...)
		if tt.args != "" {
			socket, err := control.Bind(filepath.Join(t.TempDir(), "s"))
			if err != nil {
				t.Fatal(err)
			}
			defer socket.Close()
			cmd.ExtraFiles = []*os.File{socket}
		}
		out, err := cmd.CombinedOutput()
		if err == nil || !strings.Contains(string(out), tt.want) {
			t.Errorf("%q: %v, %s", tt.args, err, out)
		}
	}
}
