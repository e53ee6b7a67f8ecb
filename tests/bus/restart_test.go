// SPDX-License-Identifier: Apache-2.0

package bus

import (
	"context"
	"io"
	"math/rand/v2"
	"net"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/davit-dpu/davit/firmware/bus"
	"github.com/davit-dpu/davit/firmware/qmp"
	"github.com/davit-dpu/davit/firmware/spec"
	"github.com/davit-dpu/davit/tests/vm"
	"github.com/davit-dpu/davit/tools/packages"
	"github.com/davit-dpu/davit/tools/rig"
)

// TestOrders is a VMM's whole life on a host.
func TestOrders(t *testing.T) {
	t.Parallel()
	h := newHost(t)
	v := counting(t)
	h.start()
	c := startCard(t, h.bus, h.pool, v)
	o := order(1)
	if st := c.mustStart(o); st.State != spec.VMMRunning || st.Adopted {
		t.Errorf("started: %+v", st)
	}
	goesOn(t, v, 20)
	if st := c.mustStart(o); st.State != spec.VMMRunning || len(h.vmms()) != 1 {
		t.Errorf("the same order again: %+v, processes %v", st, h.vmms())
	}
	if _, err := c.start(order(2)); err == nil || !strings.Contains(err.Error(), "runs generation") {
		t.Errorf("another generation: %v", err)
	}
	other := order(3)
	other.Instance = "other"
	if _, err := c.start(other); err == nil || !strings.Contains(err.Error(), "in use") {
		t.Errorf("memory in use: %v", err)
	}
	talk(t, c, o)
	c.kill(o)
	if st := c.exit(o); !strings.Contains(st.Reason, "killed, on the card's order") {
		t.Errorf("exit: %+v", st)
	}
	h.clean()
	if st := c.mustStart(o); st.State != spec.VMMExited {
		t.Errorf("a finished order again: %+v", st)
	}
	o = order(4)
	c.mustStart(o)
	if err := syscall.Kill(h.pid(), syscall.SIGKILL); err != nil {
		t.Fatal(err)
	}
	if st := c.exit(o); st.Reason != "signal: killed" {
		t.Errorf("a VMM that was killed by somebody: %+v", st)
	}
	h.clean()
	o = order(5)
	o.Firmware = spec.FirmwareUEFI
	if _, err := c.start(o); err == nil || !strings.Contains(err.Error(), "--firmware-uefi") {
		t.Errorf("UEFI without firmware: %v", err)
	}
	h.clean()
}

// talk uses QMP, the console and the door.
func talk(t *testing.T, c *card, o spec.VMMOrder) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), 20*time.Second)
	defer cancel()
	q := c.qmp(o)
	var status struct{ Status string }
	if err := q.Execute(ctx, "query-status", nil, &status); err != nil || status.Status != "running" || q.Version().Major < 10 {
		t.Errorf("QMP: %+v, %v, version %+v", status, err, q.Version())
	}
	first := c.open(bus.KindConsole, o)
	buf := make([]byte, 100)
	if _, err := io.ReadFull(first, buf); err != nil || !strings.Contains(string(buf), ".") {
		t.Errorf("console: %q, %v", buf, err)
	}
	second := c.open(bus.KindConsole, o)
	if _, err := io.ReadFull(second, buf); err != nil {
		t.Errorf("second console: %v", err)
	}
	if _, err := io.Copy(io.Discard, first); err != nil {
		t.Errorf("the console that was replaced: %v", err)
	}
	_ = second.Close()
}

// TestDoor carries a local client's bytes to the card and back.
func TestDoor(t *testing.T) {
	t.Parallel()
	h := newHost(t)
	h.start()
	c := startCard(t, h.bus, h.pool, counting(t))
	c.wait()
	dir, err := os.Open(h.dir)
	if err != nil {
		t.Fatal(err)
	}
	defer dir.Close()
	conn, err := net.Dial("unix", "/proc/self/fd/"+strconv.Itoa(int(dir.Fd()))+"/mailbox.sock")
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	sent := strings.Repeat("envelope", 20_000)
	go func() { _, _ = io.WriteString(conn, sent) }()
	got := make([]byte, len(sent))
	if _, err := io.ReadFull(conn, got); err != nil || string(got) != sent {
		t.Errorf("echo of %d bytes: %v", len(got), err)
	}
}

// TestKilledInAnyOrder kills hostd, the card, or both while the guest works.
func TestKilledInAnyOrder(t *testing.T) {
	t.Parallel()
	h := newHost(t)
	v := counting(t)
	h.start()
	c := startCard(t, h.bus, h.pool, v)
	o := order(1)
	c.mustStart(o)
	goesOn(t, v, 20)
	pid := h.pid()
	rng := rand.New(rand.NewPCG(uint64(time.Now().UnixNano()), 0))
	for round := range 8 {
		killHost, killCard := round%3 != 1, round%3 != 0
		if killHost {
			_ = h.end(syscall.SIGKILL)
		}
		if killCard {
			c.stop()
		}
		time.Sleep(time.Duration(rng.IntN(300)) * time.Millisecond)
		restart := []func(){func() {
			if killHost {
				h.start()
			}
		}, func() {
			if killCard {
				c = startCard(t, h.bus, h.pool, v)
			}
		}}
		first := rng.IntN(2)
		restart[first]()
		time.Sleep(time.Duration(rng.IntN(300)) * time.Millisecond)
		restart[1-first]()
		began := time.Now()
		ctx, cancel := context.WithCancel(t.Context())
		heard := silent(ctx, t, c.open(bus.KindConsole, o))
		goesOn(t, v, 20)
		t.Logf("round %d (hostd %v, card %v): guest went on after %s", round, killHost, killCard, time.Since(began).Round(time.Millisecond))
		list := c.list()
		if len(list) != 1 || list[0].State != spec.VMMRunning || list[0].Generation != o.Generation || list[0].Adopted != true {
			t.Errorf("round %d: the host reports %+v", round, list)
		}
		cancel()
		<-heard
	}
	if now := h.pid(); now != pid {
		t.Errorf("the VMM is process %d, was %d", now, pid)
	}
	c.kill(o)
	if st := c.exit(o); !strings.Contains(st.Reason, "unknown") || !strings.Contains(st.Reason, "on the card's order") {
		t.Errorf("exit of an adopted VMM: %+v", st)
	}
	h.clean()
}

