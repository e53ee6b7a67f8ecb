// SPDX-License-Identifier: Apache-2.0

package vcard

import (
	"context"
	"errors"
	"fmt"
	"math"
	"strings"
	"testing"

	"github.com/davit-dpu/davit/firmware/bus"
	"github.com/davit-dpu/davit/firmware/control"
	"github.com/davit-dpu/davit/firmware/spec"
	"github.com/davit-dpu/davit/firmware/vcard/vcardtest"
	"github.com/davit-dpu/davit/firmware/virtio/vhostuser"
	"github.com/davit-dpu/davit/firmware/virtio/vhostuser/vhostusertest"
	"github.com/davit-dpu/davit/firmware/virtio/virtq/virtqtest"
)

// bystander is a second instance whose disk must not notice what happens to
// the first one's.
func bystander(t *testing.T, r *vcardtest.Rig, c *control.Client) func() {
	t.Helper()
	const offset, size = 2 << 20, 16 << 20
	vol := r.Volume(1 << 20)
	err := c.AddDevice(r.Context(), control.AddDevice{Instance: "db", Name: "data", Queues: 1, MemoryOffset: offset, MemorySize: size}, control.DeviceFiles{Volume: vol})
	if err != nil {
		t.Fatal(err)
	}
	r.Pool.Free(offset + 4096)
	d := vcardtest.NewDisk(r.Pool, 16, 8, 4096)
	f, err := r.Front("db", gen1, "data")
	if err == nil {
		err = f.Open(offset, size, d.Driver)
	}
	if err != nil {
		t.Fatal(err)
	}
	d.Attach(f)
	return func() {
		t.Helper()
		if err := d.Write(0, block(9)); err != nil {
			t.Errorf("the bystander's disk: %v", err)
		}
	}
}

// TestFrontEndsThatBreakRules: each ends its own session with a reason, and
// nothing else.
func TestFrontEndsThatBreakRules(t *testing.T) {
	t.Parallel()
	path, _, _ := startCard(t)
	r := vcardtest.NewRig(t)
	c := r.Connect(path, nil)
	addRoot(t, r, c, r.Volume(1<<20))
	check := bystander(t, r, c)
	table := func(offset, size uint64) []byte {
		return vhostusertest.MemTable(vhostuser.MemRegion{GuestPhys: 0, UserAddr: 0, Size: size, Offset: offset})
	}
	send := func(req vhostuser.Request, payload []byte) func(*vcardtest.Front) error {
		return func(f *vcardtest.Front) error {
			if err := f.Negotiate(); err != nil {
				return err
			}
			return f.Send(req, 0, payload)
		}
	}
	record := func(b []byte) func(*vcardtest.Front) error {
		return func(f *vcardtest.Front) error { return f.Channel().WriteRecord(context.Background(), b) }
	}
	tests := map[string]struct {
		do   func(*vcardtest.Front) error
		want string
	}{
		"another instance's memory":  {send(vhostuser.SetMemTable, table(2<<20, 4096)), "not inside the instance's memory"},
		"one page too much":          {send(vhostuser.SetMemTable, table(memOffset, memSize+4096)), "not inside the instance's memory"},
		"one page before":            {send(vhostuser.SetMemTable, table(memOffset-4096, 8192)), "not inside the instance's memory"},
		"an offset that wraps":       {send(vhostuser.SetMemTable, table(math.MaxUint64-4095, 8192)), "not inside the instance's memory"},
		"a size that wraps":          {send(vhostuser.SetMemTable, table(memOffset, math.MaxUint64-4095)), "not inside the instance's memory"},
		"the pool's reserved head":   {send(vhostuser.SetMemTable, table(0, 4096)), "not inside the instance's memory"},
		"an unknown request":         {send(9999, nil), "not supported"},
		"a queue that is not there":  {send(vhostuser.SetVringNum, vhostusertest.State(2, 64)), "queue 2 of 2"},
		"a record that is too short": {record([]byte{1, 2, 3}), "record of 3 bytes"},
		"two messages in a record":   {record(append(vhostuser.AppendMessage(nil, vhostuser.Message{Request: 1, Flags: 1}), 0)), "record of 13 bytes"},
		"a message longer than said": {record([]byte{1, 0, 0, 0, 1, 0, 0, 0, 8, 0, 0, 0}), "record of 12 bytes"},
		"a record longer than any": {func(f *vcardtest.Front) error {
			_ = record(make([]byte, bus.MaxRecord))(f) // the card may refuse it before all of it is sent
			return nil
		}, "more than"},
		"a doorbell of no queue": {func(f *vcardtest.Front) error { f.Kick(17); return nil }, "doorbell of queue 17"},
	}
	for name, tt := range tests {
		before, err := c.Status(r.Context())
		if err != nil {
			t.Fatal(err)
		}
		f, err := r.Front("web", gen1, "root")
		if err != nil {
			t.Fatalf("%s: %v", name, err)
		}
		if err := tt.do(f); err != nil {
			t.Fatalf("%s: %v", name, err)
		}
		_ = f.Ended()
		st := r.Until(c, name+" is reported", func(st *control.Status) bool {
			return phaseOf(st, "root") == spec.PhaseFailed && st.Host.Alerts > before.Host.Alerts
		})
		if d := deviceOf(st, "root"); !strings.Contains(d.Reason, tt.want) {
			t.Errorf("%s: reason %q, want %q in it", name, d.Reason, tt.want)
		}
		check()
	}
	d := newDisk(r)
	boot(t, r, d)
	if err := d.Write(0, block(1)); err != nil {
		t.Errorf("a good front end afterwards: %v", err)
	}
}

