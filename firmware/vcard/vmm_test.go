// SPDX-License-Identifier: Apache-2.0

package vcard

import (
	"bytes"
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"reflect"
	"strings"
	"sync"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/davit-dpu/davit/firmware/bus"
	"github.com/davit-dpu/davit/firmware/control"
	"github.com/davit-dpu/davit/firmware/spec"
	"github.com/davit-dpu/davit/firmware/vcard/vcardtest"
)

func webOrder(generation string) spec.VMMOrder {
	return spec.VMMOrder{
		Instance: "web", Generation: generation, VCPUs: 1, Memory: memSize, PoolOffset: memOffset,
		Cmdline: "console=ttyS0", Disks: []spec.VMMDisk{{Device: "root", Queues: 2}},
	}
}

func file(t *testing.T, content []byte) *os.File {
	t.Helper()
	path := filepath.Join(t.TempDir(), "file")
	if err := os.WriteFile(path, content, 0o600); err != nil {
		t.Fatal(err)
	}
	f, err := os.Open(path)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = f.Close() })
	return f
}

func vmmOf(st *control.Status, generation string) *spec.VMMStatus {
	for i := range st.VMMs {
		if st.VMMs[i].Generation == generation {
			return &st.VMMs[i]
		}
	}
	return nil
}

// startWeb starts instance web as generation gen1.
func startWeb(t *testing.T, r *vcardtest.Rig, c *control.Client) *spec.VMMOrder {
	t.Helper()
	order, err := c.StartVMM(r.Context(), webOrder(gen1), file(t, []byte("kernel")), nil)
	if err != nil {
		t.Fatal(err)
	}
	return order
}

func TestStartStagesMemory(t *testing.T) {
	t.Parallel()
	path, _, _ := startCard(t)
	r := vcardtest.NewRig(t)
	c := r.Connect(path, nil)
	addRoot(t, r, c, r.Volume(1<<20))
	mem := r.Pool.Bytes()[memOffset : memOffset+memSize]
	for i := range mem {
		mem[i] = 0xa5 // another instance's secrets
	}
	before, behind := &r.Pool.Bytes()[memOffset-1], &r.Pool.Bytes()[memOffset+memSize]
	*before, *behind = 0x11, 0x22
	kernel := bytes.Repeat([]byte("kernel "), 1<<20)
	initrd := bytes.Repeat([]byte("initrd"), 1000)
	order, err := c.StartVMM(r.Context(), webOrder(gen1), file(t, kernel), file(t, initrd))
	if err != nil {
		t.Fatal(err)
	}
	if got := r.Host.Orders(); len(got) != 1 || !reflect.DeepEqual(&got[0], order) {
		t.Errorf("the host got %+v, the reply says %+v", got, order)
	}
	for _, b := range []struct {
		blob *spec.Blob
		want []byte
	}{{order.Kernel, kernel}, {order.Initrd, initrd}} {
		got := r.Pool.Bytes()[b.blob.Offset : b.blob.Offset+b.blob.Length]
		sum := sha256.Sum256(b.want)
		if !bytes.Equal(got, b.want) || !bytes.Equal(b.blob.SHA256, sum[:]) {
			t.Errorf("blob %+v: content equal %v", b.blob, bytes.Equal(got, b.want))
		}
		clear(got)
	}
	if i := bytes.IndexFunc(mem, func(r rune) bool { return r != 0 }); i >= 0 {
		t.Errorf("memory is not zero at %#x", i)
	}
	if *before != 0x11 || *behind != 0x22 {
		t.Error("memory outside the instance's was changed")
	}
}

