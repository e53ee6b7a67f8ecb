// SPDX-License-Identifier: Apache-2.0

package host

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"os/signal"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/davit-dpu/davit/firmware/bus"
	"github.com/davit-dpu/davit/firmware/spec"
)

// The test binary is QEMU too, when it is called so.
func TestMain(m *testing.M) {
	if filepath.Base(os.Args[0]) != "qemu-system-x86_64" {
		os.Exit(m.Run())
	}
	os.Exit(fakeQEMU(os.Args[1:]))
}

// babble is how much the guests of that name make QEMU say.
const babble = 8 << 20

// fakeQEMU does what the instance's name says.
func fakeQEMU(args []string) int {
	if slices.Contains(args, "-help") {
		fmt.Println("usage:\n-sandbox on")
		return 0
	}
	name, _, _ := strings.Cut(args[slices.Index(args, "-name")+1], ",")
	switch name {
	case "guest=crash":
		fmt.Fprintln(os.Stderr, "qemu: first\nqemu: cannot")
		return 3
	case "guest=old":
		fmt.Fprintln(os.Stderr, "qemu: long ago")
		if err := unix.Futimes(2, []unix.Timeval{{}, {}}); err != nil {
			return 4
		}
		return 3
	case "guest=babble", "guest=babbler":
		term := make(chan os.Signal, 1)
		signal.Notify(term, unix.SIGTERM)
		fmt.Fprintln(os.Stderr, "qemu: first")
		_, _ = os.Stderr.Write(bytes.Repeat([]byte("qemu: virtio: bogus\n"), babble/20))
		<-term
		fmt.Fprintln(os.Stderr, "qemu: cannot")
		return 3
	case "guest=fine":
		fmt.Fprintln(os.Stderr, "qemu: terminating")
		return 0
	case "guest=shot":
		fmt.Fprintln(os.Stderr, "qemu: Failed to connect to 'disk0.sock'")
		_ = unix.Kill(os.Getpid(), unix.SIGKILL)
	case "guest=chatty":
		l, err := net.FileListener(os.NewFile(fdConsole, "console"))
		if err != nil {
			return 4
		}
		c, err := l.Accept()
		if err != nil {
			return 4
		}
		_, _ = c.Write(bytes.Repeat([]byte("0123456789abcdef"), 3*maxBacklog/16))
		_, _ = io.WriteString(c, "the end")
	}
	time.Sleep(time.Hour) // killed long before
	return 5
}

func testConfig(t *testing.T) Config {
	t.Helper()
	root := t.TempDir()
	self, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	qemu, pool := filepath.Join(root, "qemu-system-x86_64"), filepath.Join(root, "pool")
	if err := errors.Join(os.Symlink(self, qemu), os.WriteFile(pool, nil, 0o600), os.Truncate(pool, 1<<30)); err != nil {
		t.Fatal(err)
	}
	return Config{Dial: bus.DialUnix(filepath.Join(root, "bus")), Pool: pool, RunDir: filepath.Join(root, "run"), QEMU: qemu, Accel: AccelTCG}
}

func openHost(t *testing.T, cfg Config) *Host {
	t.Helper()
	h, err := Open(t.Context(), cfg)
	if err != nil {
		t.Fatal(err)
	}
	return h
}

func named(name string, slot int) spec.VMMOrder {
	o := *testOrder()
	o.Instance, o.PoolOffset, o.Disks = name, spec.Bytes(64+256*slot)*spec.MiB, nil
	return o
}

func waitExit(t *testing.T, h *Host, instance string) spec.VMMStatus {
	t.Helper()
	timeout := time.After(10 * time.Second)
	for {
		list, changed := h.report.Get()
		for _, st := range list {
			if st.Instance == instance && st.State == spec.VMMExited {
				return st
			}
		}
		select {
		case <-changed:
		case <-timeout:
			t.Fatalf("%s has not exited: %+v", instance, list)
		}
	}
}