// TestVMMDiesUnwatched: the VMM ends while no hostd runs.
func TestVMMDiesUnwatched(t *testing.T) {
	t.Parallel()
	h := newHost(t)
	v := counting(t)
	h.start()
	c := startCard(t, h.bus, h.pool, v)
	o := order(1)
	c.mustStart(o)
	goesOn(t, v, 5)
	pid := h.pid()
	_ = h.end(syscall.SIGKILL)
	if err := syscall.Kill(pid, syscall.SIGKILL); err != nil {
		t.Fatal(err)
	}
	h.start()
	for deadline := time.Now().Add(10 * time.Second); ; time.Sleep(10 * time.Millisecond) {
		list := c.list()
		if len(list) == 1 && list[0].State == spec.VMMExited && strings.Contains(list[0].Reason, "unknown") {
			break
		}
		if time.Now().After(deadline) {
			t.Fatalf("the host reports %+v", list)
		}
	}
	if st := c.mustStart(o); st.State != spec.VMMExited {
		t.Errorf("the finished order again: %+v", st)
	}
	h.clean()
}

// TestTerminate: SIGTERM leaves VMMs running, or not, as asked; a second hostd
// is refused.
func TestTerminate(t *testing.T) {
	t.Parallel()
	h := newHost(t)
	v := counting(t)
	h.start()
	c := startCard(t, h.bus, h.pool, v)
	c.mustStart(order(1))
	goesOn(t, v, 5)
	exe, err := program()
	if err != nil {
		t.Fatal(err)
	}
	second := h.command(exe)
	if out, err := second.CombinedOutput(); err == nil || !strings.Contains(string(out), "another hostd") {
		t.Errorf("a second hostd: %v, %s", err, out)
	}
	if err := h.end(syscall.SIGTERM); err != nil {
		t.Errorf("SIGTERM: %v", err)
	}
	h.pid()
	if _, err := os.Stat(filepath.Join(h.dir, "mailbox.sock")); err == nil {
		t.Error("the door's socket is left")
	}
	h.start("--kill-on-exit")
	goesOn(t, v, 5)
	if err := h.end(syscall.SIGTERM); err != nil {
		t.Errorf("SIGTERM: %v", err)
	}
	h.clean()
}

// TestKernel starts a stock kernel that the card has put into the instance's
// memory, and refuses one that is not what the order says.
func TestKernel(t *testing.T) {
	t.Parallel()
	kernel := packages.KernelFor("amd64")
	h := newHost(t, kernel)
	v := counting(t)
	h.start()
	c := startCard(t, h.bus, h.pool, v)
	k, err := vm.Need(t, kernel).Kernel("amd64")
	if err != nil {
		t.Fatal(err)
	}
	image, err := os.ReadFile(k.Image)
	if err != nil {
		t.Fatal(err)
	}
	o := order(1)
	o.Memory, o.Firmware, o.Cmdline = 160*spec.MiB, "", "console=ttyS0 panic=-1 "+rig.NoTimerCheck
	o.Kernel = c.stage(o.PoolOffset+120*spec.MiB, image)
	bad := o
	digest := *o.Kernel
	digest.SHA256 = append([]byte{^digest.SHA256[0]}, digest.SHA256[1:]...)
	bad.Kernel = &digest
	if _, err := c.start(bad); err == nil || !strings.Contains(err.Error(), "SHA-256") {
		t.Errorf("a kernel that is not the one ordered: %v", err)
	}
	h.clean()
	c.mustStart(o)
	out := c.open(bus.KindConsole, o)
	q := c.qmp(o)
	if err := out.SetReadDeadline(time.Now().Add(time.Minute)); err != nil {
		t.Fatal(err)
	}
	text := readUntil(t, out, "Command line: console=ttyS0 panic=-1")
	if !strings.Contains(text, "Linux version") {
		t.Errorf("the console began with %q", text[:min(len(text), 200)])
	}
	ctx, cancel := context.WithTimeout(t.Context(), 20*time.Second)
	defer cancel()
	if err := q.Execute(ctx, "quit", nil, nil); err != nil {
		t.Error(err)
	}
	if st := c.exit(o); st.Reason != "exit status 0" {
		t.Errorf("exit: %+v", st)
	}
	if ev := lastEvent(q); ev.Name != "SHUTDOWN" {
		t.Errorf("last event %+v", ev)
	}
}

func lastEvent(q *qmp.Client) (last qmp.Event) {
	for ev := range q.Events() {
		last = ev
	}
	return last
}

func readUntil(t *testing.T, r io.Reader, want string) string {
	t.Helper()
	var text []byte
	buf := make([]byte, 4096)
	for !strings.Contains(string(text), want) {
		n, err := r.Read(buf)
		text = append(text, buf[:n]...)
		if err != nil {
			t.Fatalf("console ended with %v after %q", err, text)
		}
	}
	return string(text)
}
