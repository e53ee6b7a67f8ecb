// SPDX-License-Identifier: Apache-2.0

package virtq

import "github.com/davit-dpu/davit/firmware/virtio/guestmem"

// span is a piece of guest-physical memory.
type span struct{ addr, n uint64 }

// dirtyPart logs what a device writes to one part of a ring. A nil one does not.
type dirtyPart struct {
	log  *guestmem.Log
	at   uint64 // guest-physical address of the part
	fail func(error)
}

// wrote marks n bytes at off of the part, which have been written.
func (p *dirtyPart) wrote(off, n int) {
	if p != nil {
		p.mark(off, n)
	}
}

func (p *dirtyPart) mark(off, n int) {
	if err := p.log.Mark(p.at+uint64(off), uint64(n)); err != nil {
		p.fail(unlogged(err))
	}
}

// unlogged is why a queue ends of which a write could not be logged: to go on
// would have the guest find old data after its migration.
func unlogged(err error) error {
	return &ProtocolError{Violation: ViolationLog, Detail: "a write is not logged", Err: err}
}

// usedPart logs the used ring, or packed device events, at the address that the front
// end gave for it.
func (cfg *Config) usedPart() *dirtyPart {
	if cfg.Log == nil || !cfg.LogRing {
		return nil
	}
	return &dirtyPart{log: cfg.Log, at: cfg.LogUsed, fail: cfg.fail}
}

// descPart logs a packed ring's descriptors, for which no front end gives an address.
func (cfg *Config) descPart(desc []byte) *dirtyPart {
	if cfg.Log == nil || !cfg.LogRing {
		return nil
	}
	at, ok := cfg.Memory.Locate(desc)
	if !ok {
		return nil // Translate knows other memory
	}
	return &dirtyPart{log: cfg.Log, at: at, fail: cfg.fail}
}

// logWritten marks all writable buffers of a request that was worked on: how much of
// them was written, only the device knows.
func (q *Queue) logWritten(c *Chain) {
	for _, s := range c.dirty { // none unless writes are logged
		if err := q.walker.log.Mark(s.addr, s.n); err != nil {
			q.Fail(unlogged(err))
		}
	}
}
