// SPDX-License-Identifier: Apache-2.0

package vhostuser_test

import (
	"encoding/binary"
	"errors"
	"strings"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/davit-dpu/davit/firmware/virtio/vhostuser"
	"github.com/davit-dpu/davit/firmware/virtio/vhostuser/vhostusertest"
	"github.com/davit-dpu/davit/firmware/virtio/virtq/virtqtest"
)

// Each message that breaks the protocol ends the session with a reason, a
// negative acknowledgement before it, and without leaking a descriptor (see TestMain).
func TestBadMessages(t *testing.T) {
	t.Parallel()
	state, u64, table := vhostusertest.State, vhostusertest.U64, vhostusertest.MemTable
	one, logBase := vhostusertest.OneRegion, vhostusertest.LogBase
	region := vhostuser.MemRegion{Size: 1 << 20}
	addr := func(index, flags int) []byte {
		return append(state(index, flags), make([]byte, 32)...)
	}
	tests := []struct {
		name    string
		request vhostuser.Request
		payload []byte
		fds     int // number of memory descriptors to send
		want    string
	}{
		{"unknown request", 99, nil, 0, "not supported"},
		{"inflight of no queues", vhostuser.GetInflightFD, make([]byte, 20), 0, "0 queues of 2"},
		{"inflight without a file", vhostuser.SetInflightFD, vhostusertest.Inflight(4096, 1, 16), 0, "0 file descriptors"},
		{"features not offered", vhostuser.SetFeatures, u64(1 << 33), 0, "not offered"},
		{"features short", vhostuser.SetFeatures, u64(1)[:7], 0, "7 bytes"},
		{"protocol features", vhostuser.SetProtocolFeatures, u64(1 << 2), 0, "not offered"},
		{"owner with payload", vhostuser.SetOwner, u64(0), 0, "want none"},
		{"descriptor where none belongs", vhostuser.SetOwner, nil, 1, "unexpected file"},
		{"table short", vhostuser.SetMemTable, u64(1), 1, "1 regions in 8"},
		{"table empty payload", vhostuser.SetMemTable, nil, 0, "0 bytes"},
		{"table of 9", vhostuser.SetMemTable, table(make([]vhostuser.MemRegion, 9)...), 0, "payload"},
		{"table count overflow", vhostuser.SetMemTable, u64(1<<32 - 1), 0, "regions"},
		{"table without descriptor", vhostuser.SetMemTable, table(region), 0, "descriptor is missing"},
		{"table with two descriptors", vhostuser.SetMemTable, table(region), 2, "2 file descriptors for 1"},
		{"region larger than file", vhostuser.SetMemTable, table(vhostuser.MemRegion{Size: 2 << 20}), 1, "file has"},
		{"region offset overflow", vhostuser.SetMemTable, table(vhostuser.MemRegion{Size: 4096, Offset: ^uint64(4095)}), 1, "file range"},
		{"region huge", vhostuser.SetMemTable, table(vhostuser.MemRegion{Size: 1 << 62}), 1, "file has"},
		{"region empty", vhostuser.SetMemTable, table(vhostuser.MemRegion{}), 1, "size"},
		{"region size", vhostuser.SetMemTable, table(vhostuser.MemRegion{Size: 4095}), 1, "size"},
		{"region not aligned", vhostuser.SetMemTable, table(vhostuser.MemRegion{Size: 4096, GuestPhys: 1}), 1, "aligned"},
		{"region address overflow", vhostuser.SetMemTable, table(vhostuser.MemRegion{Size: 8192, GuestPhys: ^uint64(4095)}), 1, "overflow"},
		{"regions overlap", vhostuser.SetMemTable, table(region, vhostuser.MemRegion{Size: 4096, GuestPhys: 4096, UserAddr: 1 << 30}), 2, "overlap"},
		{"user addresses overlap", vhostuser.SetMemTable, table(region, vhostuser.MemRegion{Size: 4096, GuestPhys: 1 << 30}), 2, "overlap"},
		{"slots with payload", vhostuser.GetMaxMemSlots, u64(0), 0, "want none"},
		{"added region short", vhostuser.AddMemReg, one(region)[:32], 1, "payload of 32"},
		{"added region long", vhostuser.AddMemReg, append(one(region), 0), 1, "payload of 41"},
		{"added region without descriptor", vhostuser.AddMemReg, one(region), 0, "descriptor is missing"},
		{"added region with two descriptors", vhostuser.AddMemReg, one(region), 2, "2 file descriptors for 1"},
		{"added region larger than file", vhostuser.AddMemReg, one(vhostuser.MemRegion{Size: 2 << 20}), 1, "file has"},
		{"added region empty", vhostuser.AddMemReg, one(vhostuser.MemRegion{}), 1, "size"},
		{"removed region short", vhostuser.RemMemReg, nil, 0, "payload of 0"},
		{"removed region of no memory", vhostuser.RemMemReg, one(region), 0, "no memory"},
		{"removed region with two descriptors", vhostuser.RemMemReg, one(region), 2, "2 file descriptors"},
		{"back-end channel with payload", vhostuser.SetBackendFD, u64(0), 1, "want none"},
		{"back-end channel without descriptor", vhostuser.SetBackendFD, nil, 0, "0 file descriptors"},
		{"back-end channel with two", vhostuser.SetBackendFD, nil, 2, "2 file descriptors"},
		{"back-end channel that is a file", vhostuser.SetBackendFD, nil, 1, "not a socket"},
		{"reset with payload", vhostuser.ResetDevice, u64(0), 0, "want none"},
		{"status short", vhostuser.SetStatus, []byte{1}, 0, "payload of 1"},
		{"status with unknown bits", vhostuser.SetStatus, u64(1 << 5), 0, "unknown bits"},
		{"status of 64 bits", vhostuser.SetStatus, u64(1 << 40), 0, "unknown bits"},
		{"status with payload", vhostuser.GetStatus, u64(0), 0, "want none"},
		{"log short", vhostuser.SetLogBase, u64(8), 1, "payload of 8"},
		{"log without descriptor", vhostuser.SetLogBase, logBase(8, 0), 0, "0 file descriptors"},
		{"log with two", vhostuser.SetLogBase, logBase(8, 0), 2, "2 file descriptors"},
		{"log empty", vhostuser.SetLogBase, logBase(0, 0), 1, "size 0x0"},
		{"log of half a word", vhostuser.SetLogBase, logBase(12, 0), 1, "size 0xc"},
		{"log huge", vhostuser.SetLogBase, logBase(1<<40, 0), 1, "size 0x10000000000"},
		{"log larger than file", vhostuser.SetLogBase, logBase(2<<20, 0), 1, "file has"},
		{"log offset overflow", vhostuser.SetLogBase, logBase(4096, ^uint64(4095)), 1, "file range"},
		{"log offset not aligned", vhostuser.SetLogBase, logBase(8, 8), 1, "file range"},
		{"log event with payload", vhostuser.SetLogFD, u64(0), 1, "want none"},
		{"log event without descriptor", vhostuser.SetLogFD, nil, 0, "0 file descriptors"},
		{"log event that is a file", vhostuser.SetLogFD, nil, 1, "no eventfd"},
		{"size of no queue", vhostuser.SetVringNum, state(2, 16), 0, "queue 2 of 2"},
		{"size 0", vhostuser.SetVringNum, state(0, 0), 0, "power of two"},
		{"size 3", vhostuser.SetVringNum, state(0, 3), 0, "power of two"},
		{"size 2048", vhostuser.SetVringNum, state(0, 2048), 0, "power of two"},
		{"size 2^31", vhostuser.SetVringNum, state(0, 1<<31), 0, "power of two"},
		{"base too large", vhostuser.SetVringBase, state(0, 0x10000), 0, "16 bits"},
		{"base of no queue", vhostuser.GetVringBase, state(1<<30, 0), 0, "queue"},
		{"address short", vhostuser.SetVringAddr, state(0, 0), 0, "want 40"},
		{"address with unknown flag", vhostuser.SetVringAddr, addr(0, 2), 0, "flags"},
		{"address of no queue", vhostuser.SetVringAddr, addr(7, 0), 0, "queue 7"},
		{"kick before set-up", vhostuser.SetVringKick, u64(0), 1, "open kick"},
		{"kick without descriptor", vhostuser.SetVringKick, u64(0), 0, "missing"},
		{"kick with two", vhostuser.SetVringKick, u64(0), 2, "2 file descriptors"},
		{"kick by polling", vhostuser.SetVringKick, u64(1 << 8), 0, "polling"},
		{"kick with and without", vhostuser.SetVringKick, u64(1 << 8), 1, "1 file descriptors"},
		{"kick bits", vhostuser.SetVringKick, u64(1 << 9), 0, "unknown bits"},
		{"kick of no queue", vhostuser.SetVringKick, u64(2), 1, "queue 2"},
		{"call that is a file", vhostuser.SetVringCall, u64(0), 1, "no eventfd"},
		{"error that is a file", vhostuser.SetVringErr, u64(0), 1, "no eventfd"},
		{"enable 2", vhostuser.SetVringEnable, state(0, 2), 0, "enable 2"},
		{"config short", vhostuser.GetConfig, make([]byte, 11), 0, "11 bytes"},
		{"config sizes differ", vhostuser.GetConfig, vhostusertest.Config(0, make([]byte, 8))[:16], 0, "payload of 16"},
		{"config too long", vhostuser.SetConfig, vhostusertest.Config(0, make([]byte, 257)), 0, "257"},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			t.Parallel()
			s := open(t)
			s.front.Extra = extra
			s.must(s.front.Negotiate(ringFeatures))
			var fds []int
			for range tt.fds {
				fds = append(fds, s.mem.FD())
			}
			if err := s.front.Do(tt.request, tt.payload, fds...); err == nil {
				t.Error("accepted")
			}
			var broken *vhostuser.MessageError
			err := <-s.result
			if !errors.As(err, &broken) || broken.Request != tt.request || !strings.Contains(err.Error(), tt.want) {
				t.Errorf("got %v, want a reason with %q", err, tt.want)
			}
		})
	}
}

