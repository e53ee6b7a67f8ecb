// SPDX-License-Identifier: Apache-2.0

package audit

import (
	"bufio"
	"bytes"
	"crypto/sha256"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"slices"
)

// ErrCorrupt means that the log is not what was written: a record was altered,
// removed, reordered or forked, or the file is not an audit log.
var ErrCorrupt = errors.New("audit log is corrupt")

// Sizes of the frame around a body, and of the magic that begins a segment.
const (
	lengthSize = 4
	magic      = "davit-audit-log\x01"

	// maxUnfinished bounds the memory that a log of commands without outcome can claim.
	maxUnfinished = 1024
)

// Chain sums up a verified log.
type Chain struct {
	First, Last uint64   // indexes of the first and last record; 0, 0 for none
	Kept        uint64   // index of the oldest record that should be there
	Head        Digest   // hash of the last record
	Torn        uint64   // bytes of an incomplete record at the end
	Unfinished  []uint64 // accepted commands without an outcome, oldest first (at most 1024)
}

// tear is the incomplete end of a segment.
type tear struct {
	offset int64 // where the good records end
	size   uint64
	digest Digest
}

// scanner reads frames and checks the chain. The first record may have any
// index; from there on everything must fit.
type scanner struct {
	codec  codec
	r      *bufio.Reader
	offset int64 // end of the last good frame in the current stream
	chain  Chain
	fresh  bool // a magic was read and no record since
}

// Verify reads an export (or one or more whole segments, oldest first) and
// gives every record to visit, if not nil, in order. It returns ErrCorrupt for
// anything that Append cannot have written. An incomplete last record, as left
// by a power cut or by copying a log that is in use, is reported in
// Chain.Torn, not as an error. An error of visit ends the reading.
func Verify(r io.Reader, visit func(Record) error) (Chain, error) {
	c, err := newCodec()
	if err != nil {
		return Chain{}, err
	}
	s := scanner{codec: c, r: bufio.NewReader(r)}
	torn, err := s.run(visit)
	if err != nil {
		return Chain{}, err
	}
	if torn != nil {
		s.chain.Torn = torn.size
	}
	if s.chain.Last == 0 {
		return Chain{}, fmt.Errorf("%w: it holds no record", ErrCorrupt)
	}
	if err := s.chain.complete(); err != nil {
		return Chain{}, err
	}
	return s.chain, nil
}

// complete finds segments that are missing at the beginning.
func (c *Chain) complete() error {
	if c.First > c.Kept {
		return fmt.Errorf("%w: records %d to %d are missing", ErrCorrupt, c.Kept, c.First-1)
	}
	return nil
}

// run reads to the end of the stream.
func (s *scanner) run(visit func(Record) error) (*tear, error) {
	for {
		rec, torn, err := s.next()
		if err == io.EOF {
			return nil, nil
		}
		if torn != nil || err != nil {
			return torn, err
		}
		if visit == nil {
			continue
		}
		if err := visit(*rec); err != nil {
			return nil, fmt.Errorf("record %d: %w", rec.Index, err)
		}
	}
}

// next returns exactly one of a record, a tear, an error; io.EOF after the last record.
func (s *scanner) next() (*Record, *tear, error) {
	head, err := s.r.Peek(lengthSize)
	if len(head) == 0 {
		if err == io.EOF && s.fresh {
			return nil, nil, s.corrupt("a segment holds no record")
		}
		return nil, nil, err
	}
	if string(head) == magic[:lengthSize] || s.offset == 0 {
		return s.nextSegment()
	}
	var prefix [lengthSize]byte
	n, err := io.ReadFull(s.r, prefix[:])
	if err != nil {
		return s.broken(prefix[:n], false, err)
	}
	size := binary.BigEndian.Uint32(prefix[:])
	if size == 0 || size > MaxBody {
		return s.broken(prefix[:], size == 0, nil)
	}
	frame := make([]byte, lengthSize+int(size)+sha256.Size)
	copy(frame, prefix[:])
	n, err = io.ReadFull(s.r, frame[lengthSize:])
	if err != nil {
		return s.broken(frame[:lengthSize+n], false, err)
	}
	body, sum := frame[lengthSize:lengthSize+size], frame[lengthSize+size:]
	if hash := sha256.Sum256(body); !bytes.Equal(hash[:], sum) {
		return s.broken(frame, unwritten(sum, hash), nil)
	}
	rec, err := s.link(body)
	if err != nil {
		return nil, nil, err
	}
	s.offset += int64(len(frame))
	return rec, nil, nil
}

