// SPDX-License-Identifier: Apache-2.0

package instance

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/davit-dpu/davit/firmware/spec"
)

// world is a vcard and a host in one: what it is told becomes true, and after
// each change the service under test is shown it.
type world struct {
	svc *Service

	mu       sync.Mutex
	serving  bool
	host     bool
	vmms     map[string]spec.VMMStatus // by instance
	devices  map[string]Device         // by instance/name
	calls    []string
	fail     string // the next call of this name fails
	stubborn bool   // guests ignore a power-down
	deaf     bool   // the host says that it kills, and does not
	hold     bool   // the host does not answer a start before its caller gives up
	cut      bool   // the way to the host ends with the next start, before the answer
	deliver  bool   // but the order arrived
}

func newWorld() *world {
	return &world{serving: true, host: true, vmms: map[string]spec.VMMStatus{}, devices: map[string]Device{}}
}

func (w *world) call(name string) error {
	w.calls = append(w.calls, name)
	if strings.HasPrefix(name, w.fail) && w.fail != "" {
		w.fail = ""
		return errors.New("injected")
	}
	return nil
}

func (w *world) AddDevice(_ context.Context, d Device, files VolumeFiles) error {
	w.mu.Lock()
	defer w.mu.Unlock()
	if _, err := files.File.Stat(); err != nil {
		return err
	}
	if (files.Base != nil) != (d.Volume.Kind == spec.VolumeOverlay) {
		return fmt.Errorf("%s volume with base %v", d.Volume.Kind, files.Base)
	}
	if err := w.call("add " + d.Volume.Name); err != nil {
		return err
	}
	if key := d.Instance + "/" + d.Volume.Name; w.devices[key].Instance == "" { // what is there stays as it is
		w.devices[key] = d
	}
	return nil
}

func (w *world) LimitDevice(_ context.Context, instance, name string, l *spec.Limits) error {
	w.mu.Lock()
	defer w.mu.Unlock()
	if err := w.call(fmt.Sprintf("limit %s: %s", name, l)); err != nil {
		return err
	}
	if d, ok := w.devices[instance+"/"+name]; ok {
		d.Volume.Limits = l
		w.devices[instance+"/"+name] = d
	}
	return nil
}

func (w *world) RemoveDevice(_ context.Context, instance, name string) error {
	w.mu.Lock()
	defer w.mu.Unlock()
	if err := w.call("remove " + name); err != nil {
		return err
	}
	delete(w.devices, instance+"/"+name)
	return nil
}

func (w *world) StartVMM(ctx context.Context, o spec.VMMOrder, kernel, _ *os.File) error {
	w.mu.Lock()
	defer w.mu.Unlock()
	if err := w.call("start " + o.Instance); err != nil {
		return err
	}
	if w.hold {
		w.mu.Unlock()
		<-ctx.Done()
		w.mu.Lock()
		return ctx.Err()
	}
	if kernel != nil {
		if text, err := io.ReadAll(kernel); err != nil || string(text) != "kernel" {
			return fmt.Errorf("kernel is %q, %v", text, err)
		}
	}
	if !w.cut || w.deliver {
		w.vmms[o.Instance] = spec.VMMStatus{Instance: o.Instance, Generation: o.Generation, State: spec.VMMRunning}
	}
	go w.show()
	if w.cut {
		w.cut, w.host = false, false
		return fmt.Errorf("%w: bus session ended", ErrHostLost)
	}
	return nil
}

func (w *world) StopVMM(_ context.Context, instance, generation string, force bool) error {
	w.mu.Lock()
	defer w.mu.Unlock()
	if err := w.call(fmt.Sprintf("stop %s force=%v", instance, force)); err != nil {
		return err
	}
	v, ok := w.vmms[instance]
	if ok && v.Generation == generation && !w.deaf && (force || !w.stubborn) {
		v.State, v.Reason, v.Clean = spec.VMMExited, "told to", !force
		w.vmms[instance] = v
		go w.show()
	}
	if force && (!ok || v.Generation != generation) {
		go w.show() // the next look
	}
	return nil
}