// extra are the protocol features that have messages to send wrongly.
const extra = vhostuser.ProtocolInflight | vhostuser.ProtocolMemSlots | vhostuser.ProtocolBackend | vhostuser.ProtocolStatus | vhostuser.ProtocolReset |
	vhostuser.ProtocolLog

// Order matters: rings start when everything is there, and don't change then.
func TestBadOrder(t *testing.T) {
	t.Parallel()
	ring := func(s *session) *virtqtest.Driver {
		return virtqtest.New(s.mem, 16, virtqtest.Options{})
	}
	kick := func(s *session) error {
		fd, err := unix.Eventfd(0, unix.EFD_NONBLOCK|unix.EFD_CLOEXEC)
		s.must(err)
		defer func() { _ = unix.Close(fd) }()
		return s.front.Do(vhostuser.SetVringKick, vhostusertest.U64(0), fd)
	}
	tests := []struct {
		name string
		do   func(s *session) error
		want string
	}{
		{"kick before memory", func(s *session) error {
			s.must(s.front.Do(vhostuser.SetVringNum, vhostusertest.State(0, 16)))
			s.must(s.front.Do(vhostuser.SetVringAddr, vhostusertest.Addr(0, ring(s))))
			return kick(s)
		}, "before its memory"},
		{"kick before size", func(s *session) error {
			s.must(s.front.SetMemory(s.mem))
			s.must(s.front.Do(vhostuser.SetVringAddr, vhostusertest.Addr(0, ring(s))))
			return kick(s)
		}, "before its memory"},
		{"kick before address", func(s *session) error {
			s.must(s.front.SetMemory(s.mem))
			s.must(s.front.Do(vhostuser.SetVringNum, vhostusertest.State(0, 16)))
			return kick(s)
		}, "before its memory"},
		{"size while started", func(s *session) error {
			s.must(s.front.SetMemory(s.mem))
			s.start(0)
			return s.front.Do(vhostuser.SetVringNum, vhostusertest.State(0, 8))
		}, "is started"},
		{"base while started", func(s *session) error {
			s.must(s.front.SetMemory(s.mem))
			s.start(0)
			return s.front.Do(vhostuser.SetVringBase, vhostusertest.State(0, 8))
		}, "is started"},
		{"address while started", func(s *session) error {
			s.must(s.front.SetMemory(s.mem))
			s.start(0)
			return s.front.Do(vhostuser.SetVringAddr, vhostusertest.Addr(0, ring(s)))
		}, "is started"},
		{"region that overlaps", func(s *session) error {
			s.must(s.front.AddRegion(s.mem, 0, 8192))
			return s.front.AddRegion(s.mem, 4096, 8192)
		}, "overlap"},
		{"region of another size", func(s *session) error {
			s.must(s.front.AddRegion(s.mem, 0, 8192))
			return s.front.RemoveRegion(0, 4096)
		}, "no region at"},
		{"region removed twice", func(s *session) error {
			s.must(s.front.AddRegion(s.mem, 0, 8192))
			s.must(s.front.RemoveRegion(0, 8192))
			return s.front.RemoveRegion(0, 8192)
		}, "no region at"},
		{"one region more than slots", func(s *session) error {
			for i := range uint64(vhostuser.MaxMemSlots) {
				at := vhostuser.MemRegion{GuestPhys: i << 12, UserAddr: i << 12, Size: 4096}
				s.must(s.front.Do(vhostuser.AddMemReg, vhostusertest.OneRegion(at), s.mem.FD()))
			}
			at := vhostuser.MemRegion{GuestPhys: 1 << 30, UserAddr: 1 << 30, Size: 4096}
			return s.front.Do(vhostuser.AddMemReg, vhostusertest.OneRegion(at), s.mem.FD())
		}, "513 regions"},
		{"features while started", func(s *session) error {
			s.must(s.front.SetMemory(s.mem))
			s.start(0)
			return s.front.Do(vhostuser.SetFeatures, vhostusertest.U64(1<<32|1<<30))
		}, "while ring 0 is started"},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			t.Parallel()
			s := open(t)
			s.front.Extra = extra
			s.must(s.front.Negotiate(ringFeatures))
			if err := tt.do(s); err == nil {
				t.Error("accepted")
			}
			if err := <-s.result; err == nil || !strings.Contains(err.Error(), tt.want) {
				t.Errorf("got %v, want a reason with %q", err, tt.want)
			}
		})
	}
}