// nextSegment reads the magic. Segments appear by rename and never half, so
// that a wrong one is no power cut.
func (s *scanner) nextSegment() (*Record, *tear, error) {
	var got [len(magic)]byte
	if _, err := io.ReadFull(s.r, got[:]); err != nil || string(got[:]) != magic {
		return nil, nil, s.corrupt("no segment begins at byte %d", s.offset)
	}
	if s.fresh {
		return nil, nil, s.corrupt("a segment holds no record")
	}
	s.offset += int64(len(magic))
	s.fresh = true
	return s.next()
}

// broken decides about a frame that does not hold: it is a tear if the stream
// ended inside it (err is set), or if its end and all after it were never
// written, which a file system shows as zeros. Everything else is corruption.
func (s *scanner) broken(frame []byte, unwritten bool, err error) (*Record, *tear, error) {
	if err != nil && err != io.EOF && !errors.Is(err, io.ErrUnexpectedEOF) {
		return nil, nil, err
	}
	if s.fresh {
		return nil, nil, s.corrupt("the first record of a segment is incomplete")
	}
	hash := sha256.New()
	hash.Write(frame)
	t := tear{offset: s.offset, size: uint64(len(frame))}
	if err == nil {
		if !unwritten {
			return nil, nil, s.corrupt("the record at byte %d was altered", s.offset)
		}
		rest := zeroReader{r: s.r}
		n, err := io.Copy(hash, &rest)
		if err != nil {
			return nil, nil, err
		}
		if !rest.zero() {
			return nil, nil, s.corrupt("the record at byte %d was altered", s.offset)
		}
		t.size += uint64(n)
	}
	hash.Sum(t.digest[:0])
	return nil, &t, nil
}

// link checks a body against the record before it.
func (s *scanner) link(body []byte) (*Record, error) {
	rec, err := s.codec.decode(body)
	if err != nil {
		return nil, fmt.Errorf("%w: byte %d: %w", ErrCorrupt, s.offset, err)
	}
	if (rec.Kind == KindSegment) != s.fresh {
		return nil, s.corrupt("record %d: a segment record belongs at the beginning of a segment and nowhere else", rec.Index)
	}
	if err := s.chain.add(rec, sha256.Sum256(body)); err != nil {
		return nil, err
	}
	s.fresh = false
	return &rec, nil
}

func (s *scanner) corrupt(format string, args ...any) error {
	return fmt.Errorf("%w: %s", ErrCorrupt, fmt.Sprintf(format, args...))
}

// add appends a record with the given hash to the chain.
func (c *Chain) add(rec Record, hash Digest) error {
	switch {
	case c.Last == 0:
		if rec.Index == 1 && !rec.Prev.IsZero() {
			return fmt.Errorf("%w: record 1 follows another record", ErrCorrupt)
		}
		c.First = rec.Index
	case rec.Index != c.Last+1:
		return fmt.Errorf("%w: record %d follows record %d", ErrCorrupt, rec.Index, c.Last)
	case rec.Prev != c.Head:
		return fmt.Errorf("%w: record %d does not continue the record before it", ErrCorrupt, rec.Index)
	}
	if rec.Kind == KindSegment {
		if rec.Ref == 0 || rec.Ref > rec.Index || rec.Ref < c.Kept {
			return fmt.Errorf("%w: record %d keeps records from %d", ErrCorrupt, rec.Index, rec.Ref)
		}
		c.Kept = rec.Ref
	}
	c.Last, c.Head = rec.Index, hash
	c.settle(rec)
	return nil
}

// settle follows which accepted commands have an outcome.
func (c *Chain) settle(rec Record) {
	switch rec.Kind {
	case KindAccepted:
		if len(c.Unfinished) < maxUnfinished {
			c.Unfinished = append(c.Unfinished, rec.Index)
		}
	case KindDone:
		c.Unfinished = slices.DeleteFunc(c.Unfinished, func(i uint64) bool { return i == rec.Ref })
	case KindOpen:
		// The record itself names them: they are history from here on.
		c.Unfinished = nil
	}
}

// unwritten reports whether the hash at the end of a frame breaks off: what is
// there of it is right, or nothing is there, and the rest is zero.
func unwritten(got []byte, want Digest) bool {
	there := bytes.TrimRight(got, "\x00")
	return bytes.HasPrefix(want[:], there)
}

func allZero(b []byte) bool {
	return bytes.IndexFunc(b, func(r rune) bool { return r != 0 }) < 0
}

// zeroReader passes bytes on and remembers whether all were zero.
type zeroReader struct {
	r     io.Reader
	other bool
}

func (z *zeroReader) Read(p []byte) (int, error) {
	n, err := z.r.Read(p)
	z.other = z.other || !allZero(p[:n])
	return n, err
}

func (z *zeroReader) zero() bool { return !z.other }