// TestGuestBreaksVirtio: the device stops and says why; a reset by the driver
// starts it again.
func TestGuestBreaksVirtio(t *testing.T) {
	t.Parallel()
	path, _, _ := startCard(t)
	r := vcardtest.NewRig(t)
	c := r.Connect(path, nil)
	addRoot(t, r, c, r.Volume(1<<20))
	check := bystander(t, r, c)
	d := newDisk(r)
	f := boot(t, r, d)
	d.Driver.SetDesc(0, virtqtest.Desc{Addr: 2 << 20, Len: 4096, Flags: virtqtest.FlagNext, Next: 0}) // db's memory, and a loop
	d.Driver.SetAvail(0, 0)
	d.Driver.SetAvailIdx(1)
	f.Kick(0)
	st := r.Until(c, "the device has stopped", func(st *control.Status) bool { return phaseOf(st, "root") == spec.PhaseFailed })
	if got := deviceOf(st, "root").Reason; !strings.Contains(got, "virtio protocol") || st.Host.Alerts == 0 {
		t.Errorf("reason %q, %d alerts", got, st.Host.Alerts)
	}
	check()
	_ = f.Close()
	d = newDisk(r)
	clear(r.Pool.Bytes()[memOffset : memOffset+(1<<20)])
	boot(t, r, d)
	if err := d.Write(0, block(1)); err != nil {
		t.Errorf("after the guest's restart: %v", err)
	}
}

func TestUnknownDevicesAreRefused(t *testing.T) {
	t.Parallel()
	path, log, _ := startCard(t)
	r := vcardtest.NewRig(t)
	c := r.Connect(path, nil)
	addRoot(t, r, c, r.Volume(1<<20))
	for range 300 {
		var refused *bus.RefusedError
		if _, err := r.Front("web", gen1, "other"); !errors.As(err, &refused) {
			t.Fatalf("got %v, want a refusal", err)
		}
	}
	if n := strings.Count(log.String(), "\n"); n > 50 {
		t.Errorf("%d log lines for 300 refusals", n)
	}
}

// TestHostCannotFloodTheLog: every violation counts, few are logged.
func TestHostCannotFloodTheLog(t *testing.T) {
	t.Parallel()
	path, log, _ := startCard(t)
	r := vcardtest.NewRig(t)
	c := r.Connect(path, nil)
	addRoot(t, r, c, r.Volume(1<<20))
	const tries = 200
	for range tries {
		f, err := r.Front("web", gen1, "root")
		if err != nil {
			t.Fatal(err)
		}
		if err := f.Channel().WriteRecord(r.Context(), []byte("x")); err != nil {
			t.Fatal(err)
		}
		_ = f.Ended()
	}
	r.Until(c, "all are counted", func(st *control.Status) bool { return st.Host.Alerts == tries })
	// Two limited sources, of 20 lines and one a second each, and the card's own.
	if n := strings.Count(log.String(), "\n"); n > 120 {
		t.Errorf("%d log lines for %d violations", n, tries)
	}
}