func TestStartRefusals(t *testing.T) {
	t.Parallel()
	path, _, _ := startCard(t)
	r := vcardtest.NewRig(t)
	c := r.Connect(path, nil)
	addRoot(t, r, c, r.Volume(1<<20))
	if err := c.AddDevice(r.Context(), control.AddDevice{Instance: "db", Name: "data", Queues: 1, Generation: gen2, MemoryOffset: 2 << 20, MemorySize: 62 << 20}, control.DeviceFiles{Volume: r.Volume(512)}); err != nil {
		t.Fatal(err)
	}
	for name, tt := range map[string]struct {
		change func(*spec.VMMOrder)
		want   error
	}{
		"a disk that is no device":   {func(o *spec.VMMOrder) { o.Disks[0].Device = "other" }, control.ErrConflict},
		"another number of queues":   {func(o *spec.VMMOrder) { o.Disks[0].Queues = 1 }, control.ErrConflict},
		"other memory":               {func(o *spec.VMMOrder) { o.PoolOffset += 2 << 20 }, control.ErrConflict},
		"memory of another instance": {func(o *spec.VMMOrder) { o.Instance, o.Disks = "new", nil }, control.ErrConflict},
		"memory behind the window":   {func(o *spec.VMMOrder) { o.Instance, o.Disks, o.PoolOffset = "new", nil, 1<<40 }, control.ErrInvalid},
		"a pinned device": {func(o *spec.VMMOrder) {
			o.Instance, o.Disks = "db", []spec.VMMDisk{{Device: "data", Queues: 1}}
			o.PoolOffset, o.Memory = 2<<20, 62<<20
		}, control.ErrInvalid}, // less than spec.MinMemory
	} {
		order := webOrder(gen1)
		tt.change(&order)
		if _, err := c.StartVMM(r.Context(), order, file(t, []byte("k")), nil); !errors.Is(err, tt.want) {
			t.Errorf("%s: got %v, want %v", name, err, tt.want)
		}
	}
	if _, err := c.StartVMM(r.Context(), webOrder(gen1), file(t, nil), nil); !errors.Is(err, control.ErrInvalid) {
		t.Errorf("empty kernel: %v", err)
	}
	if _, err := c.StartVMM(r.Context(), webOrder(gen1), file(t, make([]byte, memSize)), file(t, []byte("x"))); !errors.Is(err, control.ErrInvalid) {
		t.Errorf("boot files larger than the memory: %v", err)
	}
	r.Host.Refuse("no QEMU \x1b here")
	if _, err := c.StartVMM(r.Context(), webOrder(gen1), file(t, []byte("k")), nil); !errors.Is(err, control.ErrHost) || !strings.Contains(err.Error(), "no QEMU ? here") {
		t.Errorf("a host that refuses: %v", err)
	}
	r.Host.Refuse("")
	startWeb(t, r, c)
	if _, err := c.StartVMM(r.Context(), webOrder(gen2), file(t, []byte("k")), nil); !errors.Is(err, control.ErrConflict) {
		t.Errorf("while it runs: %v", err)
	}
	if got := len(r.Host.Orders()); got != 1 {
		t.Errorf("the host got %d orders, want 1", got)
	}
}

func TestVMMLife(t *testing.T) {
	t.Parallel()
	path, _, _ := startCard(t)
	r := vcardtest.NewRig(t)
	r.Host.Banner = "Linux boots\r\n"
	c := r.Connect(path, nil)
	addRoot(t, r, c, r.Volume(1<<20))
	if _, err := c.ConsoleRead(r.Context(), "web", 0); !errors.Is(err, control.ErrNotFound) {
		t.Errorf("console before the start: %v", err)
	}
	startWeb(t, r, c)
	out, err := c.ConsoleRead(r.Context(), "web", 0)
	if err != nil || string(out.Data) != r.Host.Banner {
		t.Errorf("console: %+v, %v", out, err)
	}
	if err := c.ConsoleWrite(r.Context(), "web", []byte("root\r")); err != nil {
		t.Fatal(err)
	}
	if out, err = c.ConsoleRead(r.Context(), "web", uint64(len(r.Host.Banner))); err != nil || string(out.Data) != "root\r" {
		t.Errorf("echo: %+v, %v", out, err)
	}
	for { // QMP connects by itself, some time after the start
		err := c.StopVMM(r.Context(), "web", gen1, false)
		if err == nil {
			break
		}
		if !errors.Is(err, control.ErrHost) {
			t.Fatal(err)
		}
	}
	if got := r.Host.Commands("web"); len(got) != 2 || got[1] != "system_powerdown" {
		t.Errorf("QMP commands %q", got)
	}
	r.Host.Exit("web", "exit status 0", "guest-shutdown")
	st := r.Until(c, "it exited", func(st *control.Status) bool {
		v := vmmOf(st, gen1)
		return v != nil && v.State == spec.VMMExited
	})
	want := spec.VMMStatus{Instance: "web", Generation: gen1, State: spec.VMMExited, Clean: true, Reason: "QMP guest-shutdown; host: exit status 0"}
	if got := *vmmOf(st, gen1); got != want {
		t.Errorf("got %+v, want %+v", got, want)
	}
	if err := c.StopVMM(r.Context(), "web", gen1, false); !errors.Is(err, control.ErrNotFound) {
		t.Errorf("stop after the exit: %v", err)
	}
	// The next start replaces the exit, and is killed by force.
	if _, err := c.StartVMM(r.Context(), webOrder(gen2), file(t, []byte("k")), nil); err != nil {
		t.Fatal(err)
	}
	if err := c.StopVMM(r.Context(), "web", gen2, true); err != nil {
		t.Fatal(err)
	}
	st = r.Until(c, "it was killed", func(st *control.Status) bool {
		v := vmmOf(st, gen2)
		return v != nil && v.State == spec.VMMExited
	})
	if v := vmmOf(st, gen2); v.Clean || v.Reason != "killed" || vmmOf(st, gen1) != nil {
		t.Errorf("status %+v", st.VMMs)
	}
}

