// SPDX-License-Identifier: Apache-2.0

package vcard

import (
	"bytes"
	"context"
	"errors"
	"log/slog"
	"os"
	"path/filepath"
	"sync"
	"testing"

	"github.com/davit-dpu/davit/firmware/control"
	"github.com/davit-dpu/davit/firmware/spec"
	"github.com/davit-dpu/davit/firmware/vcard/vcardtest"
)

const (
	gen1 = "00000000000000000000000000000001"
	gen2 = "00000000000000000000000000000002"

	memOffset = 64 << 20 // of the first instance in the pool
	memSize   = 64 << 20
)

// lockedBuffer collects a log.
type lockedBuffer struct {
	mu sync.Mutex
	b  bytes.Buffer // guarded by mu
}

func (l *lockedBuffer) Write(p []byte) (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.b.Write(p)
}

func (l *lockedBuffer) String() string {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.b.String()
}

// startCard runs a Card in this process and returns its socket, its log and
// what stops it.
func startCard(t *testing.T) (path string, log *lockedBuffer, stop func() error) {
	t.Helper()
	_, path, log, stop = runCard(t)
	return path, log, stop
}

// runCard is startCard for tests that look inside.
func runCard(t *testing.T) (card *Card, path string, log *lockedBuffer, stop func() error) {
	t.Helper()
	path = filepath.Join(t.TempDir(), "vcard.sock")
	f, err := control.Bind(path)
	if err != nil {
		t.Fatal(err)
	}
	fd, err := dup(f)
	_ = f.Close()
	if err != nil {
		t.Fatal(err)
	}
	ln, err := control.Listen(uintptr(fd))
	if err != nil {
		t.Fatal(err)
	}
	log = &lockedBuffer{}
	card = New(Config{Build: "test", Log: slog.New(slog.NewTextHandler(log, &slog.HandlerOptions{Level: slog.LevelDebug}))})
	ctx, cancel := context.WithCancel(context.Background())
	ended := make(chan error, 1)
	go func() { ended <- card.Run(ctx, ln) }()
	stop = sync.OnceValue(func() error {
		cancel()
		return <-ended
	})
	t.Cleanup(func() {
		if err := stop(); err != nil {
			t.Errorf("Run: %v", err)
		}
		if t.Failed() {
			t.Logf("log of the card:\n%s", log)
		}
	})
	return card, path, log, stop
}

func addRoot(t *testing.T, r *vcardtest.Rig, c *control.Client, vol *os.File) {
	t.Helper()
	again := r.Reopen(vol) // a description of its own: the lock goes with the last descriptor
	defer again.Close()
	err := c.AddDevice(r.Context(), control.AddDevice{
		Instance: "web", Name: "root", Serial: "ROOT", Queues: 2, MemoryOffset: memOffset, MemorySize: memSize,
	}, control.DeviceFiles{Volume: again})
	if err != nil {
		t.Fatal(err)
	}
}

// newDisk lays a guest's driver out in the instance's memory.
func newDisk(r *vcardtest.Rig) *vcardtest.Disk {
	r.Pool.Free(memOffset + 4096)
	return vcardtest.NewDisk(r.Pool, 64, 16, 4096)
}

// boot connects a guest with a device.
func boot(t *testing.T, r *vcardtest.Rig, d *vcardtest.Disk) *vcardtest.Front {
	t.Helper()
	f, err := r.Front("web", gen1, "root")
	if err != nil {
		t.Fatal(err)
	}
	if err := f.Open(memOffset, memSize, d.Driver); err != nil {
		t.Fatal(err)
	}
	d.Attach(f)
	return f
}

func block(seed byte) []byte {
	b := make([]byte, 4096)
	for i := range b {
		b[i] = seed ^ byte(i) ^ byte(i>>8)
	}
	return b
}

func deviceOf(st *control.Status, name string) *control.Device {
	for i := range st.Devices {
		if st.Devices[i].Name == name {
			return &st.Devices[i]
		}
	}
	return nil
}

