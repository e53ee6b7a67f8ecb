// SPDX-License-Identifier: Apache-2.0

package vhostusertest

import (
	"encoding/binary"
	"errors"
	"fmt"
	"net"
	"os"

	"golang.org/x/sys/unix"

	"github.com/davit-dpu/davit/firmware/virtio"
	"github.com/davit-dpu/davit/firmware/virtio/vhostuser"
	"github.com/davit-dpu/davit/firmware/virtio/virtq/virtqtest"
)

const (
	version   = 1
	needReply = 1 << 3
)

// FrontEnd is one connection to a back end. It is used by one goroutine.
type FrontEnd struct {
	conn  *net.UnixConn
	reply *vhostuser.SocketConn
	// Features and Protocol are what the back end offers, after Negotiate.
	Features virtio.Features
	Protocol uint64
	// Extra are protocol features for Negotiate to accept beyond MQ, REPLY_ACK
	// and CONFIG.
	Extra uint64
}

// New takes over a connected socket.
func New(conn *net.UnixConn) *FrontEnd {
	return &FrontEnd{conn: conn, reply: vhostuser.NewSocketConn(conn)}
}

// Pair returns a front end and the connection for vhostuser.Serve.
func Pair() (*FrontEnd, *vhostuser.SocketConn, error) {
	fds, err := unix.Socketpair(unix.AF_UNIX, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return nil, nil, fmt.Errorf("make socket pair: %w", err)
	}
	a, errA := fileConn(fds[0])
	b, errB := fileConn(fds[1])
	if err := errors.Join(errA, errB); err != nil {
		return nil, nil, err
	}
	return New(a), vhostuser.NewSocketConn(b), nil
}

func fileConn(fd int) (*net.UnixConn, error) {
	f := os.NewFile(uintptr(fd), "vhost-user")
	c, err := net.FileConn(f)
	if err = errors.Join(err, f.Close()); err != nil {
		return nil, fmt.Errorf("open socket: %w", err)
	}
	return c.(*net.UnixConn), nil
}

// Close ends the connection.
func (f *FrontEnd) Close() error { return f.conn.Close() }

// Send writes one message with file descriptors, which stay the caller's.
func (f *FrontEnd) Send(m vhostuser.Message) error {
	var oob []byte
	if len(m.FDs) > 0 {
		oob = unix.UnixRights(m.FDs...)
	}
	if _, _, err := f.conn.WriteMsgUnix(vhostuser.AppendMessage(nil, m), oob, nil); err != nil {
		return fmt.Errorf("send request %d: %w", m.Request, err)
	}
	return nil
}

// SendRaw writes bytes as they are.
func (f *FrontEnd) SendRaw(b []byte) error {
	_, err := f.conn.Write(b)
	return err
}

// Call sends a request and returns the payload of its reply.
func (f *FrontEnd) Call(r vhostuser.Request, payload []byte) ([]byte, error) {
	if err := f.Send(vhostuser.Message{Request: r, Flags: version, Payload: payload}); err != nil {
		return nil, err
	}
	return f.readReply(r)
}

func (f *FrontEnd) readReply(r vhostuser.Request) ([]byte, error) {
	m, err := f.reply.ReadMessage()
	if err != nil {
		return nil, err
	}
	if m.Request != r || m.Flags != version|1<<2 {
		return nil, fmt.Errorf("reply %d with flags %#x to request %d", m.Request, m.Flags, r)
	}
	return m.Payload, nil
}

// Do sends a request that asks for an acknowledgement and waits for it.
func (f *FrontEnd) Do(r vhostuser.Request, payload []byte, fds ...int) error {
	if err := f.Send(vhostuser.Message{Request: r, Flags: version | needReply, Payload: payload, FDs: fds}); err != nil {
		return err
	}
	p, err := f.readReply(r)
	if err != nil {
		return err
	}
	if len(p) != 8 || binary.LittleEndian.Uint64(p) != 0 {
		return fmt.Errorf("request %d was refused: % x", r, p)
	}
	return nil
}

// GetU64 sends a request whose reply is one number.
func (f *FrontEnd) GetU64(r vhostuser.Request) (uint64, error) {
	p, err := f.Call(r, nil)
	if err != nil {
		return 0, err
	}
	if len(p) != 8 {
		return 0, fmt.Errorf("reply of %d bytes to request %d", len(p), r)
	}
	return binary.LittleEndian.Uint64(p), nil
}

// protocolFeatures are those that every FrontEnd accepts.
const protocolFeatures = vhostuser.ProtocolMQ | vhostuser.ProtocolReplyAck | vhostuser.ProtocolConfig

// Negotiate accepts the protocol features offered that it knows, those in Extra
// among them, and of the features those in want, which must be offered, and
// PROTOCOL_FEATURES.
func (f *FrontEnd) Negotiate(want virtio.Features) error {
	offered, err := f.GetU64(vhostuser.GetFeatures)
	if err != nil {
		return err
	}
	f.Features = virtio.Features(offered)
	if !f.Features.Has(want | vhostuser.FeatureProtocolFeatures) {
		return fmt.Errorf("features %#x, want %#x", offered, uint64(want))
	}
	if f.Protocol, err = f.GetU64(vhostuser.GetProtocolFeatures); err != nil {
		return err
	}
	if err := f.Send(vhostuser.Message{Request: vhostuser.SetProtocolFeatures, Flags: version, Payload: U64(f.Protocol & (protocolFeatures | f.Extra))}); err != nil {
		return err
	}
	if err := f.Send(vhostuser.Message{Request: vhostuser.SetOwner, Flags: version}); err != nil {
		return err
	}
	return f.Do(vhostuser.SetFeatures, U64(uint64(want|vhostuser.FeatureProtocolFeatures)))
}

