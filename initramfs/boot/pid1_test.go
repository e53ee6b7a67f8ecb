// SPDX-License-Identifier: Apache-2.0

package boot

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"os/signal"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/davit-dpu/davit/firmware/spec"
	"github.com/davit-dpu/davit/firmware/supervise"
	"github.com/davit-dpu/davit/firmware/supervise/initctl"
)

// The tests below let this package be the real pid 1 of a pid namespace, where
// reboot(2) ends the namespace: with SIGHUP for a restart, SIGINT for
// power-off, reboot(2). The test binary also plays davitd; the name it is
// started by says which one.

func TestMain(m *testing.M) {
	name := filepath.Base(os.Args[0])
	switch {
	case name == "init-under-test":
		if err := playInit(filepath.Dir(os.Args[0])); err != nil {
			fmt.Println(err)
			os.Exit(98)
		}
	case strings.HasPrefix(name, "davitd-"):
		if err := playAgent(name, filepath.Dir(os.Args[0])); err != nil {
			fmt.Println(err)
			os.Exit(99)
		}
	default:
		os.Exit(m.Run())
	}
}

func playInit(dir string) error {
	if os.Getpid() != 1 {
		return ErrNotPID1
	}
	cfg := Default()
	cfg.Agent = filepath.Join(dir, os.Args[1])
	cfg.Report, cfg.Socket = filepath.Join(dir, "boot.json"), filepath.Join(dir, "init.sock")
	cfg.StateDir, cfg.Shells = filepath.Join(dir, "state"), nil
	cfg.Grace, cfg.StopDelay = 2*time.Second, 200*time.Millisecond
	m := newMachine(cfg, sinceUp)
	m.report.Lifecycle = spec.Lifecycle(os.Args[2])
	m.term.consoles.attach(os.Stdout, nil)
	m.run([]step{{"control", required, stepControl}, {"davitd", required, stepAgent}, {"extra", required, extraStep}})
	return errors.New("pid 1 has nothing left to do")
}

// extraStep fails when the test wants a boot that stops.
func extraStep(_ context.Context, m *machine) (string, error) {
	if strings.HasSuffix(m.cfg.Agent, "davitd-stopped") {
		return "", errors.New("wanted to fail")
	}
	return "", nil
}

func playAgent(name, dir string) error {
	if name == "davitd-stubborn" {
		signal.Ignore(syscall.SIGTERM)
	} else {
		fmt.Println("agent", os.Getppid())
	}
	if err := supervise.NotifyReady(); err != nil {
		return err
	}
	ctx, socket := context.Background(), filepath.Join(dir, "init.sock")
	term := make(chan os.Signal, 1)
	signal.Notify(term, syscall.SIGTERM)
	switch name {
	case "davitd-crash-once":
		if _, err := os.Stat(filepath.Join(dir, "crashed")); err != nil {
			return errors.Join(os.WriteFile(filepath.Join(dir, "crashed"), nil, 0o600), errors.New("crash"))
		}
		return errors.Join(initctl.Ask(ctx, socket, initctl.Reboot), wait(term))
	case "davitd-orphan":
		// A vcard that does not end when asked to.
		self, err := os.Executable()
		if err != nil {
			return err
		}
		c, err := supervise.Start(supervise.Command{Path: self, Name: filepath.Join(dir, "davitd-stubborn"), Notify: true}, nil)
		if err != nil {
			return err
		}
		<-c.Ready()
		return errors.Join(initctl.Ask(ctx, socket, initctl.PowerOff), wait(term))
	case "davitd-stubborn":
		time.Sleep(time.Minute)
	case "davitd-idle", "davitd-stopped":
		return wait(term)
	}
	return nil
}

func wait(term <-chan os.Signal) error {
	<-term
	return nil
}

