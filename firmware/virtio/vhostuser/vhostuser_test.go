// SPDX-License-Identifier: Apache-2.0

package vhostuser_test

import (
	"context"
	"errors"
	"fmt"
	"os"
	"sync"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/davit-dpu/davit/firmware/virtio"
	"github.com/davit-dpu/davit/firmware/virtio/vhostuser"
	"github.com/davit-dpu/davit/firmware/virtio/vhostuser/vhostusertest"
	"github.com/davit-dpu/davit/firmware/virtio/virtq"
	"github.com/davit-dpu/davit/firmware/virtio/virtq/virtqtest"
)

// echo is a device of two queues that copies what it can read to what it can write.
type echo struct {
	virtio.ConfigWatch
	mu     sync.Mutex
	config [16]byte // guarded by mu
	served int      // guarded by mu: queues being served
}

func (e *echo) Info() virtio.Info { return virtio.Info{Features: 1 << 3, Queues: 2} }

func (e *echo) ReadConfig(p []byte, off uint32) error {
	e.mu.Lock()
	defer e.mu.Unlock()
	if off > 16 || len(p) > 16-int(off) {
		return virtio.ErrConfig
	}
	copy(p, e.config[off:])
	return nil
}

func (e *echo) WriteConfig(p []byte, off uint32) error {
	e.mu.Lock()
	defer e.mu.Unlock()
	if off != 4 || len(p) != 1 {
		return virtio.ErrConfig
	}
	e.config[4] = p[0]
	return nil
}

func (e *echo) Serve(ctx context.Context, q virtio.Queue) error {
	e.mu.Lock()
	e.served++
	e.mu.Unlock()
	defer func() {
		e.mu.Lock()
		defer e.mu.Unlock()
		e.served--
	}()
	return q.Run(ctx, 4, func(c *virtq.Chain) (uint32, error) {
		var all []byte
		for _, b := range c.Readable {
			all = append(all, b...)
		}
		n := uint32(len(all))
		for _, b := range c.Writable {
			all = all[copy(b, all):]
		}
		return n - uint32(len(all)), nil
	})
}

// session is a front end and the Serve that it talks to.
type session struct {
	t      testing.TB
	front  *vhostusertest.FrontEnd
	device *echo
	mem    *virtqtest.Memory
	result chan error
	cancel context.CancelFunc
	status chan vhostuser.Status
}

func open(t testing.TB) *session { return openDevice(t, &echo{}) }

// openDevice is open for a device that is no echo, or an echo in disguise.
func openDevice(t testing.TB, device virtio.Device) *session {
	t.Helper()
	mem, err := virtqtest.NewMemory(1 << 20)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = mem.Close() })
	s := connect(t, vhostuser.NewServer(device), mem)
	s.device, _ = device.(*echo)
	return s
}

// connect attaches a front end to a server, for a guest with this memory.
func connect(t testing.TB, server *vhostuser.Server, mem *virtqtest.Memory) *session {
	t.Helper()
	front, conn, err := vhostusertest.Pair()
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	s := &session{
		t: t, front: front, mem: mem,
		result: make(chan error, 1), cancel: cancel, status: make(chan vhostuser.Status, 64),
	}
	opts := vhostuser.Options{Changed: func(st vhostuser.Status) { s.status <- st }}
	go func() { s.result <- server.Serve(ctx, conn, opts) }()
	t.Cleanup(func() {
		cancel()
		_ = front.Close()
	})
	return s
}

const ringFeatures = virtio.FeatureVersion1 | virtio.FeatureIndirectDesc | virtio.FeatureEventIdx

// attach negotiates and shares memory.
func (s *session) attach() {
	s.t.Helper()
	s.must(s.front.Negotiate(ringFeatures))
	s.must(s.front.SetMemory(s.mem))
}

func (s *session) start(index int) *vhostusertest.Queue {
	s.t.Helper()
	d := virtqtest.New(s.mem, 16, virtqtest.Options{Indirect: true, EventIdx: true})
	q, err := s.front.StartQueue(index, d, 0)
	s.must(err)
	s.t.Cleanup(func() { _ = q.Close() })
	return q
}

func (s *session) must(err error) {
	s.t.Helper()
	if err != nil {
		s.t.Fatal(err)
	}
}

// roundTrip sends one request through the echo device.
func (s *session) roundTrip(q *vhostusertest.Queue, text string) {
	s.t.Helper()
	out, in := s.mem.Alloc(len(text)), s.mem.Alloc(len(text))
	copy(out.Bytes, text)
	_, err := q.Add([]virtqtest.Buf{out}, []virtqtest.Buf{in})
	s.must(err)
	s.must(q.Submit())
	_, n, err := q.Next()
	s.must(err)
	if string(in.Bytes) != text || int(n) != len(text) {
		s.t.Errorf("got %q (%d bytes), want %q", in.Bytes, n, text)
	}
}

func (s *session) end() error {
	_ = s.front.Close()
	return <-s.result
}

func TestSession(t *testing.T) {
	t.Parallel()
	s := open(t)
	s.attach()
	if want := vhostuser.ProtocolMQ | vhostuser.ProtocolReplyAck | vhostuser.ProtocolConfig | extra; s.front.Protocol != want {
		t.Errorf("protocol features %#x, want %#x", s.front.Protocol, want)
	}
	if n, err := s.front.GetU64(vhostuser.GetQueueNum); n != 2 || err != nil {
		t.Errorf("queues: got %d, %v", n, err)
	}
	q0, q1 := s.start(0), s.start(1)
	for i := range 100 {
		s.roundTrip(q0, fmt.Sprint("first ", i))
		s.roundTrip(q1, fmt.Sprint("second ", i))
	}
	base, err := s.front.StopQueue(0)
	if base != 100 || err != nil {
		t.Errorf("base: got %d, %v; want 100", base, err)
	}
	s.roundTrip(q1, "the other goes on")
	if err := s.end(); err != nil {
		t.Errorf("end: %v", err)
	}
	if s.device.served != 0 {
		t.Errorf("%d queues are still served", s.device.served)
	}
}