// A message of a protocol feature that was not negotiated ends the session.
func TestNotNegotiated(t *testing.T) {
	t.Parallel()
	for _, request := range []vhostuser.Request{
		vhostuser.GetMaxMemSlots, vhostuser.AddMemReg, vhostuser.RemMemReg, vhostuser.SetBackendFD,
		vhostuser.SetLogBase, vhostuser.SetLogFD, vhostuser.ResetDevice, vhostuser.SetStatus, vhostuser.GetStatus,
	} {
		s := open(t)
		s.must(s.front.Negotiate(ringFeatures))
		if err := s.front.Do(request, nil); err == nil {
			t.Errorf("request %d was accepted", request)
		}
		if err := <-s.result; err == nil || !strings.Contains(err.Error(), "not negotiated") {
			t.Errorf("request %d: got %v", request, err)
		}
	}
}

// Ring addresses are the driver's: bad ones stop the device, not the session.
func TestBadRingAddress(t *testing.T) {
	t.Parallel()
	s := open(t)
	s.attach()
	s.must(s.front.Do(vhostuser.SetVringNum, vhostusertest.State(0, 16)))
	payload := vhostusertest.Addr(0, virtqtest.New(s.mem, 16, virtqtest.Options{}))
	binary.LittleEndian.PutUint64(payload[16:], 1<<40) // used ring
	s.must(s.front.Do(vhostuser.SetVringAddr, payload))
	fd, err := unix.Eventfd(0, unix.EFD_NONBLOCK|unix.EFD_CLOEXEC)
	s.must(err)
	defer func() { _ = unix.Close(fd) }()
	s.must(s.front.Do(vhostuser.SetVringKick, vhostusertest.U64(0), fd))
	s.must(s.front.Do(vhostuser.SetVringEnable, vhostusertest.State(0, 1)))
	for st := range s.status {
		if st.Stopped != nil {
			break
		}
	}
	_, err = s.front.StopQueue(0)
	s.must(err)
	s.must(s.end())
}