// TestGenerationsGuardDevices: after a start only that VMM gets the device.
func TestGenerationsGuardDevices(t *testing.T) {
	t.Parallel()
	path, _, _ := startCard(t)
	r := vcardtest.NewRig(t)
	c := r.Connect(path, nil)
	addRoot(t, r, c, r.Volume(1<<20))
	stale, err := r.Front("web", gen2, "root")
	if err != nil {
		t.Fatalf("before any start: %v", err)
	}
	startWeb(t, r, c)
	if err := stale.Ended(); err != nil {
		var closed *bus.RefusedError
		if !errors.As(err, &closed) {
			t.Errorf("a front end of an earlier start: %v", err)
		}
	}
	if _, err := r.Front("web", gen2, "root"); err == nil {
		t.Error("a VMM of another generation got the device")
	}
	if _, err := r.Front("web", gen1, "root"); err != nil {
		t.Errorf("the VMM that was ordered: %v", err)
	}
}

// TestHostErrorTellsARefusalFromALostOrder: the moment at which each part of a
// session ends is nobody's to choose.
func TestHostErrorTellsARefusalFromALostOrder(t *testing.T) {
	t.Parallel()
	ended, cancel := context.WithCancel(t.Context())
	cancel()
	refused := fmt.Errorf("order: %w", &bus.HostError{Reason: "no room"})
	for _, tt := range []struct {
		name string
		ctx  context.Context
		err  error
		want error
	}{
		{"refused", t.Context(), refused, control.ErrHost},
		{"refused, then the session ended", ended, refused, control.ErrHost},
		{"no answer, the session is not over yet", t.Context(), fmt.Errorf("order: %w", bus.ErrClosed), control.ErrNoHost},
		{"no answer, the session is over", ended, context.Canceled, control.ErrNoHost},
		{"given up", t.Context(), context.DeadlineExceeded, context.DeadlineExceeded},
	} {
		if err := hostError(&link{ctx: tt.ctx, session: new(bus.Session)}, tt.err); !errors.Is(err, tt.want) {
			t.Errorf("%s: got %v, want %v", tt.name, err, tt.want)
		}
	}
}

// TestHostHangsUpDuringAStart: an order without an answer was not refused, and
// the next session tells what became of it.
func TestHostHangsUpDuringAStart(t *testing.T) {
	t.Parallel()
	path, _, _ := startCard(t)
	r := vcardtest.NewRig(t)
	c := r.Connect(path, nil)
	addRoot(t, r, c, r.Volume(1<<20))
	r.Host.HangUp()
	if _, err := c.StartVMM(r.Context(), webOrder(gen1), file(t, []byte("k")), nil); !errors.Is(err, control.ErrNoHost) {
		t.Errorf("got %v, want ErrNoHost", err)
	}
	r.Until(c, "the VMM is found", func(st *control.Status) bool {
		v := vmmOf(st, gen1)
		return st.Host.Phase == spec.PhaseReady && st.Host.Sessions == 2 && v != nil && v.State == spec.VMMRunning
	})
}

// TestHostRestarts: what a new session lists is the truth.
func TestHostRestarts(t *testing.T) {
	t.Parallel()
	path, _, _ := startCard(t)
	r := vcardtest.NewRig(t)
	c := r.Connect(path, nil)
	addRoot(t, r, c, r.Volume(1<<20))
	startWeb(t, r, c)
	restart := func(sessions uint64) *control.Status {
		s, err := r.Host.Session(r.Context())
		if err != nil {
			t.Fatal(err)
		}
		s.Close("restart")
		return r.Until(c, "the host is back", func(st *control.Status) bool {
			return st.Host.Phase == spec.PhaseReady && st.Host.Sessions == sessions
		})
	}
	if v := vmmOf(restart(2), gen1); v == nil || v.State != spec.VMMRunning {
		t.Errorf("after a restart of the host: %+v", v)
	}
	r.Host.Forget("web")
	if v := vmmOf(restart(3), gen1); v == nil || v.State != spec.VMMExited || v.Clean {
		t.Errorf("after the host forgot it: %+v", v)
	}
}

