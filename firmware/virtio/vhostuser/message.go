// SPDX-License-Identifier: Apache-2.0

package vhostuser

import (
	"encoding/binary"
	"fmt"

	"github.com/davit-dpu/davit/firmware/virtio"
	"github.com/davit-dpu/davit/firmware/virtio/guestmem"
)

// Request is the type of a message (vhost-user, "Front-end message types").
type Request uint32

// The requests that this back end understands.
const (
	GetFeatures         Request = 1
	SetFeatures         Request = 2
	SetOwner            Request = 3
	ResetOwner          Request = 4
	SetMemTable         Request = 5
	SetLogBase          Request = 6
	SetLogFD            Request = 7
	SetVringNum         Request = 8
	SetVringAddr        Request = 9
	SetVringBase        Request = 10
	GetVringBase        Request = 11
	SetVringKick        Request = 12
	SetVringCall        Request = 13
	SetVringErr         Request = 14
	GetProtocolFeatures Request = 15
	SetProtocolFeatures Request = 16
	GetQueueNum         Request = 17
	SetVringEnable      Request = 18
	SetBackendFD        Request = 21 // SET_BACKEND_REQ_FD
	GetConfig           Request = 24
	SetConfig           Request = 25
	GetInflightFD       Request = 31
	SetInflightFD       Request = 32
	ResetDevice         Request = 34
	GetMaxMemSlots      Request = 36
	AddMemReg           Request = 37
	RemMemReg           Request = 38
	SetStatus           Request = 39
	GetStatus           Request = 40
)

// BackendConfigChange is the request that this back end sends on its own channel
// (vhost-user, "Back-end message types": CONFIG_CHANGE_MSG).
const BackendConfigChange Request = 2

// FeatureProtocolFeatures is the feature bit that announces the protocol features.
const FeatureProtocolFeatures virtio.Features = 1 << 30

// FeatureLogAll is the feature bit that has writes to guest memory logged
// (VHOST_F_LOG_ALL). Front ends set and clear it while rings run.
const FeatureLogAll virtio.Features = 1 << 26

// Protocol feature bits.
const (
	ProtocolMQ       uint64 = 1 << 0
	ProtocolLog      uint64 = 1 << 1 // LOG_SHMFD
	ProtocolReplyAck uint64 = 1 << 3
	ProtocolBackend  uint64 = 1 << 5 // BACKEND_REQ
	ProtocolConfig   uint64 = 1 << 9
	ProtocolInflight uint64 = 1 << 12
	ProtocolReset    uint64 = 1 << 13 // RESET_DEVICE
	ProtocolMemSlots uint64 = 1 << 15 // CONFIGURE_MEM_SLOTS
	ProtocolStatus   uint64 = 1 << 16
)

// Message flags.
const (
	flagVersion     uint32 = 1
	flagVersionMask uint32 = 3
	flagReply       uint32 = 1 << 2
	flagNeedReply   uint32 = 1 << 3
)

// Limits of messages. They bound what a Conn has to accept.
const (
	// HeaderSize is the size of a message without its payload in bytes.
	HeaderSize = 12
	// MaxPayload is the longest payload in bytes.
	MaxPayload = 1024
	// MaxFDs is the largest number of file descriptors with a message.
	MaxFDs = 8
	// MaxRegions is the largest number of regions in a memory table.
	MaxRegions = 8
	// MaxMemSlots is the largest number of regions that were added one by one.
	MaxMemSlots = guestmem.MaxRegions
)

const (
	regionSize    = 32
	configHdrSize = 12
	vringIdxMask  = 0xff
	vringNoFD     = 1 << 8
	vringLog      = 1 << 0 // flag of an address: the used ring is logged
)

// Message is one vhost-user message. Numbers are in the machine's byte order,
// which is little-endian.
type Message struct {
	Request Request
	Flags   uint32
	Payload []byte
	// FDs are file descriptors sent along, owned by the receiver. Empty on a
	// bus, which has none.
	FDs []int
}

// MessageError says how a front end broke the vhost-user protocol.
type MessageError struct {
	Request Request
	Reason  string
	Err     error // cause or nil
}

// Error names the request and what was wrong with it.
func (e *MessageError) Error() string {
	s := fmt.Sprintf("vhost-user request %d: %s", e.Request, e.Reason)
	if e.Err != nil {
		s += ": " + e.Err.Error()
	}
	return s
}

// Unwrap returns the cause.
func (e *MessageError) Unwrap() error { return e.Err }

// ParseHeader checks a message's first HeaderSize bytes and returns the message
// without its payload, and the payload's size, at most MaxPayload.
func ParseHeader(b [HeaderSize]byte) (Message, int, error) {
	m := Message{
		Request: Request(binary.LittleEndian.Uint32(b[0:])),
		Flags:   binary.LittleEndian.Uint32(b[4:]),
	}
	size := binary.LittleEndian.Uint32(b[8:])
	if size > MaxPayload {
		return Message{}, 0, &MessageError{Request: m.Request, Reason: fmt.Sprintf("payload of %d bytes, at most %d", size, MaxPayload)}
	}
	return m, int(size), nil
}

// AppendMessage appends header and payload of m to b.
func AppendMessage(b []byte, m Message) []byte {
	b = binary.LittleEndian.AppendUint32(b, uint32(m.Request))
	b = binary.LittleEndian.AppendUint32(b, m.Flags)
	b = binary.LittleEndian.AppendUint32(b, uint32(len(m.Payload)))
	return append(b, m.Payload...)
}

