// SPDX-License-Identifier: Apache-2.0

package vhostuser

import (
	"encoding/binary"

	"github.com/davit-dpu/davit/firmware/virtio"
	"github.com/davit-dpu/davit/firmware/virtio/guestmem"
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
	switch m.Request {
	case GetFeatures:
		return s.get(m, uint64(s.offered()))
	case GetProtocolFeatures:
		return s.get(m, s.offeredProtocol())
	case GetQueueNum:
		return s.get(m, uint64(s.info.Queues))
	case SetOwner, ResetOwner:
		// One connection is one owner; RESET_OWNER is deprecated and ignored.
		return answer{}, m.checkEmpty()
	case SetFeatures:
		return answer{}, s.setFeatures(m)
	case SetProtocolFeatures:
		return answer{}, s.setProtocolFeatures(m)
	case SetMemTable:
		return answer{}, s.setMemTable(m)
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
	return r == SetMemTable || r == SetVringKick || r == SetVringCall || r == SetVringErr || r == SetInflightFD
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
	if extra := f &^ s.offered(); extra != 0 {
		return m.errorf("features %#x were not offered", uint64(extra))
	}
	for i := range s.rings {
		if s.rings[i].started && f != s.features {
			return m.errorf("features change while ring %d is started", i)
		}
	}
	s.features = f
	for i := range s.rings {
		if !f.Has(FeatureProtocolFeatures) {
			s.rings[i].enabled = true // there is no message to enable it
		}
	}
	s.publish()
	return nil
}

func (s *session) setProtocolFeatures(m *Message) error {
	v, err := m.u64()
	if err != nil {
		return err
	}
	if extra := v &^ s.offeredProtocol(); extra != 0 {
		return m.errorf("protocol features %#x were not offered", extra)
	}
	s.protocol = v
	return nil
}

// setMemTable replaces the memory table. Rings in use are drained, and go on
// with the new table.
func (s *session) setMemTable(m *Message) error {
	table, err := m.memTable()
	if err != nil {
		return err
	}
	mem, err := s.mapAll(m, table)
	if err != nil {
		return err
	}
	for i := range s.rings {
		s.rings[i].cancelRun()
	}
	for i := range s.rings {
		s.halt(&s.rings[i])
	}
	old := s.mem
	s.mem = mem
	if old != nil {
		if err := old.Close(); err != nil {
			return m.wrap("release the old memory table", err)
		}
	}
	for i := range s.rings {
		if err := s.update(&s.rings[i]); err != nil {
			return m.wrap("go on with the new memory table", err)
		}
	}
	s.publish()
	return nil
}

// mapAll maps all regions or none.
func (s *session) mapAll(m *Message, table []MemRegion) (*guestmem.Memory, error) {
	if len(m.FDs) != 0 && len(m.FDs) != len(table) {
		return nil, m.errorf("%d file descriptors for %d regions", len(m.FDs), len(table))
	}
	regions := make([]guestmem.Region, 0, len(table))
	for i, entry := range table {
		fd := NoFD
		if len(m.FDs) != 0 {
			fd = m.FDs[i]
		}
		r, err := s.opts.Mapper.Map(entry, fd)
		if err != nil {
			for _, r := range regions {
				_ = r.Close()
			}
			return nil, m.wrap("map region", err)
		}
		regions = append(regions, r)
	}
	mem, err := guestmem.New(regions)
	if err != nil {
		return nil, m.wrap("memory table", err)
	}
	return mem, nil
}

// getConfig answers with an empty payload for what can not be read.
func (s *session) getConfig(m *Message) (answer, error) {
	c, err := m.configAccess()
	if err != nil {
		return answer{}, err
	}
	if s.protocol&ProtocolConfig == 0 {
		return answer{}, m.errorf("CONFIG was not negotiated")
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
	if s.protocol&ProtocolConfig == 0 {
		return answer{}, m.errorf("CONFIG was not negotiated")
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