func TestNoHost(t *testing.T) {
	t.Parallel()
	path, _, _ := startCard(t)
	r := vcardtest.NewRig(t)
	c, err := control.Dial(r.Context(), path, control.Options{})
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	if _, err := c.StartVMM(r.Context(), webOrder(gen1), file(t, []byte("k")), nil); !errors.Is(err, control.ErrNoHost) {
		t.Errorf("start: %v", err)
	}
	if err := c.StopVMM(r.Context(), "web", gen1, true); !errors.Is(err, control.ErrNoHost) {
		t.Errorf("stop: %v", err)
	}
}

func TestZeroIsCancelled(t *testing.T) {
	t.Parallel()
	ctx, cancel := context.WithCancel(context.Background())
	cancel()
	mem := bytes.Repeat([]byte{1}, 2*stageChunk)
	w := &window{}
	if err := w.zero(ctx, mem, 0); !errors.Is(err, context.Canceled) || mem[0] != 1 {
		t.Errorf("got %v, first byte %d", err, mem[0])
	}
	if err := w.zero(context.Background(), mem, 0); err != nil || bytes.IndexByte(mem, 1) >= 0 {
		t.Errorf("got %v", err)
	}
}

// TestTruncatedPool: a host that takes its pool away costs the start that runs
// into it, not the process.
func TestTruncatedPool(t *testing.T) {
	t.Parallel()
	path, _, _ := startCard(t)
	r := vcardtest.NewRig(t)
	c := r.Connect(path, nil)
	if err := unix.Ftruncate(r.Pool.FD(), 4<<20); err != nil {
		t.Fatal(err)
	}
	order := webOrder(gen1)
	order.Disks = nil
	if _, err := c.StartVMM(r.Context(), order, file(t, []byte("kernel")), nil); err == nil || !strings.Contains(err.Error(), "vanished") {
		t.Errorf("start in a truncated pool: %v", err)
	}
	if _, err := c.Status(r.Context()); err != nil {
		t.Errorf("afterwards: %v", err)
	}
}

// TestExitRightBehindTheAnswer: a VMM that ends as soon as it was started is not
// taken for a running one because the two news overtake each other.
func TestExitRightBehindTheAnswer(t *testing.T) {
	t.Parallel()
	path, _, _ := startCard(t)
	r := vcardtest.NewRig(t)
	c := r.Connect(path, nil)
	r.Host.Stillborn()
	for i := range 10 {
		order := webOrder(fmt.Sprintf("%032x", i+1))
		order.Disks = nil
		if _, err := c.StartVMM(r.Context(), order, file(t, []byte("kernel")), nil); err != nil {
			t.Fatal(err)
		}
		r.Until(c, "the exit is known", func(st *control.Status) bool {
			v := vmmOf(st, order.Generation)
			return v != nil && v.State == spec.VMMExited
		})
	}
}

// TestStartWaitsForDrain: what an earlier start asked for is not written into
// the memory of the next one.
func TestStartWaitsForDrain(t *testing.T) {
	t.Parallel()
	card, path, _, _ := runCard(t)
	r := vcardtest.NewRig(t)
	c := r.Connect(path, nil)
	addRoot(t, r, c, r.Volume(1<<20))
	card.mu.Lock()
	d := card.devices["web/root"]
	card.mu.Unlock()
	d.turn <- struct{}{} // a session of the last start that still completes a read
	drained := sync.OnceFunc(func() { <-d.turn })
	t.Cleanup(drained) // before the card ends
	started := make(chan error, 1)
	go func() {
		_, err := c.StartVMM(r.Context(), webOrder(gen1), file(t, []byte("kernel")), nil)
		started <- err
	}()
	select {
	case err := <-started:
		t.Fatalf("started (%v) while requests were in flight", err)
	case <-time.After(200 * time.Millisecond):
	}
	drained()
	if err := <-started; err != nil {
		t.Fatal(err)
	}
}