func phaseOf(st *control.Status, name string) spec.Phase {
	if d := deviceOf(st, name); d != nil {
		return d.Phase
	}
	return ""
}

func TestDiskOverTheBus(t *testing.T) {
	t.Parallel()
	path, _, _ := startCard(t)
	r := vcardtest.NewRig(t)
	c := r.Connect(path, nil)
	vol := r.Volume(1 << 20)
	addRoot(t, r, c, vol)
	d := newDisk(r)
	f := boot(t, r, d)
	for i := range byte(20) {
		if err := d.Write(uint64(i)*8, block(i)); err != nil {
			t.Fatal(err)
		}
	}
	if err := d.Flush(); err != nil {
		t.Fatal(err)
	}
	for i := range byte(20) {
		got, err := d.Read(uint64(i) * 8)
		if err != nil || !bytes.Equal(got, block(i)) {
			t.Fatalf("block %d: %v, equal %v", i, err, bytes.Equal(got, block(i)))
		}
	}
	onDisk := make([]byte, 4096)
	if _, err := vol.ReadAt(onDisk, 5*4096); err != nil || !bytes.Equal(onDisk, block(5)) {
		t.Errorf("block 5 in the volume: %v, equal %v", err, bytes.Equal(onDisk, block(5)))
	}
	st := r.Until(c, "ready", func(st *control.Status) bool { return phaseOf(st, "root") == spec.PhaseReady })
	dev := deviceOf(st, "root")
	q := dev.Queues[0]
	if dev.Capacity != 1<<20 || q.Writes != 20 || q.Reads != 20 || q.Flushes != 1 || q.WriteBytes != 20*4096 {
		t.Errorf("status %+v", dev)
	}
	_ = f.Close()
	r.Until(c, "the front end is gone", func(st *control.Status) bool { return phaseOf(st, "root") == spec.PhasePending })
	boot(t, r, d)
	if got, err := d.Read(8); err != nil || !bytes.Equal(got, block(1)) {
		t.Errorf("after a reconnect: %v, equal %v", err, bytes.Equal(got, block(1)))
	}
}

// TestNewFrontEndReplacesTheOld: a host that reconnects before it noticed the
// end of its old channel is served.
func TestNewFrontEndReplacesTheOld(t *testing.T) {
	t.Parallel()
	path, _, _ := startCard(t)
	r := vcardtest.NewRig(t)
	c := r.Connect(path, nil)
	addRoot(t, r, c, r.Volume(1<<20))
	d := newDisk(r)
	old := boot(t, r, d)
	boot(t, r, d)
	if err := d.Write(0, block(1)); err != nil {
		t.Fatal(err)
	}
	_ = old.Ended()
	r.Until(c, "ready", func(st *control.Status) bool { return phaseOf(st, "root") == spec.PhaseReady })
}