// asPID1 starts the package as pid 1 with a davitd of the given name.
func asPID1(t *testing.T, agent string, l spec.Lifecycle) (*exec.Cmd, *bufio.Reader) {
	t.Helper()
	self, err := os.Executable()
	check(t, err)
	dir := t.TempDir()
	check(t, os.Symlink(self, filepath.Join(dir, agent)))
	cmd := exec.CommandContext(t.Context(), self)
	cmd.Args = []string{filepath.Join(dir, "init-under-test"), agent, string(l)}
	cmd.SysProcAttr = &syscall.SysProcAttr{Cloneflags: syscall.CLONE_NEWPID | syscall.CLONE_NEWNS, Pdeathsig: syscall.SIGKILL}
	if uid := os.Getuid(); uid != 0 {
		cmd.SysProcAttr.Cloneflags |= syscall.CLONE_NEWUSER
		cmd.SysProcAttr.UidMappings = []syscall.SysProcIDMap{{HostID: uid, Size: 1}}
		cmd.SysProcAttr.GidMappings = []syscall.SysProcIDMap{{HostID: os.Getgid(), Size: 1}}
	}
	out, err := cmd.StdoutPipe()
	check(t, err)
	cmd.Stderr = cmd.Stdout
	if err := cmd.Start(); err != nil {
		t.Skipf("this machine allows no pid namespace: %v", err)
	}
	return cmd, bufio.NewReader(out)
}

// ends waits for the end and tells how reboot(2) was called.
func ends(t *testing.T, cmd *exec.Cmd, out io.Reader) (text string, by syscall.Signal) {
	t.Helper()
	b, err := io.ReadAll(out)
	check(t, err)
	err = cmd.Wait()
	var exit *exec.ExitError
	if !errors.As(err, &exit) {
		t.Fatalf("ended with %v\n%s", err, b)
	}
	ws, ok := exit.Sys().(syscall.WaitStatus)
	if !ok || !ws.Signaled() {
		t.Fatalf("ended with %v\n%s", err, b)
	}
	return string(b), ws.Signal()
}

func wantText(t *testing.T, text string, parts ...string) {
	t.Helper()
	rest := text
	for _, p := range parts {
		_, after, ok := strings.Cut(rest, p)
		if !ok {
			t.Fatalf("%q is not there, or out of order, in\n%s", p, text)
		}
		rest = after
	}
}

func TestCrashIsRestartedThenReboot(t *testing.T) {
	t.Parallel()
	cmd, out := asPID1(t, "davitd-crash-once", spec.Development)
	text, by := ends(t, cmd, out)
	wantText(t, text, "exit code 99", "restart 1 of", "asked to reboot", "stopping davitd", "] reboot")
	wantText(t, text, "agent 1", "agent 1") // another process' words come when they come
	if by != syscall.SIGHUP {
		t.Errorf("ended by %v, want a restart", by)
	}
}

func TestPowerOffEndsOrphans(t *testing.T) {
	t.Parallel()
	cmd, out := asPID1(t, "davitd-orphan", spec.Development)
	text, by := ends(t, cmd, out)
	wantText(t, text, "asked to poweroff", "stopping davitd", "processes are left after terminated", "killed by signal 9", "] poweroff")
	if by != syscall.SIGINT {
		t.Errorf("ended by %v, want power-off", by)
	}
}

func TestSignals(t *testing.T) {
	t.Parallel()
	for s, want := range map[syscall.Signal]syscall.Signal{
		syscall.SIGTERM: syscall.SIGHUP,
		syscall.SIGINT:  syscall.SIGHUP,
		syscall.SIGUSR1: syscall.SIGINT,
		syscall.SIGUSR2: syscall.SIGINT,
	} {
		t.Run(s.String(), func(t *testing.T) {
			t.Parallel()
			cmd, out := asPID1(t, "davitd-idle", spec.Development)
			for line := ""; !strings.Contains(line, "ready"); {
				var err error
				line, err = out.ReadString('\n')
				check(t, err)
			}
			check(t, cmd.Process.Signal(s))
			if text, by := ends(t, cmd, out); by != want {
				t.Errorf("ended by %v, want %v\n%s", by, want, text)
			}
		})
	}
}

func TestStoppedBoot(t *testing.T) {
	t.Parallel()
	cmd, out := asPID1(t, "davitd-stopped", spec.Production)
	text, by := ends(t, cmd, out)
	wantText(t, text, "extra", "failed", "wanted to fail", "CRITICAL ERROR: boot stopped: extra: wanted to fail", "power-off in", "] poweroff")
	if by != syscall.SIGINT {
		t.Errorf("ended by %v, want power-off", by)
	}
	if strings.Contains(text, "agent") {
		t.Errorf("production ran a davitd that was not measured:\n%s", text)
	}
}

func TestRunRefusesToTakeOver(t *testing.T) {
	t.Parallel()
	if err := Run(Default()); !errors.Is(err, ErrNotPID1) {
		t.Errorf("Run: %v, want %v", err, ErrNotPID1)
	}
}