// Bytes that are no messages end the session.
func TestBadFraming(t *testing.T) {
	t.Parallel()
	header := func(request, flags, size uint32) []byte {
		b := binary.LittleEndian.AppendUint32(nil, request)
		b = binary.LittleEndian.AppendUint32(b, flags)
		return binary.LittleEndian.AppendUint32(b, size)
	}
	for _, tt := range []struct {
		name string
		raw  []byte
		want string
	}{
		{"half a header", header(1, 1, 0)[:5], "unexpected EOF"},
		{"half a payload", append(header(2, 1, 8), 1, 2, 3), "unexpected EOF"},
		{"payload of 4 GiB", header(2, 1, 1<<32-1), "at most"},
		{"version 0", header(1, 0, 0), "version 0"},
		{"version 2", header(1, 2, 0), "version 2"},
		{"reply", header(1, 5, 0), "is a reply"},
		{"flags", header(1, 0x81, 0), "unknown flags"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			t.Parallel()
			s := open(t)
			s.must(s.front.SendRaw(tt.raw))
			if err := s.end(); err == nil || !strings.Contains(err.Error(), tt.want) {
				t.Errorf("got %v, want a reason with %q", err, tt.want)
			}
		})
	}
}

// More descriptors than a message may carry are all closed.
func TestTooManyDescriptors(t *testing.T) {
	t.Parallel()
	s := open(t)
	fds := make([]int, 60)
	for i := range fds {
		fds[i] = s.mem.FD()
	}
	s.must(s.front.Send(vhostuser.Message{Request: vhostuser.SetOwner, Flags: 1, FDs: fds}))
	if err := <-s.result; err == nil || !strings.Contains(err.Error(), "file descriptors") {
		t.Errorf("got %v", err)
	}
}

// A kick that cannot be read without the risk of blocking ends the ring, not
// the process. An inotify descriptor has no file type either.
func TestKickIsNoEventFD(t *testing.T) {
	t.Parallel()
	s := open(t)
	s.attach()
	fd, err := unix.InotifyInit1(unix.IN_CLOEXEC)
	s.must(err)
	d := virtqtest.New(s.mem, 16, virtqtest.Options{})
	s.must(s.front.Do(vhostuser.SetVringNum, vhostusertest.State(0, 16)))
	s.must(s.front.Do(vhostuser.SetVringAddr, vhostusertest.Addr(0, d)))
	s.must(s.front.Do(vhostuser.SetVringKick, vhostusertest.U64(0), fd))
	s.must(s.front.Do(vhostuser.SetVringEnable, vhostusertest.State(0, 1)))
	s.must(unix.Close(fd))
	for st := range s.status {
		if st.Stopped != nil {
			break
		}
	}
	s.must(s.end())
}
