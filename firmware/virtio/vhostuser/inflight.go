// SPDX-License-Identifier: Apache-2.0

package vhostuser

import (
	"encoding/binary"
	"errors"
	"fmt"

	"golang.org/x/sys/unix"

	"github.com/davit-dpu/davit/firmware/virtio/guestmem"
	"github.com/davit-dpu/davit/firmware/virtio/virtq"
)

// inflightSeals keep a front end from taking the region's memory away: it is
// touched without the guard that guest memory has.
const inflightSeals = unix.F_SEAL_SHRINK | unix.F_SEAL_GROW | unix.F_SEAL_SEAL

// inflightDescSize is the size of an "inflight description" in bytes. QEMU sends
// it with four bytes of padding, and takes no answer without.
const inflightDescSize = 20

// inflightDesc is an "inflight description".
type inflightDesc struct {
	size, offset uint64
	queues       uint16
	queueSize    uint16
}

func (m Message) inflightDesc() (inflightDesc, error) {
	if len(m.Payload) != inflightDescSize && len(m.Payload) != inflightDescSize+4 {
		return inflightDesc{}, m.errorf("payload of %d bytes, want 20", len(m.Payload))
	}
	return inflightDesc{
		size: binary.LittleEndian.Uint64(m.Payload), offset: binary.LittleEndian.Uint64(m.Payload[8:]),
		queues: binary.LittleEndian.Uint16(m.Payload[16:]), queueSize: binary.LittleEndian.Uint16(m.Payload[18:]),
	}, nil
}

// payload is the description in n bytes.
func (d inflightDesc) payload(n int) []byte {
	b := binary.LittleEndian.AppendUint64(nil, d.size)
	b = binary.LittleEndian.AppendUint64(b, d.offset)
	b = binary.LittleEndian.AppendUint16(b, d.queues)
	b = binary.LittleEndian.AppendUint16(b, d.queueSize)
	return append(b, make([]byte, n-len(b))...)
}

// inflight is a mapped in-flight region: one part for each queue.
type inflight struct {
	mem       []byte
	queues    int
	queueSize int
}

// part is a queue's part, nil without a region. A region that was made for smaller
// queues has none for it; a driver may use less of a queue than there is.
func (r *inflight) part(queue, size int) []byte {
	if r == nil || queue >= r.queues || size > r.queueSize {
		return nil
	}
	n := virtq.InflightSize(r.queueSize)
	return r.mem[queue*n:][:n:n]
}

func (r *inflight) close() error {
	if r == nil {
		return nil
	}
	return unix.Munmap(r.mem)
}

// check refuses shapes that no device has, and returns the bytes that are needed.
func (d inflightDesc) check(m *Message, queues int) (int, error) {
	size := int(d.queueSize)
	if d.queues == 0 || int(d.queues) > queues {
		return 0, m.errorf("%d queues of %d", d.queues, queues)
	}
	if size == 0 || size > virtq.MaxSize || size&(size-1) != 0 {
		return 0, m.errorf("queue size %d is not a power of two up to %d", size, virtq.MaxSize)
	}
	return int(d.queues) * virtq.InflightSize(size), nil
}

// getInflightFD makes a region without requests in flight, for the front end to
// keep.
func (s *session) getInflightFD(m *Message) (answer, error) {
	d, err := m.inflightDesc()
	if err != nil {
		return answer{}, err
	}
	need, err := d.check(m, s.info.Queues)
	if err != nil {
		return answer{}, err
	}
	d.size, d.offset = uint64(need+guestmem.PageSize-1)&^(guestmem.PageSize-1), 0
	fd, err := newInflight(d.size)
	if err != nil {
		return answer{}, m.wrap("make in-flight region", err)
	}
	return answer{payload: d.payload(len(m.Payload)), fd: fd, hasFD: true}, nil
}

// newInflight makes the file of a region, all zeroes: each queue initialises its
// part when it first starts. Its memory is taken at once, so that none lacks later.
func newInflight(size uint64) (int, error) {
	fd, err := unix.MemfdCreate("vhost-inflight", unix.MFD_CLOEXEC|unix.MFD_ALLOW_SEALING)
	if err != nil {
		return NoFD, err
	}
	err = unix.Fallocate(fd, 0, 0, int64(size))
	if err == nil {
		_, err = unix.FcntlInt(uintptr(fd), unix.F_ADD_SEALS, inflightSeals)
	}
	if err != nil {
		_ = unix.Close(fd)
		return NoFD, err
	}
	return fd, nil
}

// setInflightFD takes the region that the front end kept. It comes before the rings
// are started.
func (s *session) setInflightFD(m *Message) error {
	d, err := m.inflightDesc()
	if err != nil {
		return err
	}
	if len(m.FDs) != 1 {
		return m.errorf("%d file descriptors", len(m.FDs))
	}
	for i := range s.rings {
		if s.rings[i].started {
			return m.errorf("ring %d is started", i)
		}
	}
	r, err := mapInflight(m, d, s.info.Queues)
	if err != nil {
		return err
	}
	old := s.inflight
	s.inflight = r
	return old.close()
}

func mapInflight(m *Message, d inflightDesc, queues int) (*inflight, error) {
	need, err := d.check(m, queues)
	if err != nil {
		return nil, err
	}
	fd := m.FDs[0]
	if err := checkInflight(fd); err != nil { // before its size: that does not change any more then
		return nil, m.wrap("in-flight region was not made by this back end", err)
	}
	var st unix.Stat_t
	if err := unix.Fstat(fd, &st); err != nil {
		return nil, m.wrap("look at in-flight region", err)
	}
	if d.offset != 0 || d.size < uint64(need) || uint64(st.Size) < d.size || d.size > maxInflight {
		return nil, m.errorf("region of %d bytes at %d in a file of %d, want %d at 0", d.size, d.offset, st.Size, need)
	}
	mem, err := unix.Mmap(fd, 0, int(d.size), unix.PROT_READ|unix.PROT_WRITE, unix.MAP_SHARED)
	if err != nil {
		return nil, m.wrap("map in-flight region", err)
	}
	return &inflight{mem: mem, queues: int(d.queues), queueSize: int(d.queueSize)}, nil
}

// checkInflight refuses files whose memory can be taken away: by truncation, or, where
// it consists of huge pages, by punching a hole that cannot be filled again.
func checkInflight(fd int) error {
	seals, err := unix.FcntlInt(uintptr(fd), unix.F_GET_SEALS, 0)
	if err != nil || seals&unix.F_SEAL_SHRINK == 0 {
		return errors.New("it is not sealed against shrinking")
	}
	var fs unix.Statfs_t
	if err := unix.Fstatfs(fd, &fs); err != nil {
		return fmt.Errorf("look at the file system: %w", err)
	}
	if fs.Type != unix.TMPFS_MAGIC {
		return fmt.Errorf("file system of type %#x", fs.Type)
	}
	return nil
}

// maxInflight is more than the largest region that getInflightFD makes.
const maxInflight = 16 << 20