// TestHostReportsNonsense: invented VMMs are bounded, lies about instances do
// not hide what runs.
func TestHostReportsNonsense(t *testing.T) {
	t.Parallel()
	path, _, _ := startCard(t)
	r := vcardtest.NewRig(t)
	c := r.Connect(path, nil)
	addRoot(t, r, c, r.Volume(1<<20))
	startWeb(t, r, c)
	r.Host.Report(spec.VMMStatus{Instance: "web", Generation: gen2, State: spec.VMMExited, Reason: "lie", Clean: true})
	for i := range 2 * control.MaxVMMs {
		r.Host.Report(spec.VMMStatus{Instance: fmt.Sprintf("ghost%d", i), Generation: gen2, State: spec.VMMExited, Clean: true})
	}
	for i := range maxRunning + control.MaxVMMs {
		r.Host.Report(spec.VMMStatus{Instance: fmt.Sprintf("run%d", i), Generation: gen2, State: spec.VMMRunning})
	}
	st := r.Until(c, "the last is refused", func(st *control.Status) bool { return st.Host.Alerts >= control.MaxVMMs })
	if len(st.VMMs) > control.MaxVMMs {
		t.Errorf("%d VMMs are stored", len(st.VMMs))
	}
	if v := vmmOf(st, gen1); v == nil || v.State != spec.VMMRunning || st.Host.Sessions != 1 {
		t.Errorf("the VMM that runs: %+v, session %d", v, st.Host.Sessions)
	}
	for _, v := range st.VMMs {
		if v.Clean || v.Instance == "web" && v.Generation == gen2 {
			t.Errorf("a lie is reported: %+v", v)
		}
	}
}

// TestHostInventsVMMs: a host that makes up exits without end, while the
// controller handles no event, loses its session; the controller keeps its own.
func TestHostInventsVMMs(t *testing.T) {
	t.Parallel()
	path, _, _ := startCard(t)
	r := vcardtest.NewRig(t)
	stalled := make(chan struct{})
	defer close(stalled)
	c := r.Connect(path, func(control.Event) { <-stalled })
	for i := range 6000 { // more subjects than the controller's queue holds
		r.Host.Report(spec.VMMStatus{Instance: fmt.Sprintf("ghost%d", i), Generation: gen2, State: spec.VMMExited})
	}
	st := r.Until(c, "the host is back", func(st *control.Status) bool {
		return st.Host.Alerts > 0 && st.Host.Sessions > 1 && st.Host.Phase == spec.PhaseReady
	})
	if len(st.VMMs) > control.MaxVMMs || c.Err() != nil {
		t.Errorf("%d VMMs are stored, controller: %v", len(st.VMMs), c.Err())
	}
}

// TestClientsOpenDoors: doors that come and go are limited too, and do not cost
// the host its session.
func TestClientsOpenDoors(t *testing.T) {
	t.Parallel()
	path, _, _ := startCard(t)
	r := vcardtest.NewRig(t)
	c := r.Connect(path, nil)
	s, err := r.Host.Session(r.Context())
	if err != nil {
		t.Fatal(err)
	}
	refused := 0
	for range 2 * doorBurst {
		ch, err := s.Open(r.Context(), bus.Open{Kind: bus.KindDoor})
		if err != nil {
			refused++
			continue
		}
		_ = ch.Close()
		st, err := c.Status(r.Context())
		if err != nil {
			t.Fatal(err)
		}
		for _, id := range st.Doors {
			_ = c.Door(r.Context(), id).Close()
		}
	}
	if st, err := c.Status(r.Context()); err != nil || st.Host.Sessions != 1 || refused < doorBurst/2 {
		t.Errorf("%d of %d doors are refused, status %+v, %v", refused, 2*doorBurst, st, err)
	}
}

