// SPDX-License-Identifier: Apache-2.0

package bus

import (
	"encoding/binary"
	"errors"
	"fmt"
	"hash/crc32"
)

// Sizes of the wire format, in bytes.
const (
	HeaderSize = 32
	MaxPayload = 16 << 10
	MaxFrame   = HeaderSize + MaxPayload + 4
)

// frameMagic is "DVB1" as a little-endian number.
const frameMagic = 0x31425644

// frameVersion is the version of the framing itself; it never changes, so that
// HELLOs of any two versions can be read.
const frameVersion = 1

type frameType uint8

const (
	frameHello  frameType = iota + 1 // payload hello; session field 0
	framePing                        // payload u64 token
	framePong                        // payload u64 token of the PING
	frameOpen                        // payload CBOR Open
	frameAccept                      // no payload
	frameClose                       // payload reason text, may be empty
	frameData                        // payload bytes, at least one
	frameCredit                      // payload u32 bytes consumed
	frameRing                        // payload u64 bit set of queues
	frameBye                         // payload reason text
)

// flagRequest on a HELLO asks the peer to answer with a HELLO of its own.
const flagRequest = 1

// ErrFrame says that bytes are not a frame: wrong magic, version, CRC or length.
var ErrFrame = errors.New("not a bus frame")

var castagnoli = crc32.MakeTable(crc32.Castagnoli)

// frame is one unit of the stream. Payload of a decoded frame is only valid
// until the decoder's next call.
type frame struct {
	kind    frameType
	flags   uint16
	session uint64
	channel uint32
	seq     uint32
	payload []byte
}

// appendFrame appends the wire form of f. The payload must not be longer than
// MaxPayload; the callers in this package cut it.
func appendFrame(dst []byte, f frame) []byte {
	start := len(dst)
	le := binary.LittleEndian
	dst = le.AppendUint32(dst, frameMagic)
	dst = append(dst, frameVersion, byte(f.kind))
	dst = le.AppendUint16(dst, f.flags)
	dst = le.AppendUint64(dst, f.session)
	dst = le.AppendUint32(dst, f.channel)
	dst = le.AppendUint32(dst, uint32(len(f.payload)))
	dst = le.AppendUint32(dst, f.seq)
	dst = le.AppendUint32(dst, crc32.Checksum(dst[start:], castagnoli))
	if len(f.payload) == 0 {
		return dst
	}
	dst = append(dst, f.payload...)
	return le.AppendUint32(dst, crc32.Checksum(f.payload, castagnoli))
}

// parseHeader reads a header of HeaderSize bytes and returns the frame without
// its payload, and how many bytes follow the header.
func parseHeader(b []byte) (frame, int, error) {
	if len(b) < HeaderSize {
		return frame{}, 0, fmt.Errorf("%w: %d bytes are shorter than a header", ErrFrame, len(b))
	}
	le := binary.LittleEndian
	if le.Uint32(b) != frameMagic || b[4] != frameVersion {
		return frame{}, 0, fmt.Errorf("%w: magic and version % x", ErrFrame, b[:5])
	}
	if got, want := crc32.Checksum(b[:28], castagnoli), le.Uint32(b[28:]); got != want {
		return frame{}, 0, fmt.Errorf("%w: header CRC %08x, want %08x", ErrFrame, got, want)
	}
	length := le.Uint32(b[20:])
	if length > MaxPayload {
		return frame{}, 0, fmt.Errorf("%w: payload of %d bytes is longer than %d", ErrFrame, length, MaxPayload)
	}
	rest := int(length)
	if rest > 0 {
		rest += 4
	}
	return frame{
		kind: frameType(b[5]), flags: le.Uint16(b[6:]), session: le.Uint64(b[8:]),
		channel: le.Uint32(b[16:]), seq: le.Uint32(b[24:]),
	}, rest, nil
}

// checkPayload splits payload and CRC, and refuses a payload that does not
// match. An empty rest is an empty payload.
func checkPayload(rest []byte) ([]byte, error) {
	if len(rest) == 0 {
		return nil, nil
	}
	if len(rest) < 5 {
		return nil, fmt.Errorf("%w: %d bytes after the header", ErrFrame, len(rest))
	}
	p, sum := rest[:len(rest)-4], rest[len(rest)-4:]
	if got, want := crc32.Checksum(p, castagnoli), binary.LittleEndian.Uint32(sum); got != want {
		return nil, fmt.Errorf("%w: payload CRC %08x, want %08x", ErrFrame, got, want)
	}
	return p, nil
}