// change edits the world and shows it to the service.
func (w *world) change(edit func()) {
	w.mu.Lock()
	edit()
	w.mu.Unlock()
	w.show()
}

func (w *world) show() {
	w.mu.Lock()
	o := Observation{At: time.Now(), Serving: w.serving, Host: w.host, Reason: "the host is away"}
	for _, v := range w.vmms {
		o.VMMs = append(o.VMMs, v)
	}
	for _, d := range w.devices {
		o.Devices = append(o.Devices, DeviceState{d.Instance, spec.DeviceStatus{Name: d.Volume.Name, Limits: d.Volume.Limits, Condition: spec.Condition{Phase: spec.PhaseReady}}})
	}
	w.mu.Unlock()
	w.svc.Observe(o)
}

func (w *world) state(instance string) spec.VMMState {
	w.mu.Lock()
	defer w.mu.Unlock()
	return w.vmms[instance].State
}

func (w *world) exit(instance, reason string, clean bool) {
	w.change(func() {
		v := w.vmms[instance]
		v.State, v.Reason, v.Clean = spec.VMMExited, reason, clean
		w.vmms[instance] = v
	})
}

func demo(restart spec.RestartPolicy) spec.Instance {
	return spec.Instance{Name: "demo", VCPUs: 1, Memory: 64 * spec.MiB, Restart: restart,
		Boot:    spec.Boot{Kernel: "vmlinuz"},
		Volumes: []spec.Volume{{Name: "root", Kind: spec.VolumeFile, Size: spec.MiB}, {Name: "tmp", Kind: spec.VolumeMemory, Size: spec.MiB}}}
}

// open makes a service on dir; stop ends it as a dying agent would.
func (w *world) open(t *testing.T, dir string) (stop func()) {
	t.Helper()
	svc, err := New(Config{StateDir: dir, MemoryDir: filepath.Join(dir, "mem"), Pool: 256 * spec.MiB, Host: w,
		Log: slog.New(slog.DiscardHandler), Now: time.Now})
	if err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(filepath.Join(dir, "boot", "vmlinuz"), []byte("kernel"), 0o600); err != nil {
		t.Fatal(err)
	}
	w.svc = svc
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan struct{})
	go func() { svc.Run(ctx); close(done) }()
	w.show()
	synctest.Wait()
	return func() { cancel(); <-done }
}

func (w *world) expect(t *testing.T, want spec.Phase, reason string) {
	t.Helper()
	synctest.Wait()
	st, err := w.svc.Show("demo")
	if err != nil {
		t.Fatal(err)
	}
	if st.Phase != want || !strings.Contains(st.Reason, reason) || st.Since.IsZero() {
		t.Fatalf("got %s (%s) since %v, want %s (…%s…)", st.Phase, st.Reason, st.Since, want, reason)
	}
}

