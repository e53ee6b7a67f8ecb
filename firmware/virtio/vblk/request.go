// SPDX-License-Identifier: Apache-2.0

package vblk

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"

	"github.com/davit-dpu/davit/firmware/disk"
	"github.com/davit-dpu/davit/firmware/virtio"
	"github.com/davit-dpu/davit/firmware/virtio/virtq"
)

// Request types and statuses (Virtio 1.2, 5.2.6).
const (
	typeIn          = 0
	typeOut         = 1
	typeFlush       = 4
	typeGetID       = 8
	typeDiscard     = 11
	typeWriteZeroes = 13

	statusOK     = 0
	statusIOErr  = 1
	statusUnsupp = 2
)

const (
	headerSize = 16
	rangeSize  = 16 // of a discard or write-zeroes range
	flagUnmap  = 1
)

// errUnsupported makes the status UNSUPP; every other error makes it IOERR.
var errUnsupported = errors.New("request is not supported")

// header is a request's header, copied from guest memory.
type header struct {
	kind   uint32
	sector uint64
}

func parseHeader(b [headerSize]byte) header {
	return header{kind: binary.LittleEndian.Uint32(b[0:]), sector: binary.LittleEndian.Uint64(b[8:])}
}

// server executes the requests of one queue.
type server struct {
	*Device
	ctx      context.Context // ends when requests are to be left
	stop     <-chan struct{} // closed when nothing is to be waited for
	failed   func() error    // why the queue has ended by itself
	queue    int
	features virtio.Features // accepted by the driver
	stats    *counters
	requests []request // by slot
}

// request is a request whose header and status were taken off its chain.
type request struct {
	header
	status     []byte // one byte of guest memory
	room, data uint64 // writable bytes, and all bytes, that are left
	passed     bool   // the limits let it pass
}

// try implements virtq.Service: it begins with a request, and ends it if nothing
// has to be waited for.
func (s *server) try(c *virtq.Chain) (uint32, error) {
	r := &s.requests[c.Slot()]
	if err := r.open(c); err != nil {
		return 0, err
	}
	if r.passed = s.pass(r); !r.passed {
		return 0, virtq.ErrWouldBlock
	}
	if s.prompt == nil || r.data > maxPrompt {
		return 0, virtq.ErrWouldBlock
	}
	var err error
	switch {
	case r.kind == typeIn:
		err = s.move(r, c.Writable, s.prompt.TryReadAt)
	case r.kind == typeOut && s.cached():
		err = s.move(r, c.Readable, s.prompt.TryWriteAt)
	default:
		return 0, virtq.ErrWouldBlock
	}
	if errors.Is(err, disk.ErrWouldBlock) {
		return 0, virtq.ErrWouldBlock
	}
	return s.finish(r, err)
}

// maxPrompt is the longest request that try copies: others wait meanwhile.
const maxPrompt = 1 << 20

// open takes header and status off the chain.
func (r *request) open(c *virtq.Chain) error {
	var raw [headerSize]byte
	if err := c.ReadHeader(raw[:]); err != nil {
		return err
	}
	status, err := c.TakeStatus()
	if err != nil {
		return err
	}
	room := virtq.Len(c.Writable)
	*r = request{header: parseHeader(raw), status: status, room: room, data: virtq.Len(c.Readable) + room}
	return nil
}

// handle implements virtq.Service for a request that try has begun with.
func (s *server) handle(c *virtq.Chain) (uint32, error) {
	r := &s.requests[c.Slot()]
	if !r.passed && !s.wait(r) {
		return 0, virtq.ErrStopped
	}
	return s.finish(r, s.execute(r, c))
}

// pass says whether the device's limits let a request pass at once.
func (s *server) pass(r *request) bool {
	switch r.kind {
	case typeIn, typeOut, typeFlush, typeDiscard, typeWriteZeroes:
		return s.limit.pass(r.moves())
	}
	return true // it does not come to the volume
}

