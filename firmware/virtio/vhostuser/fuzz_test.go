// SPDX-License-Identifier: Apache-2.0

package vhostuser_test

import (
	"bytes"
	"errors"
	"io"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/davit-dpu/davit/firmware/virtio/vhostuser"
	"github.com/davit-dpu/davit/firmware/virtio/vhostuser/vhostusertest"
	"github.com/davit-dpu/davit/firmware/virtio/virtq/virtqtest"
)

// scriptConn feeds a session from bytes. A descriptor comes with each message
// that can carry one: a memfd, or an eventfd.
type scriptConn struct {
	t      *testing.T
	script *bytes.Reader
	mem    *virtqtest.Memory
}

func (c *scriptConn) ReadMessage() (vhostuser.Message, error) {
	var hdr [vhostuser.HeaderSize]byte
	if _, err := io.ReadFull(c.script, hdr[:]); err != nil {
		return vhostuser.Message{}, io.EOF
	}
	m, size, err := vhostuser.ParseHeader(hdr)
	if err != nil {
		if m.Request != 0 || m.Flags != 0 || size != 0 {
			c.t.Error("header and error")
		}
		return vhostuser.Message{}, err
	}
	m.Payload = make([]byte, size)
	_, _ = io.ReadFull(c.script, m.Payload)
	switch m.Request {
	case vhostuser.SetMemTable:
		for range m.Payload[:min(1, size)] {
			for range min(m.Payload[0], 8) {
				if fd, err := unix.FcntlInt(uintptr(c.mem.FD()), unix.F_DUPFD_CLOEXEC, 0); err == nil {
					m.FDs = append(m.FDs, fd)
				}
			}
		}
	case vhostuser.AddMemReg, vhostuser.RemMemReg, vhostuser.SetLogBase:
		if fd, err := unix.FcntlInt(uintptr(c.mem.FD()), unix.F_DUPFD_CLOEXEC, 0); err == nil {
			m.FDs = append(m.FDs, fd)
		}
	case vhostuser.SetBackendFD:
		if fds, err := unix.Socketpair(unix.AF_UNIX, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0); err == nil {
			_ = unix.Close(fds[0])
			m.FDs = fds[1:]
		}
	case vhostuser.SetVringKick, vhostuser.SetVringCall, vhostuser.SetVringErr, vhostuser.SetLogFD:
		if fd, err := unix.Eventfd(0, unix.EFD_CLOEXEC); err == nil {
			m.FDs = []int{fd}
		}
	}
	return m, nil
}

func (c *scriptConn) PassesFDs() bool { return true }

func (c *scriptConn) WriteMessage(m vhostuser.Message) error {
	if len(m.Payload) > vhostuser.MaxPayload || m.Flags != 5 {
		c.t.Errorf("bad reply %+v", m)
	}
	return nil
}

func (c *scriptConn) Close() error { return nil }

// FuzzSession runs sessions of arbitrary messages over arbitrary memory: they
// end, orderly or with an error, and leave no descriptor behind.
func FuzzSession(f *testing.F) {
	mem, err := virtqtest.NewMemory(64 << 10)
	if err != nil {
		f.Fatal(err)
	}
	f.Cleanup(func() { _ = mem.Close() })
	d := virtqtest.New(mem, 16, virtqtest.Options{})
	var seed []byte
	high := vhostuser.MemRegion{GuestPhys: 32 << 10, UserAddr: 32 << 10, Offset: 32 << 10, Size: 32 << 10}
	for _, m := range []vhostuser.Message{
		{Request: vhostuser.GetFeatures},
		{Request: vhostuser.SetProtocolFeatures, Payload: vhostusertest.U64(0x209 | extra)},
		{Request: vhostuser.GetConfig, Payload: vhostusertest.Config(0, make([]byte, 8))},
		{Request: vhostuser.SetConfig, Payload: vhostusertest.Config(4, make([]byte, 1))},
		{Request: vhostuser.SetFeatures, Payload: vhostusertest.U64(1<<32 | 1<<30 | 1<<29 | 1<<28)},
		{Request: vhostuser.SetMemTable, Payload: vhostusertest.MemTable(vhostuser.MemRegion{Size: 64 << 10})},
		{Request: vhostuser.SetVringNum, Payload: vhostusertest.State(0, 16)},
		{Request: vhostuser.SetVringBase, Payload: vhostusertest.State(0, 0)},
		{Request: vhostuser.SetVringAddr, Payload: vhostusertest.Addr(0, d)},
		{Request: vhostuser.SetVringErr, Payload: vhostusertest.U64(0)},
		{Request: vhostuser.SetVringKick, Payload: vhostusertest.U64(0)},
		{Request: vhostuser.SetVringCall, Payload: vhostusertest.U64(0)},
		{Request: vhostuser.SetVringEnable, Payload: vhostusertest.State(0, 1)},
		{Request: vhostuser.SetMemTable, Payload: vhostusertest.MemTable(vhostuser.MemRegion{Size: 32 << 10})},
		{Request: vhostuser.SetBackendFD},
		{Request: vhostuser.SetLogFD},
		{Request: vhostuser.SetLogBase, Payload: vhostusertest.LogBase(8, 0)},
		{Request: vhostuser.SetFeatures, Payload: vhostusertest.U64(1<<32 | 1<<30 | 1<<29 | 1<<28 | 1<<26)},
		{Request: vhostuser.SetVringAddr, Payload: vhostusertest.LoggedAddr(0, d)},
		{Request: vhostuser.SetLogBase, Payload: vhostusertest.LogBase(4096, 4096)},
		{Request: vhostuser.GetMaxMemSlots},
		{Request: vhostuser.AddMemReg, Payload: vhostusertest.OneRegion(high)},
		{Request: vhostuser.RemMemReg, Payload: vhostusertest.OneRegion(vhostuser.MemRegion{Size: 32 << 10})},
		{Request: vhostuser.AddMemReg, Payload: vhostusertest.OneRegion(vhostuser.MemRegion{Size: 32 << 10})},
		{Request: vhostuser.RemMemReg, Payload: vhostusertest.OneRegion(high)},
		{Request: vhostuser.GetStatus},
		{Request: vhostuser.SetStatus, Payload: vhostusertest.U64(15)},
		{Request: vhostuser.GetVringBase, Payload: vhostusertest.State(0, 0)},
		{Request: vhostuser.SetStatus, Payload: vhostusertest.U64(0)},
		{Request: vhostuser.ResetDevice},
	} {
		m.Flags = 1
		seed = vhostuser.AppendMessage(seed, m)
		f.Add(append([]byte(nil), seed...), []byte{0, 0, 1, 0})
	}
	rings := append([]byte(nil), mem.Bytes()[4096:8192]...)
	f.Fuzz(func(t *testing.T, script, memory []byte) {
		copy(mem.Bytes()[4096:], rings)
		copy(mem.Bytes()[4096:], memory)
		before := len(openFiles())
		conn := &scriptConn{t: t, script: bytes.NewReader(script), mem: mem}
		err := vhostuser.Serve(t.Context(), conn, &echo{}, vhostuser.Options{})
		var broken *vhostuser.MessageError
		if err != nil && !errors.As(err, &broken) {
			t.Errorf("got %v", err)
		}
		if after := len(openFilesUntil(before)); after != before {
			t.Errorf("%d descriptors before, %d after", before, after)
		}
	})
}
