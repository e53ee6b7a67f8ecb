// SPDX-License-Identifier: Apache-2.0

package mailbox

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"unicode/utf8"
)

// Limits of any CBOR item that a peer sends.
const maxDepth = 16

// CBOR major types, RFC 8949 section 3.1.
const (
	majorUint = iota
	majorNegative
	majorBytes
	majorText
	majorArray
	majorMap
	majorTag
	majorSimple
)

// Simple values, RFC 8949 section 3.3.
const (
	simpleFalse = 20
	simpleNull  = 22
)

var errTruncated = errors.New("ends within an item")

// dialect is the part of CBOR that a side may speak.
type dialect struct{ null bool }

// Commands hold no null: an absent value is left out, so that it cannot be
// mistaken for a zero one. Results may hold null.
var (
	commandDialect = dialect{null: false}
	resultDialect  = dialect{null: true}
)

// check makes sure that data is exactly one CBOR item in core deterministic
// encoding (RFC 8949 section 4.2.1) out of the part of CBOR that this protocol
// uses: integers, byte and text strings, arrays, maps, false, true and null.
// Tags, floats, undefined and other simple values do not occur. So there is one
// encoding of each value, and no two readers can disagree about it.
//
// It allocates nothing and reads each byte once.
func (d dialect) check(data []byte) error {
	rest, err := d.item(data, maxDepth)
	if err != nil {
		return fmt.Errorf("byte %d: %w", len(data)-len(rest), err)
	}
	if len(rest) != 0 {
		return fmt.Errorf("%d bytes after the item", len(rest))
	}
	return nil
}

// item returns what follows the first item of data; on error, where that was
// found.
func (d dialect) item(data []byte, depth int) ([]byte, error) {
	if depth == 0 {
		return data, fmt.Errorf("nested deeper than %d", maxDepth)
	}
	major, arg, rest, err := head(data)
	if err != nil {
		return data, err
	}
	switch major {
	case majorBytes, majorText:
		if arg > uint64(len(rest)) {
			return data, errTruncated
		}
		if major == majorText && !utf8.Valid(rest[:arg]) {
			return data, errors.New("text is not UTF-8")
		}
		return rest[arg:], nil
	case majorArray:
		return d.array(rest, arg, depth)
	case majorMap:
		return d.mapping(rest, arg, depth)
	case majorTag:
		return data, errors.New("tag where none belongs")
	case majorSimple:
		if arg == simpleNull && !d.null {
			return data, errors.New("null where none belongs")
		}
	}
	return rest, nil
}

func (d dialect) array(data []byte, n uint64, depth int) ([]byte, error) {
	// Every element takes a byte at least, so that n is bounded by the input.
	if n > uint64(len(data)) {
		return data, errTruncated
	}
	var err error
	for ; n > 0; n-- {
		if data, err = d.item(data, depth-1); err != nil {
			return data, err
		}
	}
	return data, nil
}

func (d dialect) mapping(data []byte, n uint64, depth int) ([]byte, error) {
	if n > uint64(len(data))/2 {
		return data, errTruncated
	}
	var previous []byte
	for i := uint64(0); i < n; i++ {
		if len(data) > 0 && !keyMajor(int(data[0]>>5)) {
			return data, errors.New("map key is neither integer nor text")
		}
		rest, err := d.item(data, depth-1)
		if err != nil {
			return rest, err
		}
		key := data[:len(data)-len(rest)]
		// Rising order finds keys that are out of order and keys that repeat.
		if i > 0 && bytes.Compare(previous, key) >= 0 {
			return data, errors.New("map key is repeated or out of order")
		}
		previous = key
		if data, err = d.item(rest, depth-1); err != nil {
			return data, err
		}
	}
	return data, nil
}

// keyMajor reports whether map keys may be of the major type: those that every
// implementation can use as a key.
func keyMajor(major int) bool {
	return major == majorUint || major == majorNegative || major == majorText
}

// head reads the initial byte and argument of an item in shortest form.
func head(data []byte) (major int, arg uint64, rest []byte, err error) {
	if len(data) == 0 {
		return 0, 0, nil, errTruncated
	}
	major, info := int(data[0]>>5), data[0]&0x1f
	rest = data[1:]
	if major == majorSimple {
		if info < simpleFalse || info > simpleNull {
			return 0, 0, nil, errors.New("neither false, true nor null")
		}
		return major, uint64(info), rest, nil
	}
	var size int
	var least uint64
	switch {
	case info < 24:
		return major, uint64(info), rest, nil
	case info == 24:
		size, least = 1, 24
	case info == 25:
		size, least = 2, 1<<8
	case info == 26:
		size, least = 4, 1<<16
	case info == 27:
		size, least = 8, 1<<32
	default:
		return 0, 0, nil, errors.New("indefinite or reserved length")
	}
	if len(rest) < size {
		return 0, 0, nil, errTruncated
	}
	var wide [8]byte
	copy(wide[8-size:], rest[:size])
	if arg = binary.BigEndian.Uint64(wide[:]); arg < least {
		return 0, 0, nil, errors.New("number is not in its shortest form")
	}
	return major, arg, rest[size:], nil
}
