// SPDX-License-Identifier: Apache-2.0

package vhostuser

import (
	"encoding/binary"

	"github.com/davit-dpu/davit/firmware/virtio"
	"github.com/davit-dpu/davit/firmware/virtio/virtq"
)

// executeRing executes the requests that concern one ring.
func (s *session) executeRing(m *Message) (answer, error) {
	switch m.Request {
	case SetVringNum:
		return answer{}, s.setVringNum(m)
	case SetVringAddr:
		return answer{}, s.setVringAddr(m)
	case SetVringBase:
		return answer{}, s.setVringBase(m)
	case GetVringBase:
		return s.getVringBase(m)
	case SetVringKick:
		return answer{}, s.setVringKick(m)
	case SetVringCall:
		return answer{}, s.setVringCall(m)
	case SetVringErr:
		return answer{}, s.setVringErr(m)
	case SetVringEnable:
		return answer{}, s.setVringEnable(m)
	default:
		return answer{}, m.errorf("not supported")
	}
}

func (s *session) ring(m *Message, index uint32) (*ring, error) {
	if index >= uint32(len(s.rings)) {
		return nil, m.errorf("queue %d of %d", index, len(s.rings))
	}
	return &s.rings[index], nil
}

// stoppedRing returns the ring of a request that must not come while it is started.
func (s *session) stoppedRing(m *Message) (*ring, uint32, error) {
	v, err := m.vringState()
	if err != nil {
		return nil, 0, err
	}
	r, err := s.ring(m, v.index)
	if err != nil {
		return nil, 0, err
	}
	if r.started {
		return nil, 0, m.errorf("ring %d is started", v.index)
	}
	return r, v.num, nil
}

func (s *session) setVringNum(m *Message) error {
	r, num, err := s.stoppedRing(m)
	if err != nil {
		return err
	}
	if num == 0 || num > virtq.MaxSize || num&(num-1) != 0 {
		return m.errorf("queue size %d is not a power of two up to %d", num, virtq.MaxSize)
	}
	r.size = num
	return nil
}

func (s *session) setVringBase(m *Message) error {
	r, num, err := s.stoppedRing(m)
	if err != nil {
		return err
	}
	if num > 0xffff && !s.features.Has(virtio.FeatureRingPacked) {
		return m.errorf("base %d has more than 16 bits", num)
	}
	r.base = virtq.Position(num)
	return nil
}

func (s *session) setVringAddr(m *Message) error {
	a, err := m.vringAddr()
	if err != nil {
		return err
	}
	r, err := s.ring(m, a.index)
	if err != nil {
		return err
	}
	if a.flags&^vringLog != 0 || a.flags != 0 && !s.conn.PassesFDs() {
		return m.errorf("flags %#x were not offered", a.flags)
	}
	if r.started && a.withoutLog() != r.addr.withoutLog() {
		return m.errorf("ring %d is started", a.index)
	}
	if a != r.addr {
		s.halt(r) // it goes on with what it is to log
	}
	r.addr, r.hasAddr = a, true
	return s.updateAll(m)
}

// getVringBase stops a ring. When the last one is stopped, so is the trouble of
// a device whose driver broke the protocol.
func (s *session) getVringBase(m *Message) (answer, error) {
	v, err := m.vringState()
	if err != nil {
		return answer{}, err
	}
	r, err := s.ring(m, v.index)
	if err != nil {
		return answer{}, err
	}
	s.halt(r)
	r.started, r.waiting = false, false
	r.closeKick()
	s.recover()
	s.settle()
	s.publish()
	p := binary.LittleEndian.AppendUint32(nil, v.index)
	return answer{payload: binary.LittleEndian.AppendUint32(p, uint32(r.base))}, nil
}

func (s *session) recover() {
	for i := range s.rings {
		if s.rings[i].started {
			return
		}
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.stopped != nil {
		s.stopped = nil
		s.log.Info("all rings are stopped, the device can be started again")
	}
}

// vringFD returns the ring and the descriptor of a request that carries one,
// and takes it out of the message. present is false when the front end set the
// flag for "no descriptor".
func (s *session) vringFD(m *Message) (r *ring, fd int, present bool, err error) {
	v, err := m.u64()
	if err != nil {
		return nil, NoFD, false, err
	}
	if v&^(vringIdxMask|vringNoFD) != 0 {
		return nil, NoFD, false, m.errorf("unknown bits in %#x", v)
	}
	r, err = s.ring(m, uint32(v&vringIdxMask))
	if err != nil {
		return nil, NoFD, false, err
	}
	present = v&vringNoFD == 0
	if len(m.FDs) > 1 || len(m.FDs) == 1 && !present {
		return nil, NoFD, false, m.errorf("%d file descriptors", len(m.FDs))
	}
	if len(m.FDs) == 1 {
		fd, m.FDs = m.FDs[0], nil
		return r, fd, present, nil
	}
	return r, NoFD, present, nil
}

func (s *session) setVringKick(m *Message) error {
	r, fd, present, err := s.vringFD(m)
	if err != nil {
		return err
	}
	if !present {
		return m.errorf("polling is not supported")
	}
	kick, err := s.opts.Notifiers.OpenKick(r.index, fd)
	if err != nil {
		return m.wrap("open kick", err)
	}
	if s.mem == nil || r.size == 0 || !r.hasAddr {
		_ = kick.Close()
		return m.errorf("ring %d starts before its memory, size and addresses are set", r.index)
	}
	s.halt(r)
	r.closeKick()
	r.kick, r.started = kick, true
	if err := s.update(r); err != nil {
		return m.wrap("start ring", err)
	}
	s.publish()
	return nil
}

// setVringCall changes how the driver is notified. What the old call was still to
// signal ends with it; Queue.SetCall signals the new one for that.
func (s *session) setVringCall(m *Message) error {
	r, fd, present, err := s.vringFD(m)
	if err != nil {
		return err
	}
	var call Call
	if present {
		if call, err = s.opts.Notifiers.OpenCall(r.index, fd); err != nil {
			return m.wrap("open call", err)
		}
	}
	old := r.call
	r.call = call
	if r.run != nil {
		if call == nil {
			r.run.queue.SetCall(nil)
		} else {
			r.run.queue.SetCall(call)
		}
	}
	if old != nil {
		_ = old.Close()
	}
	return nil
}

func (s *session) setVringErr(m *Message) error {
	r, fd, present, err := s.vringFD(m)
	if err != nil {
		return err
	}
	if !present || fd == NoFD {
		r.setErr(nil)
		return nil
	}
	c, err := EventFDs{}.OpenCall(r.index, fd)
	if err != nil {
		return m.wrap("open error event", err)
	}
	r.setErr(c)
	return nil
}

func (s *session) setVringEnable(m *Message) error {
	v, err := m.vringState()
	if err != nil {
		return err
	}
	r, err := s.ring(m, v.index)
	if err != nil {
		return err
	}
	if v.num > 1 {
		return m.errorf("enable %d", v.num)
	}
	r.enabled = v.num == 1
	if err := s.update(r); err != nil {
		return m.wrap("enable ring", err)
	}
	s.publish()
	return nil
}