func TestCrashIsReported(t *testing.T) {
	t.Parallel()
	cfg := testConfig(t)
	h := openHost(t, cfg)
	o := named("crash", 0)
	if _, err := h.Start(t.Context(), o); err != nil {
		t.Fatal(err)
	}
	if st := waitExit(t, h, "crash"); st.Reason != "exit status 3: qemu: cannot" || st.Adopted {
		t.Errorf("reported %+v", st)
	}
	if err := h.Close(); err != nil {
		t.Error(err)
	}
	h = openHost(t, cfg) // the next one knows it too
	defer h.Close()
	if st, err := h.Start(t.Context(), o); err != nil || st.State != spec.VMMExited || !strings.Contains(st.Reason, "cannot") {
		t.Errorf("the same order again: %+v, %v", st, err)
	}
	if b, err := os.ReadFile(h.dir.log("crash")); err != nil || !strings.Contains(string(b), "first") {
		t.Errorf("log %q, %v", b, err)
	}
}

// TestLastWords: QEMU's last line is a reason only if it belongs to the exit.
func TestLastWords(t *testing.T) {
	t.Parallel()
	h := openHost(t, testConfig(t))
	defer h.Close()
	for i, tt := range []struct{ name, want string }{
		{"crash", "exit status 3: qemu: cannot"}, {"old", "exit status 3"}, {"fine", "exit status 0"}, {"shot", "signal: killed"},
	} {
		if _, err := h.Start(t.Context(), named(tt.name, i%3)); err != nil {
			t.Fatal(err)
		}
		if st := waitExit(t, h, tt.name); st.Reason != tt.want {
			t.Errorf("%s: reason %q, want %q", tt.name, st.Reason, tt.want)
		}
	}
}

// TestAdoptDespiteDisorder: a directory that cannot be cleaned up, or written
// to, keeps no VMM from being adopted.
func TestAdoptDespiteDisorder(t *testing.T) {
	t.Parallel()
	cfg := testConfig(t)
	h := openHost(t, cfg)
	for i, name := range []string{"a", "b", "c"} {
		if _, err := h.Start(t.Context(), named(name, i)); err != nil {
			t.Fatal(err)
		}
	}
	gone := h.lookup("a", testGeneration).proc
	blocked := []string{h.dir.log("a"), filepath.Join(h.dir.vmm("b"), "pid.json.new"), filepath.Join(h.dir.exited("x"), "y")}
	if err := h.Close(); err != nil {
		t.Fatal(err)
	}
	p, err := holdProcess(gone.pid, func(int) error { return nil })
	if err != nil {
		t.Fatal(err)
	}
	if err := errors.Join(p.kill(), p.wait(), p.pidfd.Close()); err != nil {
		t.Fatal(err)
	}
	for _, path := range blocked {
		if err := os.MkdirAll(path, 0o700); err != nil {
			t.Fatal(err)
		}
	}
	cfg.KillOnExit = true
	h = openHost(t, cfg)
	defer h.Close()
	list := h.List()
	if len(list) != 3 || list[0].State != spec.VMMExited || list[1].State != spec.VMMRunning || list[2].State != spec.VMMRunning {
		t.Errorf("reported %+v", list)
	}
}

