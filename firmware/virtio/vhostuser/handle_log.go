// SPDX-License-Identifier: Apache-2.0

package vhostuser

import "github.com/davit-dpu/davit/firmware/virtio/guestmem"

// logs reports whether rings log what they write. A front end that sets the feature
// before the bitmap is there gets rings that do not.
func (s *session) logs() bool { return s.features.Has(FeatureLogAll) && s.dirty != nil }

// setLogBase replaces the bitmap of dirty pages. Rings that log to the one before are
// drained first: when the answer comes, all that they wrote is in it.
func (s *session) setLogBase(m *Message) (answer, error) {
	size, offset, err := m.logBase()
	if err != nil {
		return answer{}, err
	}
	if len(m.FDs) != 1 {
		return answer{}, m.errorf("%d file descriptors, want 1", len(m.FDs))
	}
	dirty, err := guestmem.MapLog(m.FDs[0], offset, size)
	if err != nil {
		return answer{}, m.wrap("map log", err)
	}
	if s.features.Has(FeatureLogAll) {
		s.haltAll()
	}
	s.closeLog()
	s.dirty = dirty
	s.tellOfMarks()
	if err := s.updateAll(m); err != nil {
		return answer{}, err
	}
	return answer{payload: u64Payload(0)}, nil
}

// setLogFD takes the eventfd that is signalled when pages were marked.
func (s *session) setLogFD(m *Message) error {
	if err := m.checkEmpty(); err != nil {
		return err
	}
	if len(m.FDs) != 1 {
		return m.errorf("%d file descriptors, want 1", len(m.FDs))
	}
	fd := m.FDs[0]
	m.FDs = nil
	c, err := EventFDs{}.OpenCall(0, fd)
	if err != nil {
		return m.wrap("open log event", err)
	}
	if s.logCall != nil {
		_ = s.logCall.Close()
	}
	s.logCall = c
	s.tellOfMarks()
	return nil
}

// tellOfMarks brings bitmap and eventfd together.
func (s *session) tellOfMarks() {
	if s.dirty != nil && s.logCall != nil {
		s.dirty.OnMark(s.logCall.Signal)
	}
}

// closeLog gives the bitmap back. No ring logs to it.
func (s *session) closeLog() {
	if s.dirty == nil {
		return
	}
	if err := s.dirty.Close(); err != nil {
		s.log.Warn("log of dirty pages not released", "err", err)
	}
	s.dirty = nil
}
