// SPDX-License-Identifier: Apache-2.0

package vhostuser_test

import (
	"encoding/binary"
	"errors"
	"io"
	"strings"
	"testing"

	"github.com/davit-dpu/davit/firmware/virtio/guestmem"
	"github.com/davit-dpu/davit/firmware/virtio/vhostuser"
	"github.com/davit-dpu/davit/firmware/virtio/vhostuser/vhostusertest"
	"github.com/davit-dpu/davit/firmware/virtio/virtq/virtqtest"
)

// busConn is a connection without file descriptors.
type busConn struct {
	in, out chan vhostuser.Message
	closed  chan struct{}
}

func (c *busConn) ReadMessage() (vhostuser.Message, error) {
	select {
	case m := <-c.in:
		return m, nil
	case <-c.closed:
		return vhostuser.Message{}, io.EOF
	}
}

func (c *busConn) PassesFDs() bool { return false }

func (c *busConn) WriteMessage(m vhostuser.Message) error {
	select {
	case c.out <- m:
		return nil
	case <-c.closed:
		return io.ErrClosedPipe
	}
}

func (c *busConn) Close() error { return nil }

// poolPart is the part of a pool that belongs to one guest.
type poolPart struct {
	pool      []byte
	off, size uint64
}

// Map implements vhostuser.Mapper.
func (p poolPart) Map(r vhostuser.MemRegion, fd int) (guestmem.Region, error) {
	if fd != vhostuser.NoFD || r.Offset < p.off || r.Offset-p.off > p.size || r.Size > p.size-(r.Offset-p.off) {
		return guestmem.Region{}, guestmem.ErrRegion
	}
	return guestmem.NewRegion(r.GuestPhys, r.UserAddr, p.pool[r.Offset:][:r.Size], nil)
}

// busRig is a guest whose memory is a part of a pool, behind a bus.
type busRig struct {
	t      *testing.T
	conn   *busConn
	bells  *vhostuser.Doorbells
	calls  virtqtest.Bell
	result chan error
}

func newBusRig(t *testing.T, mem *virtqtest.Memory, off, size uint64) *busRig {
	r := &busRig{t: t, calls: virtqtest.NewBell(), result: make(chan error, 1)}
	r.conn = &busConn{in: make(chan vhostuser.Message), out: make(chan vhostuser.Message), closed: make(chan struct{})}
	r.bells = vhostuser.NewDoorbells(2, func(int) { r.calls.Signal() })
	opts := vhostuser.Options{Mapper: poolPart{mem.Bytes(), off, size}, Notifiers: r.bells}
	go func() { r.result <- vhostuser.Serve(t.Context(), r.conn, &echo{}, opts) }()
	return r
}

// do sends a request and returns its acknowledgement.
func (r *busRig) do(request vhostuser.Request, payload []byte) uint64 {
	r.conn.in <- vhostuser.Message{Request: request, Flags: 1 | 1<<3, Payload: payload}
	m := <-r.conn.out
	if m.Request != request || len(m.Payload) != 8 {
		r.t.Fatalf("request %d: got %+v", request, m)
	}
	return binary.LittleEndian.Uint64(m.Payload)
}

// negotiate brings the session to where acknowledgements come.
func (r *busRig) negotiate() {
	r.conn.in <- vhostuser.Message{Request: vhostuser.SetProtocolFeatures, Flags: 1, Payload: vhostusertest.U64(vhostuser.ProtocolReplyAck)}
	if r.do(vhostuser.SetFeatures, vhostusertest.U64(uint64(ringFeatures|vhostuser.FeatureProtocolFeatures))) != 0 {
		r.t.Fatal("features were refused")
	}
}

func TestBus(t *testing.T) {
	t.Parallel()
	mem, err := virtqtest.NewMemory(1 << 20)
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = mem.Close() }()
	const off = 1 << 19 // the guest's memory is the pool's second half
	mem.Free(off + 4096)
	d := virtqtest.New(mem, 16, virtqtest.Options{EventIdx: true})
	r := newBusRig(t, mem, off, off)
	r.negotiate()
	table := vhostusertest.MemTable(vhostuser.MemRegion{GuestPhys: off, UserAddr: off, Size: off, Offset: off})
	for _, s := range []struct {
		request vhostuser.Request
		payload []byte
	}{
		{vhostuser.SetMemTable, table},
		{vhostuser.SetVringNum, vhostusertest.State(1, 16)},
		{vhostuser.SetVringAddr, vhostusertest.Addr(1, d)},
		{vhostuser.SetVringCall, vhostusertest.U64(1)},
		{vhostuser.SetVringKick, vhostusertest.U64(1)},
		{vhostuser.SetVringEnable, vhostusertest.State(1, 1)},
	} {
		if code := r.do(s.request, s.payload); code != 0 {
			t.Fatalf("request %d was refused", s.request)
		}
	}
	for i := range 100 {
		out, in := mem.Alloc(8), mem.Alloc(8)
		binary.LittleEndian.PutUint64(out.Bytes, uint64(i)<<20)
		if _, err := d.Add([]virtqtest.Buf{out}, []virtqtest.Buf{in}); err != nil {
			t.Fatal(err)
		}
		if d.Publish() {
			if err := r.bells.Ring(1); err != nil {
				t.Fatal(err)
			}
		}
		for {
			if _, _, ok := d.Collect(); ok {
				break
			}
			if !d.Arm() {
				_ = r.calls.Wait()
			}
		}
		if got := binary.LittleEndian.Uint64(in.Bytes); got != uint64(i)<<20 {
			t.Fatalf("got %#x", got)
		}
	}
	if err := r.bells.Ring(2); err == nil {
		t.Error("a doorbell that does not exist rang")
	}
	if err := r.bells.Ring(0); err != nil {
		t.Errorf("a queue that is not started: %v", err)
	}
	close(r.conn.closed)
	if err := <-r.result; err != nil {
		t.Error(err)
	}
}

// Regions outside of the instance's part of the pool are refused.
func TestBusWindow(t *testing.T) {
	t.Parallel()
	mem, err := virtqtest.NewMemory(1 << 20)
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = mem.Close() }()
	const off, size = 1 << 18, 1 << 18
	for _, region := range []vhostuser.MemRegion{
		{Size: 4096},
		{Size: 4096, Offset: off - 4096},
		{Size: 8192, Offset: off + size - 4096},
		{Size: size + 4096, Offset: off},
		{Size: ^uint64(4095), Offset: off},
		{Size: 4096, Offset: ^uint64(4095)},
		{Size: 4096, Offset: off + 8},
	} {
		r := newBusRig(t, mem, off, size)
		r.negotiate()
		if r.do(vhostuser.SetMemTable, vhostusertest.MemTable(region)) == 0 {
			t.Errorf("%+v was accepted", region)
		}
		if err := <-r.result; !errors.Is(err, guestmem.ErrRegion) {
			t.Errorf("%+v: got %v", region, err)
		}
	}
}

func TestDoorbellsRefuseDescriptors(t *testing.T) {
	t.Parallel()
	d := vhostuser.NewDoorbells(1, func(int) {})
	if _, err := d.OpenKick(1, vhostuser.NoFD); err == nil || !strings.Contains(err.Error(), "1 of 1") {
		t.Errorf("got %v", err)
	}
}