func TestAdoptAndKill(t *testing.T) {
	t.Parallel()
	cfg := testConfig(t)
	h := openHost(t, cfg)
	for i, name := range []string{"a", "b"} {
		if _, err := h.Start(t.Context(), named(name, i)); err != nil {
			t.Fatal(err)
		}
	}
	if err := os.Remove(filepath.Join(h.dir.vmm("b"), "pid.json")); err != nil { // as if killed before it was written
		t.Fatal(err)
	}
	if err := h.Close(); err != nil {
		t.Fatal(err)
	}
	half := filepath.Join(cfg.RunDir, "vmm", "half") // an order that cannot be read, and a process
	if err := os.Mkdir(half, 0o700); err != nil {
		t.Fatal(err)
	}
	stray := sleeper(t, half)
	cfg.KillOnExit = true
	h = openHost(t, cfg)
	if err := stray.Wait(); err == nil || err.Error() != "signal: killed" {
		t.Errorf("the process that nobody knows ended with %v", err)
	}
	list := h.List()
	if len(list) != 2 || !list[0].Adopted || !list[1].Adopted || list[0].State != spec.VMMRunning {
		t.Errorf("adopted %+v", list)
	}
	ref := bus.VMMRef{Instance: "a", Generation: strings.Repeat("0", 32)}
	if err := h.Kill(t.Context(), ref); err != nil {
		t.Error(err)
	}
	if len(h.List()) != 2 || h.List()[0].State != spec.VMMRunning {
		t.Error("an order to kill another generation killed this one")
	}
	ref.Generation = testGeneration
	if err := h.Kill(t.Context(), ref); err != nil {
		t.Error(err)
	}
	if st := waitExit(t, h, "a"); !strings.Contains(st.Reason, "on the card's order") {
		t.Errorf("killed: %+v", st)
	}
	overlapping := named("c", 1)
	if _, err := h.Start(t.Context(), overlapping); err == nil || !strings.Contains(err.Error(), "in use by b") {
		t.Errorf("memory in use: %v", err)
	}
	if err := h.Close(); err != nil {
		t.Error(err)
	}
	left, err := h.dir.instances()
	if err != nil || len(left) != 0 {
		t.Errorf("left after the end: %v, %v", left, err)
	}
}

// TestConsoleBacklog: a guest is never stopped by its console, and what is
// kept is bounded and newest.
func TestConsoleBacklog(t *testing.T) {
	t.Parallel()
	cfg := testConfig(t)
	cfg.KillOnExit = true
	h := openHost(t, cfg)
	defer h.Close()
	if _, err := h.Start(t.Context(), named("chatty", 0)); err != nil {
		t.Fatal(err)
	}
	c := h.lookup("chatty", strings.ToUpper(testGeneration)).console
	ctx, cancel := context.WithTimeout(t.Context(), 10*time.Second)
	defer cancel()
	for {
		c.mu.Lock()
		got := string(c.backlog)
		c.mu.Unlock()
		if strings.HasSuffix(got, "the end") {
			if len(got) != maxBacklog {
				t.Errorf("%d bytes are kept, want %d", len(got), maxBacklog)
			}
			return
		}
		if !sleep(ctx, 5*time.Millisecond) {
			t.Fatalf("%d bytes came", len(got))
		}
	}
}

func TestBadOrders(t *testing.T) {
	t.Parallel()
	h := openHost(t, testConfig(t))
	defer h.Close()
	for name, change := range map[string]func(*spec.VMMOrder){
		"name":       func(o *spec.VMMOrder) { o.Instance = "../../etc" },
		"outside":    func(o *spec.VMMOrder) { o.PoolOffset = 1 << 30 },
		"reserved":   func(o *spec.VMMOrder) { o.PoolOffset = 0 },
		"generation": func(o *spec.VMMOrder) { o.Generation = "1" },
		"cmdline":    func(o *spec.VMMOrder) { o.Cmdline = "x" },
		"uefi":       func(o *spec.VMMOrder) { o.Firmware = spec.FirmwareUEFI },
		"no kernel": func(o *spec.VMMOrder) {
			o.Kernel = &spec.Blob{Offset: o.PoolOffset, Length: 5, SHA256: make([]byte, 32)}
		},
	} {
		o := *testOrder()
		change(&o)
		if st, err := h.Start(t.Context(), o); err == nil || st != (spec.VMMStatus{}) {
			t.Errorf("%s: %+v, %v", name, st, err)
		}
	}
	if left, err := h.dir.instances(); err != nil || len(left) != 0 {
		t.Errorf("left: %v, %v", left, err)
	}
}

func TestOpenRefuses(t *testing.T) {
	t.Parallel()
	for name, change := range map[string]func(*Config){
		"no QEMU":       func(c *Config) { c.QEMU = "/nonexistent/qemu-system-x86_64" },
		"no pool":       func(c *Config) { c.Pool += "x" },
		"half firmware": func(c *Config) { c.UEFICode = "x" },
	} {
		cfg := testConfig(t)
		change(&cfg)
		if h, err := Open(t.Context(), cfg); err == nil || h != nil {
			t.Errorf("%s: %v", name, err)
		}
	}
}