// moves is how many bytes a request moves from or to the volume.
func (r *request) moves() uint64 {
	if r.kind == typeIn || r.kind == typeOut {
		return r.data
	}
	return 0
}

// wait lets a request pass in its turn. A queue that is to stop waits for no turn:
// false, or, where requests may not be left, at once. One that has failed publishes
// nothing any more: false.
func (s *server) wait(r *request) bool {
	s.stats.waited.Add(1)
	switch {
	case s.limit.wait(s.stop, r.moves()):
		return true
	case s.ctx.Err() != nil || s.failed() != nil:
		return false
	}
	s.limit.owe(r.moves())
	return true
}

// finish writes the status.
func (s *server) finish(r *request, err error) (uint32, error) {
	code := byte(statusOK)
	switch {
	case err == nil:
	case errors.Is(err, virtq.ErrStopped):
		return 0, err
	case errors.Is(err, errUnsupported), errors.Is(err, disk.ErrNotSupported):
		code = statusUnsupp
	default:
		code = statusIOErr
		s.log.failed(s.queue, r.header, err)
	}
	r.status[0] = code
	s.stats.count(r.kind, code, r.data)
	return written(r.kind, code, r.room), nil
}

// written is the length for the used ring: it promises that so many bytes from
// the first writable one on were written (2.7.8.2). With data room before the
// status that was not filled, nothing can be promised.
func written(kind uint32, status byte, room uint64) uint32 {
	filled := status == statusOK && (kind == typeIn || kind == typeGetID)
	if room > 0 && !filled {
		return 0
	}
	return uint32(room) + 1
}

func (s *server) execute(r *request, c *virtq.Chain) error {
	switch r.kind {
	case typeIn:
		return s.move(r, c.Writable, s.volume.ReadAt)
	case typeOut:
		return s.sync(s.move(r, c.Readable, s.volume.WriteAt))
	case typeFlush:
		return s.volume.Flush()
	case typeGetID:
		return s.id(c.Writable)
	case typeDiscard, typeWriteZeroes:
		return s.trim(r.kind, c)
	}
	return fmt.Errorf("type %d: %w", r.kind, errUnsupported)
}

// maxPiece is how many bytes of a request move before the next look at whether
// the queue is to stop. A chain may name almost 4 GiB, of very little memory, and
// drivers do ask for much at a time: EDK II's for up to 1 GiB in one buffer.
const maxPiece = 64 << 20

// move reads or writes in pieces. It ends with virtq.ErrStopped between two
// of them when the queue is to stop; such a request is not completed, and
// executed again as a whole by whoever serves the queue next.
func (s *server) move(r *request, bufs [][]byte, access func(bufs [][]byte, off int64) error) error {
	n := r.room
	if r.kind == typeOut {
		n = r.data - r.room
	}
	off, err := s.locate(r.sector, n)
	if err != nil {
		return err
	}
	if n <= maxPiece {
		return access(bufs, off)
	}
	for {
		var piece [][]byte
		piece, bufs = cutPiece(bufs)
		if err := access(piece, off); err != nil || len(bufs) == 0 {
			return err
		}
		if s.ctx.Err() != nil {
			return virtq.ErrStopped
		}
		off += int64(virtq.Len(piece))
	}
}

// cutPiece takes the next piece off the front of bufs: as many whole buffers as
// fit, or a part of the first one.
func cutPiece(bufs [][]byte) (piece, rest [][]byte) {
	if len(bufs) > 0 && len(bufs[0]) > maxPiece {
		piece = [][]byte{bufs[0][:maxPiece]}
		bufs[0] = bufs[0][maxPiece:]
		return piece, bufs
	}
	n := 0
	for i, b := range bufs {
		if n += len(b); n > maxPiece {
			return bufs[:i], bufs[i:]
		}
	}
	return bufs, nil
}