// TestHostileQMP: what is no QMP costs that connection.
func TestHostileQMP(t *testing.T) {
	t.Parallel()
	path, _, _ := startCard(t)
	r := vcardtest.NewRig(t)
	r.Host.Greeting = `{"event": "SHUTDOWN"}` + "\n"
	c := r.Connect(path, nil)
	addRoot(t, r, c, r.Volume(1<<20))
	check := bystander(t, r, c)
	startWeb(t, r, c)
	if err := c.StopVMM(r.Context(), "web", gen1, false); !errors.Is(err, control.ErrHost) {
		t.Errorf("powerdown without QMP: %v", err)
	}
	check()
	if err := c.StopVMM(r.Context(), "web", gen1, true); err != nil {
		t.Errorf("kill: %v", err)
	}
}

// TestHostBreaksTheBus: the session ends, the next one works.
func TestHostBreaksTheBus(t *testing.T) {
	t.Parallel()
	path, _, _ := startCard(t)
	r := vcardtest.NewRig(t)
	c := r.Connect(path, nil)
	addRoot(t, r, c, r.Volume(1<<20))
	s, err := r.Host.Session(r.Context())
	if err != nil {
		t.Fatal(err)
	}
	if err := s.Control().WriteRecord(r.Context(), []byte("not CBOR")); err != nil {
		t.Fatal(err)
	}
	r.Until(c, "a second session", func(st *control.Status) bool {
		return st.Host.Sessions == 2 && st.Host.Phase == spec.PhaseReady && st.Host.Alerts > 0
	})
	d := newDisk(r)
	boot(t, r, d)
	if err := d.Write(0, block(1)); err != nil {
		t.Fatal(err)
	}
}

func TestRangeMapper(t *testing.T) {
	t.Parallel()
	r := vcardtest.NewRig(t)
	pool, err := r.PoolFile()
	if err != nil {
		t.Fatal(err)
	}
	w, err := mapWindow(&control.AttachBus{WindowBase: 2 << 20, FileOffset: 2 << 20, WindowSize: vcardtest.PoolSize - 2<<20}, pool)
	if err != nil {
		t.Fatal(err)
	}
	defer w.close()
	m := rangeMapper{window: w, limit: memoryRange{memOffset, memSize}}
	for _, tt := range []struct {
		offset, size uint64
		fd           int
		ok           bool
	}{
		{memOffset, memSize, vhostuser.NoFD, true},
		{memOffset + memSize - 4096, 4096, vhostuser.NoFD, true},
		{memOffset, 4096, 0, false},
		{memOffset + memSize, 4096, vhostuser.NoFD, false},
		{memOffset, 0, vhostuser.NoFD, false},
		{memOffset + 1, 4096, vhostuser.NoFD, false},
		{memOffset - 4096, 4096, vhostuser.NoFD, false},
		{math.MaxUint64, math.MaxUint64, vhostuser.NoFD, false},
	} {
		region, err := m.Map(vhostuser.MemRegion{Size: tt.size, Offset: tt.offset}, tt.fd)
		if (err == nil) != tt.ok || err == nil && region.Size() != tt.size {
			t.Errorf("[%#x, +%#x) fd %d: %v, want ok %v", tt.offset, tt.size, tt.fd, err, tt.ok)
		}
	}
}

func FuzzRecord(f *testing.F) {
	f.Add([]byte{})
	f.Add(vhostuser.AppendMessage(nil, vhostuser.Message{Request: 1, Flags: 1}))
	f.Add(vhostuser.AppendMessage(nil, vhostuser.Message{Request: vhostuser.SetMemTable, Flags: 9, Payload: make([]byte, 40)}))
	f.Fuzz(func(t *testing.T, rec []byte) {
		m, err := parseRecord(rec)
		if err != nil {
			if m.Payload != nil || m.Request != 0 {
				t.Fatalf("message %+v with error %v", m, err)
			}
			return
		}
		if again := vhostuser.AppendMessage(nil, m); string(again) != string(rec) {
			t.Fatalf("% x became % x", rec, again)
		}
	})
}
