// SPDX-License-Identifier: Apache-2.0

package supervise

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"os/signal"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// The test binary plays all children itself: TestMain does what this variable
// says.
const roleEnv = "DAVIT_TEST_SUPERVISE_ROLE"

func TestMain(m *testing.M) {
	role := os.Getenv(roleEnv)
	if role == "" {
		os.Exit(m.Run())
	}
	if err := play(role); err != nil {
		fmt.Println(err)
		os.Exit(99)
	}
}

// play is the child's part.
func play(role string) error {
	switch role {
	case "lines":
		fmt.Print("one\ntwo\n", strings.Repeat("x", maxLine+10), "\nlast")
		os.Exit(7)
	case "ready":
		if err := errors.Join(NotifyReady(), NotifyReady()); err != nil {
			return err
		}
		fmt.Println(os.LookupEnv(notifyEnv))
	case "stubborn":
		signal.Ignore(syscall.SIGTERM)
		if err := NotifyReady(); err != nil {
			return err
		}
		time.Sleep(time.Minute)
	case "wait":
		if err := NotifyReady(); err != nil {
			return err
		}
		time.Sleep(time.Minute)
	case "file":
		b, err := io.ReadAll(os.NewFile(3, "extra"))
		fmt.Printf("%s %v\n", b, err)
	case "orphans":
		return orphans()
	case "grandchild":
		// Leaves a process behind that holds the output open.
		cmd := exec.Command("/proc/self/exe")
		cmd.Env = []string{roleEnv + "=wait"}
		cmd.Stdout, cmd.Stderr = os.Stdout, os.Stderr
		if err := cmd.Start(); err != nil {
			return err
		}
		fmt.Println(cmd.Process.Pid)
	default:
		return fmt.Errorf("role %q", role)
	}
	return nil
}

// lockedBuffer is an Output that a test may read.
type lockedBuffer struct {
	mu    sync.Mutex
	lines []string // guarded by mu
}

func (b *lockedBuffer) Write(p []byte) (int, error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.lines = append(b.lines, string(p))
	return len(p), nil
}

func (b *lockedBuffer) all() []string {
	b.mu.Lock()
	defer b.mu.Unlock()
	return append([]string{}, b.lines...)
}

func command(t *testing.T, role string, out io.Writer) Command {
	t.Helper()
	self, err := filepath.Abs(os.Args[0])
	if err != nil {
		t.Fatal(err)
	}
	return Command{Path: self, Name: "child", Env: []string{roleEnv + "=" + role, "GOCOVERDIR=" + t.TempDir()}, Output: out, Notify: true}
}

func start(t *testing.T, c Command) *Child {
	t.Helper()
	child, err := Start(c, nil)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { Stop(context.Background(), child, 0) })
	return child
}

func TestOutputLineByLine(t *testing.T) {
	t.Parallel()
	var out lockedBuffer
	e := start(t, command(t, "lines", &out)).Exit()
	if got := e.String(); got != "exit code 7" || e.OK() {
		t.Errorf("exit %q", got)
	}
	want := []string{"one\n", "two\n", strings.Repeat("x", maxLine) + "\n", strings.Repeat("x", 10) + "\n", "last\n"}
	if got := out.all(); strings.Join(got, "|") != strings.Join(want, "|") {
		t.Errorf("got lines %q", got)
	}
}

func TestReadiness(t *testing.T) {
	t.Parallel()
	var out lockedBuffer
	c := start(t, command(t, "ready", &out))
	<-c.Ready()
	if e := c.Exit(); !e.OK() {
		t.Errorf("exit %v: %q", e, out.all())
	}
	if got := out.all(); len(got) != 1 || got[0] != " false\n" {
		t.Errorf("the variable is left: %q", got)
	}
	never := start(t, command(t, "lines", nil))
	never.Exit()
	select {
	case <-never.Ready():
		t.Error("ready without having said so")
	default:
	}
}

func TestStop(t *testing.T) {
	t.Parallel()
	for role, want := range map[string]struct {
		signal syscall.Signal
		detail string
	}{"wait": {syscall.SIGTERM, ""}, "stubborn": {syscall.SIGKILL, "did not stop within"}} {
		t.Run(role, func(t *testing.T) {
			t.Parallel()
			c := start(t, command(t, role, nil))
			<-c.Ready()
			e := Stop(t.Context(), c, 300*time.Millisecond)
			if e.Signal != want.signal || !strings.Contains(e.Detail, want.detail) {
				t.Errorf("exit %v", e)
			}
			if err := c.Signal(syscall.SIGTERM); !errors.Is(err, os.ErrProcessDone) {
				t.Errorf("signal to the dead: %v", err)
			}
		})
	}
}

func TestExtraFilesComeFirst(t *testing.T) {
	t.Parallel()
	path := filepath.Join(t.TempDir(), "f")
	if err := os.WriteFile(path, []byte("content"), 0o600); err != nil {
		t.Fatal(err)
	}
	f, err := os.Open(path)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	var out lockedBuffer
	c := command(t, "file", &out)
	c.ExtraFiles = []*os.File{f}
	if e := start(t, c).Exit(); !e.OK() || len(out.all()) != 1 || out.all()[0] != "content <nil>\n" {
		t.Errorf("exit %v, output %q", e, out.all())
	}
	if c.ExtraFiles[0] != f || len(c.ExtraFiles) != 1 {
		t.Error("the caller's files were changed")
	}
}