// SetMemory shares a guest's memory: one region at 0, user addresses the same.
func (f *FrontEnd) SetMemory(mem *virtqtest.Memory) error {
	return f.Do(vhostuser.SetMemTable, MemTable(vhostuser.MemRegion{Size: uint64(len(mem.Bytes()))}), mem.FD())
}

// NewInflight has the back end make an in-flight region for queues of size
// descriptors each. The file is the caller's.
func (f *FrontEnd) NewInflight(queues, size int) (*os.File, []byte, error) {
	if err := f.Send(vhostuser.Message{Request: vhostuser.GetInflightFD, Flags: version, Payload: Inflight(0, queues, size)}); err != nil {
		return nil, nil, err
	}
	m, err := f.reply.ReadMessage()
	if err != nil {
		return nil, nil, err
	}
	if m.Request != vhostuser.GetInflightFD || len(m.FDs) != 1 || len(m.Payload) != 24 {
		return nil, nil, fmt.Errorf("reply %d of %d bytes with %d descriptors to GET_INFLIGHT_FD", m.Request, len(m.Payload), len(m.FDs))
	}
	return os.NewFile(uintptr(m.FDs[0]), "inflight"), m.Payload, nil
}

// SetInflight hands a region back, as NewInflight described it.
func (f *FrontEnd) SetInflight(file *os.File, description []byte) error {
	fd := dup(file)
	defer func() { _ = unix.Close(fd) }()
	return f.Do(vhostuser.SetInflightFD, description, fd)
}

// Inflight is the payload that describes an in-flight region, padded as QEMU's.
func Inflight(size uint64, queues, queueSize int) []byte {
	b := binary.LittleEndian.AppendUint64(U64(size), 0)
	b = binary.LittleEndian.AppendUint16(b, uint16(queues))
	b = binary.LittleEndian.AppendUint16(b, uint16(queueSize))
	return append(b, 0, 0, 0, 0)
}

// AddRegion adds a region of a guest's memory, whose addresses are offsets in its
// file.
func (f *FrontEnd) AddRegion(mem *virtqtest.Memory, off, size uint64) error {
	return f.Do(vhostuser.AddMemReg, OneRegion(vhostuser.MemRegion{GuestPhys: off, UserAddr: off, Size: size, Offset: off}), mem.FD())
}

// RemoveRegion takes a region away that AddRegion added.
func (f *FrontEnd) RemoveRegion(off, size uint64) error {
	return f.Do(vhostuser.RemMemReg, OneRegion(vhostuser.MemRegion{GuestPhys: off, UserAddr: off, Size: size}))
}

// OpenBackend sets up the back end's channel and returns this end of it, on which
// the back end's requests come.
func (f *FrontEnd) OpenBackend() (*vhostuser.SocketConn, error) {
	fds, err := unix.Socketpair(unix.AF_UNIX, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return nil, fmt.Errorf("make socket pair: %w", err)
	}
	err = f.Do(vhostuser.SetBackendFD, nil, fds[1])
	if err = errors.Join(err, unix.Close(fds[1])); err != nil {
		return nil, errors.Join(err, unix.Close(fds[0]))
	}
	c, err := fileConn(fds[0])
	if err != nil {
		return nil, err
	}
	return vhostuser.NewSocketConn(c), nil
}

// ReadConfig reads n bytes of the configuration space.
func (f *FrontEnd) ReadConfig(off, n uint32) ([]byte, error) {
	p, err := f.Call(vhostuser.GetConfig, Config(off, make([]byte, n)))
	if err != nil {
		return nil, err
	}
	if len(p) != 12+int(n) {
		return nil, fmt.Errorf("configuration reply of %d bytes", len(p))
	}
	return p[12:], nil
}

// U64 is the payload of a request with one number.
func U64(v uint64) []byte { return binary.LittleEndian.AppendUint64(nil, v) }

// State is the payload of a vring state.
func State(queue, num int) []byte {
	b := binary.LittleEndian.AppendUint32(nil, uint32(queue))
	return binary.LittleEndian.AppendUint32(b, uint32(num))
}

// MemTable is the payload of a memory table.
func MemTable(regions ...vhostuser.MemRegion) []byte {
	b := U64(uint64(len(regions)))
	for _, r := range regions {
		b = appendRegion(b, r)
	}
	return b
}

// OneRegion is the payload of a single memory region.
func OneRegion(r vhostuser.MemRegion) []byte { return appendRegion(U64(0), r) }

func appendRegion(b []byte, r vhostuser.MemRegion) []byte {
	for _, v := range []uint64{r.GuestPhys, r.Size, r.UserAddr, r.Offset} {
		b = binary.LittleEndian.AppendUint64(b, v)
	}
	return b
}

// Config is the payload of an access to the configuration space.
func Config(off uint32, data []byte) []byte {
	b := binary.LittleEndian.AppendUint32(nil, off)
	b = binary.LittleEndian.AppendUint32(b, uint32(len(data)))
	return append(append(b, 0, 0, 0, 0), data...)
}