func must(t *testing.T, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

// inWorld runs f with a service that has the instance demo.
func inWorld(t *testing.T, restart spec.RestartPolicy, f func(t *testing.T, w *world, dir string)) {
	dir := t.TempDir()
	synctest.Test(t, func(t *testing.T) {
		w := newWorld()
		stop := w.open(t, dir)
		must(t, w.svc.Create(demo(restart)))
		f(t, w, dir)
		stop()
	})
}

func TestStartAndStop(t *testing.T) {
	inWorld(t, "", func(t *testing.T, w *world, _ string) {
		w.expect(t, spec.PhaseStopped, "")
		must(t, w.svc.Start(t.Context(), "demo"))
		w.expect(t, spec.PhaseRunning, "2 of 2 disks")
		if d := w.devices["demo/root"]; d.MemoryOffset != spec.PoolReserved || d.MemorySize != 64*spec.MiB {
			t.Errorf("device may touch [%s, +%s)", d.MemoryOffset, d.MemorySize)
		}
		if err := w.svc.Delete(t.Context(), "demo"); !errors.Is(err, ErrBusy) {
			t.Errorf("delete of a running instance: %v", err)
		}
		must(t, w.svc.Stop(t.Context(), "demo", time.Minute))
		w.expect(t, spec.PhaseStopped, "as asked")
		if len(w.devices) != 0 || len(w.svc.pool.used) != 0 {
			t.Errorf("left behind: devices %v, memory %v", w.devices, w.svc.pool.used)
		}
		must(t, w.svc.Delete(t.Context(), "demo"))
		if _, err := w.svc.Show("demo"); !errors.Is(err, ErrNotFound) {
			t.Errorf("show of a deleted instance: %v", err)
		}
	})
}

func TestGuestThatIgnoresThePowerButtonIsKilled(t *testing.T) {
	inWorld(t, "", func(t *testing.T, w *world, _ string) {
		w.stubborn = true
		must(t, w.svc.Start(t.Context(), "demo"))
		w.expect(t, spec.PhaseRunning, "")
		must(t, w.svc.Stop(t.Context(), "demo", 10*time.Second))
		w.expect(t, spec.PhaseStopping, "power down")
		time.Sleep(9 * time.Second)
		w.expect(t, spec.PhaseStopping, "power down")
		time.Sleep(2 * time.Second)
		w.expect(t, spec.PhaseStopped, "told to")
	})
}

func TestEveryStepOfAStartIsUndone(t *testing.T) {
	for _, step := range []string{"add root", "add tmp", "start demo"} {
		t.Run(step, func(t *testing.T) {
			inWorld(t, "", func(t *testing.T, w *world, _ string) {
				w.fail = step
				must(t, w.svc.Start(t.Context(), "demo"))
				w.expect(t, spec.PhaseFailed, "injected")
				if len(w.devices) != 0 || len(w.svc.pool.used) != 0 {
					t.Errorf("left behind: devices %v, memory %v", w.devices, w.svc.pool.used)
				}
				must(t, w.svc.Start(t.Context(), "demo"))
				w.expect(t, spec.PhaseRunning, "")
			})
		})
	}
}

func TestRestartPolicy(t *testing.T) {
	tests := []struct {
		policy spec.RestartPolicy
		clean  bool
		want   spec.Phase // soon after the exit
		later  spec.Phase // after the backoff
	}{
		{"", false, spec.PhaseFailed, spec.PhaseFailed},
		{"", true, spec.PhaseStopped, spec.PhaseStopped},
		{spec.RestartOnFailure, false, spec.PhaseFailed, spec.PhaseRunning},
		{spec.RestartOnFailure, true, spec.PhaseStopped, spec.PhaseStopped},
		{spec.RestartAlways, true, spec.PhaseFailed, spec.PhaseRunning},
	}
	for _, tt := range tests {
		t.Run(fmt.Sprintf("%s/clean=%v", tt.policy, tt.clean), func(t *testing.T) {
			inWorld(t, tt.policy, func(t *testing.T, w *world, _ string) {
				must(t, w.svc.Start(t.Context(), "demo"))
				w.expect(t, spec.PhaseRunning, "")
				w.exit("demo", "signal: killed", tt.clean)
				w.expect(t, tt.want, "")
				time.Sleep(2 * firstRetry)
				w.expect(t, tt.later, "")
			})
		})
	}
}

func TestCrashLoopBacksOff(t *testing.T) {
	inWorld(t, spec.RestartAlways, func(t *testing.T, w *world, _ string) {
		must(t, w.svc.Start(t.Context(), "demo"))
		begin := time.Now()
		for range 12 {
			for synctest.Wait(); w.state("demo") != spec.VMMRunning; {
				time.Sleep(time.Second)
				synctest.Wait()
			}
			w.exit("demo", "crash", false)
			synctest.Wait()
		}
		if took := time.Since(begin); took < 4*time.Minute {
			t.Errorf("12 crashes took only %v: no backoff", took)
		}
		if st, _ := w.svc.Show("demo"); st.Restarts != 12 {
			t.Errorf("counted %d restarts, want 12", st.Restarts)
		}
	})
}

func TestHostThatGoesAwayAndComesBack(t *testing.T) {
	inWorld(t, "", func(t *testing.T, w *world, _ string) {
		must(t, w.svc.Start(t.Context(), "demo"))
		w.expect(t, spec.PhaseRunning, "")
		w.change(func() { w.host = false })
		w.expect(t, spec.PhaseUnknown, "last seen running")
		w.change(func() { w.host = true })
		w.expect(t, spec.PhaseRunning, "")
		w.change(func() { delete(w.vmms, "demo") })
		w.expect(t, spec.PhaseFailed, "gave no report")
	})
}

func TestVcardThatLostItsDevicesGetsThemBack(t *testing.T) {
	inWorld(t, "", func(t *testing.T, w *world, _ string) {
		must(t, w.svc.Start(t.Context(), "demo"))
		w.expect(t, spec.PhaseRunning, "")
		w.change(func() { w.serving, w.host = false, false })
		w.change(func() { w.serving = true; clear(w.devices) })
		synctest.Wait()
		if len(w.devices) != 2 {
			t.Errorf("devices are %v while the host is away", w.devices)
		}
		w.change(func() { w.host = true })
		w.expect(t, spec.PhaseRunning, "2 of 2")
	})
}

func TestAgentThatDiesAtAnyStepFindsTheTruth(t *testing.T) {
	dir := t.TempDir()
	synctest.Test(t, func(t *testing.T) {
		w := newWorld()
		stop := w.open(t, dir)
		must(t, w.svc.Create(demo(spec.RestartNever)))
		must(t, w.svc.Start(t.Context(), "demo"))
		w.expect(t, spec.PhaseRunning, "")
		before, _ := w.svc.Show("demo")
		stop()

		stop = w.open(t, dir) // adopts
		w.expect(t, spec.PhaseRunning, "")
		if after, _ := w.svc.Show("demo"); after.Generation != before.Generation || after.PoolOffset != before.PoolOffset {
			t.Errorf("adopted %+v, was %+v", after, before)
		}
		stop()

		w.exit("demo", "crashed while nobody looked", false)
		stop = w.open(t, dir)
		w.expect(t, spec.PhaseFailed, "nobody looked")
		stop()

		stop = w.open(t, dir) // and a failure without restart policy stays one
		synctest.Wait()
		if st, _ := w.svc.Show("demo"); st.Desired != spec.PhaseStopped {
			t.Errorf("desired is %s after a final failure", st.Desired)
		}
		stop()
	})
}

func TestStrayVMMIsKilled(t *testing.T) {
	inWorld(t, "", func(t *testing.T, w *world, _ string) {
		w.change(func() {
			w.vmms["ghost"] = spec.VMMStatus{Instance: "ghost", Generation: newGeneration(), State: spec.VMMRunning}
		})
		synctest.Wait()
		if got := w.state("ghost"); got != spec.VMMExited {
			t.Errorf("stray vmm is %s", got)
		}
	})
}

func TestCreateRefuses(t *testing.T) {
	inWorld(t, "", func(t *testing.T, w *world, dir string) {
		if err := w.svc.Create(demo("")); !errors.Is(err, ErrExists) {
			t.Errorf("second demo: %v", err)
		}
		other := demo("")
		other.Name = "other"
		if err := w.svc.Create(other); err == nil || !strings.Contains(err.Error(), "belongs to instance demo") {
			t.Errorf("shared volume: %v", err)
		}
		other.Volumes, other.Memory = nil, 512*spec.MiB
		if err := w.svc.Create(other); err == nil || !strings.Contains(err.Error(), "memory") {
			t.Errorf("more memory than the pool: %v", err)
		}
		must(t, w.svc.Start(t.Context(), "demo"))
		w.expect(t, spec.PhaseRunning, "")
		if _, err := w.svc.Show("nobody"); !errors.Is(err, ErrNotFound) {
			t.Errorf("show nobody: %v", err)
		}
		must(t, w.svc.Stop(t.Context(), "demo", 0))
		w.expect(t, spec.PhaseStopped, "")
		must(t, os.Truncate(filepath.Join(dir, "volumes", "root.img"), 4096))
		must(t, w.svc.Start(t.Context(), "demo"))
		w.expect(t, spec.PhaseFailed, "wants 1MiB")
	})
}

func TestTornRecordIsShownAndHidesNobody(t *testing.T) {
	dir := t.TempDir()
	synctest.Test(t, func(t *testing.T) {
		w := newWorld()
		stop := w.open(t, dir)
		must(t, w.svc.Create(demo("")))
		stop()
		must(t, os.WriteFile(filepath.Join(dir, "instances", "torn.yaml"), []byte("spec: {na"), 0o600))
		stop = w.open(t, dir)
		defer stop()
		list := w.svc.List()
		if len(list) != 2 || list[1].Spec.Name != "torn" || list[1].Phase != spec.PhaseFailed {
			t.Fatalf("list is %+v", list)
		}
		if err := w.svc.Start(t.Context(), "torn"); err == nil {
			t.Error("a torn record was started")
		}
		must(t, w.svc.Delete(t.Context(), "torn"))
		must(t, w.svc.Start(t.Context(), "demo"))
		w.expect(t, spec.PhaseRunning, "")
	})
}

func TestPool(t *testing.T) {
	p := &pool{size: 10 * spec.MiB}
	for i, want := range []spec.Bytes{2 * spec.MiB, 4 * spec.MiB, 6 * spec.MiB, 8 * spec.MiB} {
		if got, err := p.take(string(rune('a'+i)), 2*spec.MiB); err != nil || got != want {
			t.Fatalf("take %d: %s, %v; want %s", i, got, err, want)
		}
	}
	if _, err := p.take("e", 2*spec.MiB); err == nil {
		t.Error("over-commit")
	}
	p.give("b")
	p.give("c")
	if err := p.claim("x", 6*spec.MiB, 4*spec.MiB); err == nil {
		t.Error("claim over d")
	}
	if err := p.claim("x", 3*spec.MiB, 2*spec.MiB); err == nil {
		t.Error("unaligned claim")
	}
	if got, err := p.take("f", 4*spec.MiB); err != nil || got != 4*spec.MiB {
		t.Errorf("take of the gap: %s, %v", got, err)
	}
}

func TestVolumeDigest(t *testing.T) {
	inWorld(t, "", func(t *testing.T, w *world, dir string) {
		must(t, os.WriteFile(filepath.Join(dir, "volumes", "v.img"), []byte(strings.Repeat("x", 1024)), 0o600))
		a, err := w.svc.VolumeDigest(spec.VolumeFile, "v", 0, 512)
		must(t, err)
		b, err := w.svc.VolumeDigest(spec.VolumeFile, "v", 512, 512)
		must(t, err)
		if string(a) != string(b) || len(a) != 32 {
			t.Errorf("digests %x and %x of the same bytes", a, b)
		}
		for _, r := range [][2]spec.Bytes{{0, 0}, {1024, 1}, {0, 1025}, {^spec.Bytes(0), 2}, {0, MaxDigest + 1}} {
			if _, err := w.svc.VolumeDigest(spec.VolumeFile, "v", r[0], r[1]); err == nil {
				t.Errorf("digest of %v was given", r)
			}
		}
		if _, err := w.svc.VolumeDigest(spec.VolumeFile, "../boot/vmlinuz", 0, 1); err == nil {
			t.Error("a path was taken as a volume")
		}
	})
}