func TestRemoveDrains(t *testing.T) {
	t.Parallel()
	path, _, _ := startCard(t)
	r := vcardtest.NewRig(t)
	var mu sync.Mutex
	var last spec.Condition
	c := r.Connect(path, func(e control.Event) {
		if e.Device != nil {
			mu.Lock()
			last = e.Device.Condition
			mu.Unlock()
		}
	})
	vol := r.Volume(1 << 20)
	addRoot(t, r, c, vol)
	if err := c.AddDevice(r.Context(), control.AddDevice{Instance: "web", Name: "root", Queues: 1, MemoryOffset: memOffset, MemorySize: memSize}, control.DeviceFiles{Volume: r.Reopen(vol)}); !errors.Is(err, control.ErrExists) {
		t.Errorf("added twice: %v", err)
	}
	d := newDisk(r)
	f := boot(t, r, d)
	for i := range byte(16) {
		if err := d.SubmitWrite(uint64(i)*8, block(i)); err != nil {
			t.Fatal(err)
		}
	}
	// Limits hold up no removal.
	limits := &spec.Limits{IOPS: 1, Burst: spec.MinBurst}
	if err := c.LimitDevice(r.Context(), "web", "root", limits); err != nil {
		t.Fatal(err)
	}
	if st, err := c.Status(r.Context()); err != nil || !spec.SameLimits(st.Devices[0].Limits, limits) {
		t.Errorf("status %+v, %v", st, err)
	}
	if err := c.LimitDevice(r.Context(), "web", "nonesuch", nil); !errors.Is(err, control.ErrNotFound) {
		t.Errorf("limits of a device that is not there: %v", err)
	}
	if err := c.RemoveDevice(r.Context(), "web", "root"); err != nil {
		t.Fatal(err)
	}
	_ = f.Ended()
	if n := d.Driver.UsedIdx(); n > 16 {
		t.Errorf("used index %d", n)
	}
	// What is used is in the volume; nothing is written later.
	got := make([]byte, 4096)
	for i := range byte(d.Driver.UsedIdx()) {
		if _, err := vol.ReadAt(got, int64(i)*4096); err != nil || !bytes.Equal(got, block(i)) {
			t.Errorf("block %d: %v, equal %v", i, err, bytes.Equal(got, block(i)))
		}
	}
	if st, err := c.Status(r.Context()); err != nil || len(st.Devices) != 0 {
		t.Errorf("devices after the removal: %+v, %v", st, err)
	}
	if err := c.RemoveDevice(r.Context(), "web", "root"); !errors.Is(err, control.ErrNotFound) {
		t.Errorf("removed twice: %v", err)
	}
	if _, err := r.Front("web", gen1, "root"); err == nil {
		t.Error("a front end got a removed device")
	}
	mu.Lock()
	defer mu.Unlock()
	if last.Phase != spec.PhaseStopped || last.Reason != "removed" {
		t.Errorf("last event %+v", last)
	}
	// The volume's lock is gone with it.
	addRoot(t, r, c, r.Reopen(vol))
}

func TestMemoryRanges(t *testing.T) {
	t.Parallel()
	path, _, _ := startCard(t)
	r := vcardtest.NewRig(t)
	c := r.Connect(path, nil)
	addRoot(t, r, c, r.Volume(1<<20))
	const mib = 1 << 20
	for _, tt := range []struct {
		name, instance string
		offset, size   spec.Bytes
		want           error
	}{
		{"the reserved head of the pool", "db", 0, 2 * mib, control.ErrInvalid},
		{"behind the pool", "db", vcardtest.PoolSize, 2 * mib, control.ErrInvalid},
		{"over the end of the pool", "db", vcardtest.PoolSize - 2*mib, 4 * mib, control.ErrInvalid},
		{"another's memory", "db", memOffset + memSize - 2*mib, 4 * mib, control.ErrConflict},
		{"other memory of the same instance", "web", memOffset, 2 * mib, control.ErrConflict},
		{"memory before it", "db", memOffset - 2*mib, 2 * mib, nil},
	} {
		err := c.AddDevice(r.Context(), control.AddDevice{Instance: tt.instance, Name: "data", Queues: 1, MemoryOffset: tt.offset, MemorySize: tt.size}, control.DeviceFiles{Volume: r.Volume(mib)})
		if !errors.Is(err, tt.want) {
			t.Errorf("%s: got %v, want %v", tt.name, err, tt.want)
		}
	}
}

func TestAttachOnce(t *testing.T) {
	t.Parallel()
	path, _, _ := startCard(t)
	r := vcardtest.NewRig(t)
	c := r.Connect(path, nil)
	if err := r.Attach(c); !errors.Is(err, control.ErrExists) {
		t.Errorf("second bus: %v, want ErrExists", err)
	}
	pool, err := r.PoolFile()
	if err != nil {
		t.Fatal(err)
	}
	defer pool.Close()
	long := control.AttachBus{Listen: true, WindowBase: 2 << 20, WindowSize: 1 << 40, FileOffset: 2 << 20}
	if err := c.AttachBus(r.Context(), long, pool, pool); !errors.Is(err, control.ErrInvalid) {
		t.Errorf("window behind the end of its file: %v, want ErrInvalid", err)
	}
}