// A disabled ring is not served, and goes on where it was when enabled again.
func TestEnable(t *testing.T) {
	t.Parallel()
	s := open(t)
	s.attach()
	q := s.start(0)
	s.roundTrip(q, "before")
	s.must(s.front.Do(vhostuser.SetVringEnable, vhostusertest.State(0, 0)))
	b := s.mem.Alloc(4)
	_, err := q.Add([]virtqtest.Buf{b}, nil)
	s.must(err)
	q.Publish()
	s.must(q.Kick())
	if got := q.UsedIdx(); got != 1 {
		t.Errorf("disabled ring: used index %d, want 1", got)
	}
	s.must(s.front.Do(vhostuser.SetVringEnable, vhostusertest.State(0, 1)))
	if _, _, err := q.Next(); err != nil {
		t.Error(err)
	}
	s.must(s.end())
}

// A new memory table takes effect under running rings, which go on.
func TestNewMemoryTable(t *testing.T) {
	t.Parallel()
	s := open(t)
	s.attach()
	q := s.start(0)
	s.roundTrip(q, "one region")
	half := uint64(len(s.mem.Bytes()) / 2)
	table := vhostusertest.MemTable(
		vhostuser.MemRegion{GuestPhys: half, Size: half, UserAddr: half, Offset: half},
		vhostuser.MemRegion{Size: half},
	)
	s.must(s.front.Do(vhostuser.SetMemTable, table, s.mem.FD(), s.mem.FD()))
	s.roundTrip(q, "two regions")
	// a buffer over their border
	out, in := s.mem.Alloc(64), s.mem.Alloc(64)
	s.mem.Free(half - 32)
	border := s.mem.Alloc(64)
	copy(border.Bytes, "a text that lies in both of the regions, at their border")
	for _, c := range [][2]virtqtest.Buf{{border, in}, {in, out}} {
		_, err := q.Add([]virtqtest.Buf{c[0]}, []virtqtest.Buf{c[1]})
		s.must(err)
		s.must(q.Submit())
		_, _, err = q.Next()
		s.must(err)
	}
	if string(out.Bytes) != string(border.Bytes) {
		t.Errorf("got %q", out.Bytes)
	}
	s.must(s.end())
}

// A driver's violation stops the device and not the session. A reset mends it.
func TestViolationStopsDevice(t *testing.T) {
	t.Parallel()
	s := open(t)
	s.attach()
	errFD, err := unix.Eventfd(0, unix.EFD_NONBLOCK|unix.EFD_CLOEXEC)
	s.must(err)
	errFile := os.NewFile(uintptr(errFD), "err")
	defer func() { _ = errFile.Close() }()
	s.must(s.front.Do(vhostuser.SetVringErr, vhostusertest.U64(0), errFD))
	q0, q1 := s.start(0), s.start(1)
	s.roundTrip(q1, "fine")
	q0.SetAvailIdx(1000)
	s.must(q0.Kick())
	for st := range s.status {
		if st.Stopped == nil {
			continue
		}
		var broken *virtq.ProtocolError
		if !errors.As(st.Stopped, &broken) || broken.Violation != virtq.ViolationAvailIdx {
			t.Errorf("stopped for %v", st.Stopped)
		}
		break
	}
	if _, err := errFile.Read(make([]byte, 8)); err != nil {
		t.Errorf("error event: %v", err)
	}
	for i := range 2 {
		_, err := s.front.StopQueue(i)
		s.must(err)
	}
	s.roundTrip(s.start(0), "after the reset")
	s.roundTrip(s.start(1), "after the reset")
	s.must(s.end())
}

func TestConfigSpace(t *testing.T) {
	t.Parallel()
	s := open(t)
	s.must(s.front.Negotiate(ringFeatures))
	s.must(s.front.Do(vhostuser.SetConfig, vhostusertest.Config(4, []byte{9})))
	got, err := s.front.ReadConfig(3, 3)
	if err != nil || got[0] != 0 || got[1] != 9 || got[2] != 0 {
		t.Errorf("got %v, %v", got, err)
	}
	if err := s.front.Do(vhostuser.SetConfig, vhostusertest.Config(5, []byte{9})); err == nil {
		t.Error("a read-only field was written")
	}
	if p, err := s.front.Call(vhostuser.GetConfig, vhostusertest.Config(10, make([]byte, 10))); err != nil || len(p) != 0 {
		t.Errorf("read behind the end: got %d bytes, %v; want an empty payload", len(p), err)
	}
	if got, err := s.front.ReadConfig(4, 1); err != nil || got[0] != 9 {
		t.Errorf("session does not go on: %v, %v", got, err)
	}
	s.must(s.end())
}

// Cancelling the context ends a session with running rings.
func TestCancel(t *testing.T) {
	t.Parallel()
	s := open(t)
	s.attach()
	s.roundTrip(s.start(0), "hello")
	s.cancel()
	if err := <-s.result; !errors.Is(err, context.Canceled) {
		t.Errorf("got %v", err)
	}
	if s.device.served != 0 {
		t.Error("queue is still served")
	}
}