// checkRequest refuses what is no request of version 1.
func (m Message) checkRequest() error {
	switch {
	case m.Flags&flagVersionMask != flagVersion:
		return m.errorf("version %d", m.Flags&flagVersionMask)
	case m.Flags&flagReply != 0:
		return m.errorf("is a reply")
	case m.Flags&^(flagVersionMask|flagNeedReply) != 0:
		return m.errorf("unknown flags %#x", m.Flags)
	}
	return nil
}

func (m Message) errorf(format string, args ...any) error {
	return &MessageError{Request: m.Request, Reason: fmt.Sprintf(format, args...)}
}

func (m Message) wrap(reason string, err error) error {
	return &MessageError{Request: m.Request, Reason: reason, Err: err}
}

// u64 is the payload of requests with one number.
func (m Message) u64() (uint64, error) {
	if len(m.Payload) != 8 {
		return 0, m.errorf("payload of %d bytes, want 8", len(m.Payload))
	}
	return binary.LittleEndian.Uint64(m.Payload), nil
}

// vringState is a "vring state description".
type vringState struct{ index, num uint32 }

func (m Message) vringState() (vringState, error) {
	if len(m.Payload) != 8 {
		return vringState{}, m.errorf("payload of %d bytes, want 8", len(m.Payload))
	}
	return vringState{
		index: binary.LittleEndian.Uint32(m.Payload),
		num:   binary.LittleEndian.Uint32(m.Payload[4:]),
	}, nil
}

// vringAddr is a "vring address description". log is the guest-physical address of
// the used ring, the others are user addresses.
type vringAddr struct {
	index, flags           uint32
	desc, used, avail, log uint64
}

// withoutLog is what must not change while the ring is started.
func (a vringAddr) withoutLog() vringAddr {
	a.flags, a.log = a.flags&^vringLog, 0
	return a
}

func (m Message) vringAddr() (vringAddr, error) {
	if len(m.Payload) != 40 {
		return vringAddr{}, m.errorf("payload of %d bytes, want 40", len(m.Payload))
	}
	return vringAddr{
		index: binary.LittleEndian.Uint32(m.Payload),
		flags: binary.LittleEndian.Uint32(m.Payload[4:]),
		desc:  binary.LittleEndian.Uint64(m.Payload[8:]),
		used:  binary.LittleEndian.Uint64(m.Payload[16:]),
		avail: binary.LittleEndian.Uint64(m.Payload[24:]),
		log:   binary.LittleEndian.Uint64(m.Payload[32:]),
	}, nil
}

// logBase parses a "log description".
func (m Message) logBase() (size, offset uint64, err error) {
	if len(m.Payload) != 16 {
		return 0, 0, m.errorf("payload of %d bytes, want 16", len(m.Payload))
	}
	return binary.LittleEndian.Uint64(m.Payload), binary.LittleEndian.Uint64(m.Payload[8:]), nil
}

// MemRegion is one entry of a memory table.
type MemRegion struct {
	GuestPhys, Size, UserAddr uint64
	// Offset is where the region begins in the file that backs it (mmap
	// offset), or in the DMA window on a bus.
	Offset uint64
}

// memTable parses a "memory regions description". Front ends send the used
// entries or the whole structure.
func (m Message) memTable() ([]MemRegion, error) {
	p := m.Payload
	if len(p) < 8 || len(p) > 8+MaxRegions*regionSize {
		return nil, m.errorf("payload of %d bytes", len(p))
	}
	n := binary.LittleEndian.Uint32(p)
	if n > MaxRegions || len(p) < 8+int(n)*regionSize {
		return nil, m.errorf("%d regions in %d bytes, at most %d", n, len(p), MaxRegions)
	}
	regions := make([]MemRegion, n)
	for i := range regions {
		regions[i] = parseRegion([regionSize]byte(p[8+i*regionSize:]))
	}
	return regions, nil
}

// memRegion parses a "single memory region description", which follows 8 bytes of
// padding.
func (m Message) memRegion() (MemRegion, error) {
	if len(m.Payload) != 8+regionSize {
		return MemRegion{}, m.errorf("payload of %d bytes, want %d", len(m.Payload), 8+regionSize)
	}
	return parseRegion([regionSize]byte(m.Payload[8:])), nil
}

func parseRegion(e [regionSize]byte) MemRegion {
	return MemRegion{
		GuestPhys: binary.LittleEndian.Uint64(e[0:]),
		Size:      binary.LittleEndian.Uint64(e[8:]),
		UserAddr:  binary.LittleEndian.Uint64(e[16:]),
		Offset:    binary.LittleEndian.Uint64(e[24:]),
	}
}

// configAccess is a "virtio device config space" description.
type configAccess struct {
	offset, size, flags uint32
	data                []byte
}

func (m Message) configAccess() (configAccess, error) {
	p := m.Payload
	if len(p) < configHdrSize {
		return configAccess{}, m.errorf("payload of %d bytes", len(p))
	}
	c := configAccess{
		offset: binary.LittleEndian.Uint32(p),
		size:   binary.LittleEndian.Uint32(p[4:]),
		flags:  binary.LittleEndian.Uint32(p[8:]),
		data:   p[configHdrSize:],
	}
	if c.size == 0 || c.size > virtio.MaxConfigSize || int(c.size) != len(c.data) {
		return configAccess{}, m.errorf("%d configuration bytes in a payload of %d", c.size, len(p))
	}
	return c, nil
}
