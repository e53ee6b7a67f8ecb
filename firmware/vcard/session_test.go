// SPDX-License-Identifier: Apache-2.0

package vcard

import (
	"errors"
	"net"
	"path/filepath"
	"strings"
	"testing"

	"github.com/davit-dpu/davit/firmware/control"
	"github.com/davit-dpu/davit/firmware/spec"
	"github.com/davit-dpu/davit/firmware/vcard/vcardtest"
	"github.com/davit-dpu/davit/firmware/virtio"
	"github.com/davit-dpu/davit/firmware/virtio/vhostuser/vhostusertest"
	"github.com/davit-dpu/davit/firmware/virtio/virtq/virtqtest"
)

// addLocal adds web/root with a socket of its own. unlisten gives up the test's
// copies of it.
func addLocal(t *testing.T, r *vcardtest.Rig, c *control.Client) (sock string, unlisten func()) {
	t.Helper()
	sock = filepath.Join(t.TempDir(), "disk.sock")
	ln, err := net.ListenUnix("unix", &net.UnixAddr{Name: sock, Net: "unix"})
	if err != nil {
		t.Fatal(err)
	}
	file, err := ln.File()
	if err != nil {
		t.Fatal(err)
	}
	unlisten = func() { _, _ = file.Close(), ln.Close() }
	t.Cleanup(unlisten)
	add := control.AddDevice{Instance: "web", Name: "root", Queues: 1, Listen: true}
	if err := c.AddDevice(r.Context(), add, control.DeviceFiles{Volume: r.Volume(1 << 20), Listener: file}); err != nil {
		t.Fatal(err)
	}
	return sock, unlisten
}

// dialLocal connects a front end that has everything but queues.
func dialLocal(t *testing.T, sock string, mem *virtqtest.Memory) *vhostusertest.FrontEnd {
	t.Helper()
	conn, err := net.DialUnix("unix", nil, &net.UnixAddr{Name: sock, Net: "unix"})
	if err != nil {
		t.Fatal(err)
	}
	f := vhostusertest.New(conn)
	if err := errors.Join(f.Negotiate(virtio.FeatureVersion1|virtio.FeatureIndirectDesc|virtio.FeatureEventIdx), f.SetMemory(mem)); err != nil {
		t.Fatal(err)
	}
	return f
}

// TestSuccessor: a local device has a second front end, whose queues run when the
// first one's are stopped. Its status says what it waits for.
func TestSuccessor(t *testing.T) {
	t.Parallel()
	path, _, _ := startCard(t)
	r := vcardtest.NewRig(t)
	c := r.Connect(path, nil)
	sock, _ := addLocal(t, r, c)
	mem, err := virtqtest.NewMemory(1 << 20)
	if err != nil {
		t.Fatal(err)
	}
	defer mem.Close()
	until := func(phase spec.Phase, reason string) {
		t.Helper()
		r.Until(c, reason, func(st *control.Status) bool {
			for _, d := range st.Devices {
				if d.Name == "root" && d.Condition.Phase == phase && strings.Contains(d.Condition.Reason, reason) {
					return true
				}
			}
			return false
		})
	}
	d := vcardtest.NewDisk(mem, 16, 8, 4096)
	run := func(f *vhostusertest.FrontEnd) *vhostusertest.Queue {
		t.Helper()
		q, err := f.StartQueue(0, d.Driver, d.Driver.UsedIdx())
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { _ = q.Close() })
		return q
	}
	write := func(q *vhostusertest.Queue, b byte) {
		t.Helper()
		d.Kick, d.Wait = func() { _ = q.Kick() }, q.Wait
		if err := d.Write(0, block(b)); err != nil {
			t.Fatal(err)
		}
	}
	old := dialLocal(t, sock, mem)
	first := run(old)
	write(first, 1)
	until(spec.PhaseReady, "runs 1 of 1 queues")
	next := dialLocal(t, sock, mem)
	run(next)
	until(spec.PhaseReady, "its successor waits")
	write(first, 2)
	if err := next.Close(); err != nil { // the guest stays where it is
		t.Fatal(err)
	}
	r.Until(c, "alone again", func(st *control.Status) bool { return !strings.Contains(st.Devices[0].Condition.Reason, "successor") })
	write(first, 3)
	next = dialLocal(t, sock, mem)
	second := run(next)
	until(spec.PhaseReady, "its successor waits")
	if err := old.Close(); err != nil {
		t.Fatal(err)
	}
	until(spec.PhaseReady, "runs 1 of 1 queues")
	write(second, 4)
	if err := c.RemoveDevice(r.Context(), "web", "root"); err != nil {
		t.Fatal(err)
	}
	_ = next.Close()
}
