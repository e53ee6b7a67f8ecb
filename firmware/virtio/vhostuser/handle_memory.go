// SPDX-License-Identifier: Apache-2.0

package vhostuser

import "github.com/davit-dpu/davit/firmware/virtio/guestmem"

// setMemTable replaces the memory table.
func (s *session) setMemTable(m *Message) error {
	table, err := m.memTable()
	if err != nil {
		return err
	}
	regions, err := s.mapAll(m, table)
	if err != nil {
		return err
	}
	mem, err := guestmem.New(regions)
	if err != nil {
		return m.wrap("memory table", err)
	}
	return s.useMemory(m, mem)
}

// addMemReg adds one region to the memory table.
func (s *session) addMemReg(m *Message) error {
	entry, err := m.memRegion()
	if err != nil {
		return err
	}
	r, err := s.mapAll(m, []MemRegion{entry})
	if err != nil {
		return err
	}
	var mem *guestmem.Memory
	if s.mem == nil {
		mem, err = guestmem.New(r)
	} else {
		mem, err = s.mem.With(r[0])
	}
	if err != nil {
		return m.wrap("add memory region", err)
	}
	return s.useMemory(m, mem)
}

// remMemReg takes one region out of the memory table: its addresses and size say
// which. A file descriptor, which old front ends send, means nothing.
func (s *session) remMemReg(m *Message) error {
	entry, err := m.memRegion()
	if err != nil {
		return err
	}
	if len(m.FDs) > 1 {
		return m.errorf("%d file descriptors", len(m.FDs))
	}
	if s.mem == nil {
		return m.errorf("there is no memory")
	}
	mem, err := s.mem.Without(entry.GuestPhys, entry.UserAddr, entry.Size)
	if err != nil {
		return m.wrap("remove memory region", err)
	}
	return s.useMemory(m, mem)
}

// useMemory makes mem the memory table. Rings that run are drained, so that
// nothing uses what is not in it any longer, and go on with it.
func (s *session) useMemory(m *Message, mem *guestmem.Memory) error {
	s.haltAll()
	old := s.mem
	s.mem = mem
	if old != nil {
		if err := old.Close(); err != nil {
			return m.wrap("release the old memory table", err)
		}
	}
	return s.updateAll(m)
}

// updateAll has all rings run that are to, after something that they depend on has
// changed.
func (s *session) updateAll(m *Message) error {
	for i := range s.rings {
		if err := s.update(&s.rings[i]); err != nil {
			return m.wrap("start ring", err)
		}
	}
	s.publish()
	return nil
}

// mapAll maps all regions or none.
func (s *session) mapAll(m *Message, table []MemRegion) ([]guestmem.Region, error) {
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
	return regions, nil
}
