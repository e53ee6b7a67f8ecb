// SPDX-License-Identifier: Apache-2.0

package sandbox

import (
	"bytes"
	"context"
	"errors"
	"io"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	seccomp "github.com/elastic/go-seccomp-bpf"
	"github.com/elastic/go-seccomp-bpf/arch"
	"golang.org/x/sys/unix"

	"github.com/davit-dpu/davit/firmware/control"
)

func TestMain(m *testing.M) {
	if what := os.Getenv(envAttack); what != "" {
		os.Exit(attackMain(what))
	}
	os.Exit(m.Run())
}

// child is a sandboxed process under test.
type child struct {
	cmd      *exec.Cmd
	out      bytes.Buffer
	peer     *net.UnixConn // other end of fdPeer
	listener string        // path of fdListener
}

func start(t *testing.T, what string) *child {
	t.Helper()
	if os.Geteuid() != 0 {
		t.Skip("the strict sandbox needs root")
	}
	if mounted, err := isMountPoint("/"); err != nil {
		t.Fatal(err)
	} else if !mounted {
		t.Skip("the strict sandbox needs a root that is a mount point; this is a chroot")
	}
	dir := t.TempDir()
	file, err := os.OpenFile(filepath.Join(dir, "volume"), os.O_RDWR|os.O_CREATE, 0o600)
	if err == nil {
		err = file.Truncate(1 << 20)
	}
	if err != nil {
		t.Fatal(err)
	}
	fds, err := unix.Socketpair(unix.AF_UNIX, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		t.Fatal(err)
	}
	theirs, ours := os.NewFile(uintptr(fds[0]), "theirs"), os.NewFile(uintptr(fds[1]), "ours")
	conn, err := net.FileConn(ours)
	if err != nil {
		t.Fatal(err)
	}
	c := &child{peer: conn.(*net.UnixConn), listener: filepath.Join(dir, "sock")}
	ln, err := net.ListenUnix("unix", &net.UnixAddr{Name: c.listener, Net: "unix"})
	if err != nil {
		t.Fatal(err)
	}
	lnFile, err := ln.File()
	if err != nil {
		t.Fatal(err)
	}
	fd, err := unix.Socket(unix.AF_UNIX, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		t.Fatal(err)
	}
	loose := os.NewFile(uintptr(fd), "loose")
	ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
	c.cmd = exec.CommandContext(ctx, "/proc/self/exe")
	c.cmd.Env = []string{envAttack + "=" + what, envParent + "=" + strconv.Itoa(os.Getpid())}
	c.cmd.Stdout, c.cmd.Stderr = &c.out, &c.out
	c.cmd.ExtraFiles = []*os.File{file, theirs, lnFile, loose}
	c.cmd.SysProcAttr = control.ProcAttr()
	t.Cleanup(func() {
		cancel()
		for _, f := range []io.Closer{file, theirs, ours, conn, ln, lnFile, loose} {
			_ = f.Close()
		}
	})
	return c
}

// output is the beginning of what it printed.
func (c *child) output() string { return c.out.String()[:min(c.out.Len(), 400)] }

// signal is what ended the process, or 0.
func signal(err error) syscall.Signal {
	var exit *exec.ExitError
	if errors.As(err, &exit) {
		if st, ok := exit.Sys().(syscall.WaitStatus); ok && st.Signaled() {
			return st.Signal()
		}
	}
	return 0
}

func TestAttacksFail(t *testing.T) {
	for what, a := range attacks {
		t.Run(what, func(t *testing.T) {
			t.Parallel()
			c := start(t, what)
			err := c.cmd.Run()
			if a.killed {
				if got := signal(err); got != syscall.SIGSYS {
					t.Errorf("ended with %v, want SIGSYS; output %q", err, c.output())
				}
				return
			}
			if !strings.HasPrefix(c.out.String(), "attack: denied: ") {
				t.Errorf("ended with %v, want a denial; output %q", err, c.output())
			}
		})
	}
}

func TestWorkGoesOn(t *testing.T) {
	for what := range works {
		t.Run(what, func(t *testing.T) {
			t.Parallel()
			c := start(t, what)
			if err := c.cmd.Start(); err != nil {
				t.Fatal(err)
			}
			switch what {
			case "pass fds":
				exchangeFiles(t, c.peer)
			case "accept":
				conn, err := net.Dial("unix", c.listener)
				if err != nil {
					t.Fatal(err)
				}
				defer conn.Close()
				if err := conn.SetDeadline(time.Now().Add(30 * time.Second)); err != nil {
					t.Fatal(err)
				}
				if b, err := io.ReadAll(conn); err != nil || string(b) != "hello" {
					t.Errorf("from the accepted connection: %q, %v", b, err)
				}
			}
			if err := c.cmd.Wait(); err != nil || c.output() != "works: done\n" {
				t.Errorf("%v: %s", err, c.output())
			}
		})
	}
}

func exchangeFiles(t *testing.T, peer *net.UnixConn) {
	t.Helper()
	r, w, err := os.Pipe()
	if err != nil {
		t.Fatal(err)
	}
	defer r.Close()
	defer w.Close()
	if err := peer.SetDeadline(time.Now().Add(30 * time.Second)); err != nil {
		t.Fatal(err)
	}
	if _, _, err := peer.WriteMsgUnix([]byte("x"), unix.UnixRights(int(w.Fd())), nil); err != nil {
		t.Fatal(err)
	}
	buf, oob := make([]byte, 16), make([]byte, 64)
	_, oobn, _, _, err := peer.ReadMsgUnix(buf, oob)
	if err != nil || oobn == 0 {
		t.Fatalf("from the sandbox: %d bytes of rights, %v", oobn, err)
	}
	msgs, err := unix.ParseSocketControlMessage(oob[:oobn])
	if err != nil {
		t.Fatal(err)
	}
	fds, err := unix.ParseUnixRights(&msgs[0])
	if err != nil {
		t.Fatal(err)
	}
	for _, fd := range fds {
		_ = unix.Close(fd)
	}
}

