// SPDX-License-Identifier: Apache-2.0

package vhostuser

import (
	"encoding/binary"

	"github.com/davit-dpu/davit/firmware/virtio"
)

// answer is what a request gets back.
type answer struct {
	// payload is the reply, nil when the request has none of its own.
	payload []byte
	// fd goes with the reply and is closed then, if hasFD.
	fd    int
	hasFD bool
	// refused acknowledges with an error and lets the session go on.
	refused bool
}

// handle executes one message and answers it. What is left in m.FDs is closed by
// the caller. An error ends the session.
func (s *session) handle(m *Message) error {
	if err := m.checkRequest(); err != nil {
		return err
	}
	a, err := s.execute(m)
	if err == nil && a.payload != nil {
		return s.reply(m, a)
	}
	if m.Flags&flagNeedReply == 0 || s.protocol&ProtocolReplyAck == 0 {
		return err
	}
	code := uint64(0)
	if err != nil || a.refused {
		code = 1
	}
	if werr := s.reply(m, answer{payload: u64Payload(code)}); err == nil {
		err = werr
	}
	return err
}

func (s *session) reply(m *Message, a answer) error {
	out := Message{Request: m.Request, Flags: flagVersion | flagReply, Payload: a.payload}
	if a.hasFD {
		out.FDs = []int{a.fd}
		defer closeAll(out.FDs)
	}
	return s.conn.WriteMessage(out)
}

func u64Payload(v uint64) []byte { return binary.LittleEndian.AppendUint64(nil, v) }

func (s *session) execute(m *Message) (answer, error) {
	if len(m.FDs) > 0 && !takesFDs(m.Request) {
		return answer{}, m.errorf("%d unexpected file descriptors", len(m.FDs))
	}
	if need := needed[m.Request]; s.protocol&need != need {
		return answer{}, m.errorf("needs protocol feature %#x, which was not negotiated", need)
	}
	switch m.Request {
	case GetFeatures:
		return s.get(m, uint64(s.offeredFeatures()))
	case GetProtocolFeatures:
		return s.get(m, s.offered())
	case GetQueueNum:
		return s.get(m, uint64(s.info.Queues))
	case GetMaxMemSlots:
		return s.get(m, MaxMemSlots)
	case SetOwner, ResetOwner:
		// One connection is one owner; RESET_OWNER is deprecated and ignored.
		return answer{}, m.checkEmpty()
	case SetFeatures:
		return answer{}, s.setFeatures(m)
	case SetProtocolFeatures:
		return answer{}, s.setProtocolFeatures(m)
	case SetMemTable:
		return answer{}, s.setMemTable(m)
	case SetLogBase:
		return s.setLogBase(m)
	case SetLogFD:
		return answer{}, s.setLogFD(m)
	case AddMemReg:
		return answer{}, s.addMemReg(m)
	case RemMemReg:
		return answer{}, s.remMemReg(m)
	case ResetDevice:
		return answer{}, s.resetDevice(m)
	case SetStatus:
		return answer{}, s.setStatus(m)
	case GetStatus:
		return s.get(m, s.deviceStatus())
	case SetBackendFD:
		return answer{}, s.setBackendFD(m)
	case GetConfig:
		return s.getConfig(m)
	case SetConfig:
		return s.setConfig(m)
	case GetInflightFD:
		return s.getInflightFD(m)
	case SetInflightFD:
		return answer{}, s.setInflightFD(m)
	default:
		return s.executeRing(m)
	}
}

func takesFDs(r Request) bool {
	switch r {
	case SetMemTable, SetLogBase, SetLogFD, AddMemReg, RemMemReg, SetBackendFD, SetInflightFD, SetVringKick, SetVringCall, SetVringErr:
		return true
	}
	return false
}

// needed are the protocol features without which a request must not come.
var needed = map[Request]uint64{
	SetLogBase: ProtocolLog, SetLogFD: ProtocolLog,
	GetConfig: ProtocolConfig, SetConfig: ProtocolConfig, SetBackendFD: ProtocolBackend,
	GetInflightFD: ProtocolInflight, SetInflightFD: ProtocolInflight,
	ResetDevice: ProtocolReset, SetStatus: ProtocolStatus, GetStatus: ProtocolStatus,
	GetMaxMemSlots: ProtocolMemSlots, AddMemReg: ProtocolMemSlots, RemMemReg: ProtocolMemSlots,
}

// offeredFeatures are the features of this session.
func (s *session) offeredFeatures() virtio.Features {
	f := s.info.Features | ringFeatures
	if s.conn.PassesFDs() {
		f |= localFeatures
	}
	return f
}

// offered are the protocol features of this session.
func (s *session) offered() uint64 {
	f := protocolFeatures
	if _, ok := s.device.(virtio.ConfigWatcher); !ok {
		f &^= ProtocolBackend
	}
	if !s.conn.PassesFDs() {
		f &^= fdFeatures
	}
	return f
}

func (m Message) checkEmpty() error {
	if len(m.Payload) != 0 {
		return m.errorf("payload of %d bytes, want none", len(m.Payload))
	}
	return nil
}

func (s *session) get(m *Message, v uint64) (answer, error) {
	if err := m.checkEmpty(); err != nil {
		return answer{}, err
	}
	return answer{payload: u64Payload(v)}, nil
}

func (s *session) setFeatures(m *Message) error {
	v, err := m.u64()
	if err != nil {
		return err
	}
	f := virtio.Features(v)
	if extra := f &^ s.offeredFeatures(); extra != 0 {
		return m.errorf("features %#x were not offered", uint64(extra))
	}
	changed := f ^ s.features
	for i := range s.rings {
		if s.rings[i].started && changed&^FeatureLogAll != 0 {
			return m.errorf("features change while ring %d is started", i)
		}
	}
	if changed.Has(FeatureLogAll) {
		s.haltAll() // they go on with what they are to log
	}
	s.features = f
	for i := range s.rings {
		if !f.Has(FeatureProtocolFeatures) {
			s.rings[i].enabled = true // there is no message to enable it
		}
	}
	return s.updateAll(m)
}

func (s *session) setProtocolFeatures(m *Message) error {
	v, err := m.u64()
	if err != nil {
		return err
	}
	if extra := v &^ s.offered(); extra != 0 {
		return m.errorf("protocol features %#x were not offered", extra)
	}
	s.protocol = v
	return nil
}

// getConfig answers with an empty payload for what can not be read.
func (s *session) getConfig(m *Message) (answer, error) {
	c, err := m.configAccess()
	if err != nil {
		return answer{}, err
	}
	reply := make([]byte, len(m.Payload))
	copy(reply, m.Payload[:configHdrSize])
	if err := s.device.ReadConfig(reply[configHdrSize:], c.offset); err != nil {
		s.log.Warn("configuration read refused", "offset", c.offset, "size", c.size, "err", err)
		return answer{payload: []byte{}}, nil
	}
	return answer{payload: reply}, nil
}

func (s *session) setConfig(m *Message) (answer, error) {
	c, err := m.configAccess()
	if err != nil {
		return answer{}, err
	}
	if c.flags != 0 {
		// restoring read-only fields after a migration: ours do not travel
		s.log.Warn("configuration write refused", "offset", c.offset, "flags", c.flags)
		return answer{refused: true}, nil
	}
	if err := s.device.WriteConfig(c.data, c.offset); err != nil {
		s.log.Warn("configuration write refused", "offset", c.offset, "size", c.size, "err", err)
		return answer{refused: true}, nil
	}
	return answer{}, nil
}