// locate checks a range of whole sectors and returns its offset in bytes.
func (s *server) locate(sector, n uint64) (int64, error) {
	if n%sectorSize != 0 {
		return 0, fmt.Errorf("%d bytes are not whole sectors", n)
	}
	capacity := uint64(s.volume.Info().Size) / sectorSize
	if sector > capacity || n/sectorSize > capacity-sector {
		return 0, fmt.Errorf("%d sectors at %d of %d: %w", n/sectorSize, sector, capacity, disk.ErrRange)
	}
	return int64(sector * sectorSize), nil
}

// sync makes a change durable at once when the driver relies on it: it can not
// flush, or it turned the write cache off (Virtio 1.2, 5.2.6.2).
func (s *server) sync(err error) error {
	if err != nil || s.cached() {
		return err
	}
	return s.volume.Flush()
}

// cached says that a write may complete before it is durable.
func (s *server) cached() bool { return s.features.Has(FeatureFlush) && s.writeback.Load() }

// id writes the serial number: 20 bytes, padded with zeroes.
func (s *server) id(bufs [][]byte) error {
	if n := virtq.Len(bufs); n < MaxSerial {
		return fmt.Errorf("%d bytes for the serial number, want %d", n, MaxSerial)
	}
	serial := s.serial[:]
	for _, b := range bufs {
		n := copy(b, serial)
		serial = serial[n:]
		clear(b[n:])
	}
	return nil
}

// trim executes discard and write-zeroes. All ranges are checked before the
// first is touched.
func (s *server) trim(kind uint32, c *virtq.Chain) error {
	if s.trimmer == nil {
		return fmt.Errorf("type %d: %w", kind, errUnsupported)
	}
	n, most := virtq.Len(c.Readable), uint64(MaxDiscardRanges)
	if kind == typeWriteZeroes {
		most = MaxWriteZeroesRanges
	}
	if n == 0 || n%rangeSize != 0 || n > most*rangeSize {
		return fmt.Errorf("%d bytes are not 1 to %d ranges", n, most)
	}
	var raw [MaxDiscardRanges * rangeSize]byte
	if err := c.ReadHeader(raw[:n]); err != nil {
		return err
	}
	var ranges [MaxDiscardRanges]trimRange
	for i := range int(n / rangeSize) {
		r, err := s.parseRange(kind, raw[i*rangeSize:])
		if err != nil {
			return err
		}
		ranges[i] = r
	}
	for _, r := range ranges[:n/rangeSize] {
		if err := s.trimOne(kind, r); err != nil {
			return err
		}
	}
	return s.sync(nil)
}

// trimRange is one checked range of a discard or write-zeroes request.
type trimRange struct {
	off, n int64 // bytes
	unmap  bool
}

func (s *server) parseRange(kind uint32, b []byte) (trimRange, error) {
	sector, count := binary.LittleEndian.Uint64(b), binary.LittleEndian.Uint32(b[8:])
	flags := binary.LittleEndian.Uint32(b[12:])
	limit := uint32(MaxWriteZeroesSectors)
	allowed := uint32(flagUnmap)
	if kind == typeDiscard {
		limit, allowed = MaxDiscardSectors, 0
	}
	if flags&^allowed != 0 {
		return trimRange{}, fmt.Errorf("flags %#x of a range: %w", flags, errUnsupported)
	}
	if count > limit {
		return trimRange{}, fmt.Errorf("range of %d sectors, at most %d", count, limit)
	}
	n := uint64(count) * sectorSize
	off, err := s.locate(sector, n)
	if err != nil {
		return trimRange{}, err
	}
	return trimRange{off: off, n: int64(n), unmap: flags&flagUnmap != 0}, nil
}

func (s *server) trimOne(kind uint32, r trimRange) error {
	if kind == typeDiscard {
		return s.trimmer.Discard(r.off, r.n)
	}
	return s.trimmer.WriteZeroes(r.off, r.n, r.unmap)
}