func TestGrandchildDoesNotHoldTheEnd(t *testing.T) {
	t.Parallel()
	var out lockedBuffer
	c := start(t, command(t, "grandchild", &out))
	select {
	case <-c.Done():
	case <-time.After(20 * time.Second):
		t.Fatal("waits for a grandchild's output")
	}
	pid, err := strconv.Atoi(strings.TrimSpace(out.all()[0]))
	if err != nil {
		t.Fatal(err)
	}
	id, err := IdentityOf(pid)
	if err != nil {
		t.Fatal(err)
	}
	a, err := Adopt(id)
	if err != nil {
		t.Fatal(err)
	}
	e := Stop(t.Context(), a, 10*time.Second)
	if e.Known || e.OK() {
		t.Errorf("exit of another's child: %+v", e)
	}
	if err := a.Signal(syscall.SIGTERM); !errors.Is(err, os.ErrProcessDone) {
		t.Errorf("signal to the dead: %v", err)
	}
}

func TestAdoptRefusesAnotherProcess(t *testing.T) {
	t.Parallel()
	c := start(t, command(t, "wait", nil))
	id := c.Identity()
	if id.StartTicks == 0 {
		t.Fatalf("identity %+v", id)
	}
	if _, err := Adopt(Identity{PID: id.PID, StartTicks: id.StartTicks + 1}); !errors.Is(err, ErrGone) {
		t.Errorf("adopt a reused pid: %v, want %v", err, ErrGone)
	}
	Stop(t.Context(), c, time.Second)
	if _, err := Adopt(id); !errors.Is(err, ErrGone) {
		t.Errorf("adopt the dead: %v, want %v", err, ErrGone)
	}
}

func TestStartFailsWhole(t *testing.T) {
	t.Parallel()
	for _, path := range []string{"relative", "", filepath.Join(t.TempDir(), "absent")} {
		if c, err := Start(Command{Path: path, Output: io.Discard, Notify: true}, nil); err == nil || c != nil {
			t.Errorf("start %q: %v, %v", path, c, err)
		}
	}
}

func TestStartTicks(t *testing.T) {
	t.Parallel()
	line := "12 (a) b (c)) S 1 12 12 0 -1 4194560 1 0 0 0 0 0 0 0 20 0 1 0 4711 1 2"
	if got, err := startTicks([]byte(line)); err != nil || got != 4711 {
		t.Errorf("got %d, %v", got, err)
	}
	for _, bad := range []string{"", "12 (a", "12 (a) S 1 2"} {
		if got, err := startTicks([]byte(bad)); err == nil {
			t.Errorf("%q: got %d", bad, got)
		}
	}
}

// TestReaper runs the reaper in a process of its own that inherits orphans as
// pid 1 does: it must collect those and give its own children their statuses.
func TestReaper(t *testing.T) {
	t.Parallel()
	cmd := exec.CommandContext(t.Context(), os.Args[0])
	cmd.Env = []string{roleEnv + "=orphans"}
	var out bytes.Buffer
	cmd.Stdout, cmd.Stderr = &out, &out
	if err := cmd.Run(); err != nil || !strings.Contains(out.String(), "PASS") {
		t.Fatalf("%v\n%s", err, out.String())
	}
}

func orphans() error {
	if err := unix.Prctl(unix.PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0); err != nil {
		return err
	}
	r := NewReaper()
	ctx, cancel := context.WithCancel(context.Background())
	defer cancel()
	collected := make(chan Exit, 100)
	go r.Run(ctx, func(_ int, e Exit) { collected <- e })
	self, err := filepath.Abs(os.Args[0])
	if err != nil {
		return err
	}
	const n = 6
	var grandchildren []string
	for i := range n {
		// Children that end at once are the ones that could be missed.
		own, err := Start(Command{Path: "/bin/sh", Args: []string{"-c", fmt.Sprintf("exit %d", i)}}, r)
		if err != nil {
			return err
		}
		var out lockedBuffer
		parent, err := Start(Command{Path: self, Env: []string{roleEnv + "=grandchild"}, Output: &out}, r)
		if err != nil {
			return err
		}
		if e := own.Exit(); e.Code != i || !e.Known {
			return fmt.Errorf("child %d: %v", i, e)
		}
		if e := parent.Exit(); !e.OK() {
			return fmt.Errorf("parent %d: %v %q", i, e, out.all())
		}
		grandchildren = append(grandchildren, strings.TrimSpace(out.all()[0]))
	}
	if err := exec.Command("/bin/true").Start(); err != nil { // a stranger: started past the reaper
		return err
	}
	for _, pid := range grandchildren {
		p, err := strconv.Atoi(pid)
		if err != nil {
			return err
		}
		if err := syscall.Kill(p, syscall.SIGKILL); err != nil {
			return err
		}
	}
	wait, stop := context.WithTimeout(ctx, 20*time.Second)
	defer stop()
	if err := r.WaitEmpty(wait); err != nil {
		return err
	}
	killed := 0
	for len(collected) > 0 {
		if e := <-collected; e.Signal == syscall.SIGKILL {
			killed++
		}
	}
	if killed != n {
		return fmt.Errorf("%d orphans collected, want %d", killed, n)
	}
	fmt.Println("PASS")
	return nil
}

func TestExitString(t *testing.T) {
	t.Parallel()
	for want, e := range map[string]Exit{
		"exit code 0":                               {Known: true},
		"killed by signal 9 (killed)":               {Known: true, Code: -1, Signal: syscall.SIGKILL},
		"killed by signal 6 (aborted), core dumped": {Known: true, Code: -1, Signal: syscall.SIGABRT, Core: true},
		"exit code 1: not ready within 1s":          {Known: true, Code: 1, Detail: "not ready within 1s"},
		"start /x: no such file":                    {Code: -1, Detail: "start /x: no such file"},
		"ended, exit code not known":                {Code: -1},
	} {
		if got := e.String(); got != want {
			t.Errorf("got %q, want %q", got, want)
		}
	}
}
