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
	ctx      context.Context // ends when the queue is to stop
	queue    int
	features virtio.Features // accepted by the driver
	stats    *counters
}

// handle implements virtq.Handler.
func (s *server) handle(c *virtq.Chain) (uint32, error) {
	var raw [headerSize]byte
	if err := c.ReadHeader(raw[:]); err != nil {
		return 0, err
	}
	status, err := c.TakeStatus()
	if err != nil {
		return 0, err
	}
	h := parseHeader(raw)
	room, data := virtq.Len(c.Writable), virtq.Len(c.Readable)+virtq.Len(c.Writable)
	err = s.execute(h, c)
	if errors.Is(err, virtq.ErrStopped) {
		return 0, err
	}
	code := byte(statusOK)
	switch {
	case errors.Is(err, errUnsupported), errors.Is(err, disk.ErrNotSupported):
		code = statusUnsupp
	case err != nil:
		code = statusIOErr
		s.log.failed(s.queue, h, err)
	}
	status[0] = code
	s.stats.count(h.kind, code, data)
	return written(h.kind, code, room), nil
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

func (s *server) execute(h header, c *virtq.Chain) error {
	switch h.kind {
	case typeIn:
		off, err := s.locate(h.sector, virtq.Len(c.Writable))
		if err != nil {
			return err
		}
		return s.transfer(h.kind, c.Writable, off)
	case typeOut:
		off, err := s.locate(h.sector, virtq.Len(c.Readable))
		if err != nil {
			return err
		}
		return s.sync(s.transfer(h.kind, c.Readable, off))
	case typeFlush:
		return s.volume.Flush()
	case typeGetID:
		return s.id(c.Writable)
	case typeDiscard, typeWriteZeroes:
		return s.trim(h.kind, c)
	}
	return fmt.Errorf("type %d: %w", h.kind, errUnsupported)
}

// maxPiece is how many bytes of a request move before the next look at whether
// the queue is to stop. A chain may name almost 4 GiB, of very little memory, and
// drivers do ask for much at a time: EDK II's for up to 1 GiB in one buffer.
const maxPiece = 64 << 20

// transfer reads or writes in pieces. It ends with virtq.ErrStopped between two
// of them when the queue is to stop; such a request is not completed, and
// executed again as a whole by whoever serves the queue next.
func (s *server) transfer(kind uint32, bufs [][]byte, off int64) error {
	for {
		var piece [][]byte
		var err error
		if piece, bufs = cutPiece(bufs); kind == typeIn {
			err = s.volume.ReadAt(piece, off)
		} else {
			err = s.volume.WriteAt(piece, off)
		}
		if err != nil || len(bufs) == 0 {
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
	if err != nil || s.features.Has(FeatureFlush) && s.writeback.Load() {
		return err
	}
	return s.volume.Flush()
}

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