func TestStrictChecks(t *testing.T) {
	c := start(t, "checks")
	if err := c.cmd.Run(); err != nil {
		t.Fatalf("%v: %s", err, c.output())
	}
	for _, s := range steps {
		if want := s.name + "=passed\n"; !strings.Contains(c.out.String(), want) {
			t.Errorf("want %q in %q", want, c.output())
		}
	}
}

func TestIsMountPoint(t *testing.T) {
	for path, want := range map[string]bool{"/proc": true, t.TempDir(): false} {
		if got, err := isMountPoint(path); got != want || err != nil {
			t.Errorf("isMountPoint(%s) = %v, %v; want %v", path, got, err, want)
		}
	}
	if _, err := isMountPoint(filepath.Join(t.TempDir(), "none")); err == nil {
		t.Error("a path that isn't there has a mount")
	}
}

func TestCoverTheRoot(t *testing.T) {
	c := start(t, "cover")
	if err := c.cmd.Run(); err != nil || c.output() != "<nil> <nil> 0 stat /../etc: no such file or directory\n" {
		t.Errorf("%v: %s", err, c.output())
	}
}

// TestWithoutNamespaces: what is missing is fatal in strict mode and reported
// otherwise, and the rest still holds.
func TestWithoutNamespaces(t *testing.T) {
	strict := start(t, "checks")
	strict.cmd.SysProcAttr = nil
	if err := strict.cmd.Run(); err == nil || !strings.Contains(strict.out.String(), "namespaces: mnt, net, ipc, uts, pid shared") {
		t.Errorf("strict: %v, %q", err, strict.out.String())
	}
	report := start(t, "checks")
	report.cmd.SysProcAttr = nil
	report.cmd.Env = append(report.cmd.Env, envReport+"=1")
	if err := report.cmd.Run(); err != nil {
		t.Fatalf("%v: %s", err, report.out.String())
	}
	for _, want := range []string{"namespaces=failed", "filesystem=failed", "identity=passed", "system-calls=passed"} {
		if !strings.Contains(report.out.String(), want) {
			t.Errorf("want %q in %q", want, report.out.String())
		}
	}
}

// TestOrdinaryUser: without root, and in the namespaces of everybody, identity
// cannot change, and still no attack that needs a system call works.
func TestOrdinaryUser(t *testing.T) {
	program := filepath.Join(t.TempDir(), "attacker")
	self, err := os.ReadFile("/proc/self/exe")
	if err == nil {
		err = os.WriteFile(program, self, 0o755)
	}
	if err != nil {
		t.Fatal(err)
	}
	if err := os.Chmod(filepath.Dir(filepath.Dir(program)), 0o755); err != nil {
		t.Fatal(err)
	}
	for _, tt := range []struct{ what, want string }{
		{"checks", "identity=failed\nundumpable=passed\nsystem-calls=passed\n"},
		{"open a file", "attack: denied: "},
		{"signal another process", "attack: denied: "},
		{"signal by a descriptor", "attack: denied: operation not permitted"},
		{"signal a thread that way", "attack: denied: operation not permitted"},
	} {
		c := start(t, tt.what)
		c.cmd.Path = program
		c.cmd.Env = append(c.cmd.Env, envReport+"=1")
		c.cmd.SysProcAttr = &syscall.SysProcAttr{Credential: &syscall.Credential{Uid: 65534, Gid: 65534}}
		err := c.cmd.Run()
		if !strings.Contains(c.out.String(), tt.want) {
			t.Errorf("%s: %v, %q, want %q", tt.what, err, c.out.String(), tt.want)
		}
	}
}

// TestTablesOnBothMachines: every name must exist where vcard runs, because an
// unknown one would leave it without a filter.
func TestTablesOnBothMachines(t *testing.T) {
	for _, machine := range []string{"amd64", "arm64"} {
		info, err := arch.GetInfo(machine)
		if err != nil {
			t.Fatal(err)
		}
		seen := map[string]bool{}
		for _, name := range slices.Concat(names(allowed), names(absent), names(fatal)) {
			if _, ok := info.SyscallNames[name]; !ok {
				t.Errorf("%s has no %s", machine, name)
			}
			if seen[name] {
				t.Errorf("%s is listed twice", name)
			}
			seen[name] = true
		}
		for _, n := range narrowings(1) {
			if _, ok := info.SyscallNames[n.name]; !ok {
				t.Errorf("%s has no %s", machine, n.name)
			}
		}
	}
}

// TestOneConditionalCallPerFilter keeps the rule that makes the conditions
// sound: see narrowing.
func TestOneConditionalCallPerFilter(t *testing.T) {
	for i, p := range filters(1) {
		conditional := 0
		for _, g := range p.Syscalls {
			conditional += len(g.NamesWithCondtions)
		}
		if conditional > 1 || conditional == 1 && (len(p.Syscalls) != 1 || len(p.Syscalls[0].Names) != 0 || p.DefaultAction != seccomp.ActionAllow) {
			t.Errorf("filter %d mixes a call with conditions with others", i)
		}
	}
}

func TestEnterRefusesRoot(t *testing.T) {
	if _, err := Enter(Config{ID: 0}); err == nil {
		t.Error("id 0 was accepted")
	}
}
