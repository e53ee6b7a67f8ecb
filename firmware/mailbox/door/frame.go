// SPDX-License-Identifier: Apache-2.0

package door

import (
	"encoding/binary"
	"errors"
	"fmt"
	"io"

	"github.com/davit-dpu/davit/firmware/mailbox"
)

// Kind says what a frame carries. Kinds are never reused.
type Kind uint8

// Kinds of frames.
const (
	Envelope Kind = 1 // requester → card: a command or a public request
	Receipt  Kind = 2 // card → requester
	Data     Kind = 3 // both ways, within a stream
	End      Kind = 4 // both ways: this side sends no more data; the body is empty
)

// Sizes in bytes.
const (
	headerSize = 5
	MaxData    = 32 << 10 // of one Data frame
)

// Errors of reading a frame.
var (
	ErrKind     = errors.New("frame of a kind that does not belong here")
	ErrTooLarge = errors.New("frame is too large")
)

// limit is the largest body of a kind.
func (k Kind) limit() (uint32, error) {
	switch k {
	case Envelope:
		return mailbox.MaxCommand, nil
	case Receipt:
		return mailbox.MaxReceipt, nil
	case Data:
		return MaxData, nil
	case End:
		return 0, nil
	}
	return 0, fmt.Errorf("%w: kind %d", ErrKind, k)
}

// WriteFrame writes one frame with one Write.
func WriteFrame(w io.Writer, kind Kind, body []byte) error {
	limit, err := kind.limit()
	if err != nil {
		return err
	}
	if uint64(len(body)) > uint64(limit) {
		return fmt.Errorf("%w: kind %d with %d bytes, at most %d", ErrTooLarge, kind, len(body), limit)
	}
	frame := make([]byte, headerSize, headerSize+len(body))
	binary.BigEndian.PutUint32(frame, uint32(len(body)))
	frame[4] = byte(kind)
	_, err = w.Write(append(frame, body...))
	return err
}

// ReadFrame reads one frame of one of the kinds. It allocates no more than the
// limit of the kind, and no memory for a frame that it refuses. It returns
// io.EOF only when there is no further frame.
func ReadFrame(r io.Reader, kinds ...Kind) (Kind, []byte, error) {
	kind, size, err := readHeader(r, kinds)
	if err != nil {
		return 0, nil, err
	}
	body, err := readBody(r, kind, size)
	if err != nil {
		return 0, nil, err
	}
	return kind, body, nil
}

func readHeader(r io.Reader, kinds []Kind) (Kind, uint32, error) {
	var header [headerSize]byte
	if _, err := io.ReadFull(r, header[:]); err != nil {
		return 0, 0, err
	}
	return parseHeader(header, kinds)
}

func parseHeader(header [headerSize]byte, kinds []Kind) (Kind, uint32, error) {
	kind := Kind(header[4])
	for _, k := range kinds {
		if k == kind {
			return kind, binary.BigEndian.Uint32(header[:]), nil
		}
	}
	return 0, 0, fmt.Errorf("%w: kind %d", ErrKind, kind)
}

func readBody(r io.Reader, kind Kind, size uint32) ([]byte, error) {
	limit, err := kind.limit()
	if err != nil {
		return nil, err
	}
	if size > limit {
		return nil, fmt.Errorf("%w: kind %d with %d bytes, at most %d", ErrTooLarge, kind, size, limit)
	}
	// Memory follows what arrives, not what was announced.
	var body []byte
	for len(body) < int(size) {
		old := len(body)
		n := min(max(old, 4<<10), int(size)-old)
		body = append(body, make([]byte, n)...)
		if _, err := io.ReadFull(r, body[old:]); err != nil {
			return nil, unexpected(err)
		}
	}
	return body, nil
}

// unexpected makes an end within a frame distinguishable from one between two.
func unexpected(err error) error {
	if err == io.EOF {
		return io.ErrUnexpectedEOF
	}
	return err
}
