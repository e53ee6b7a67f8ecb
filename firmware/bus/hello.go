// SPDX-License-Identifier: Apache-2.0

package bus

import (
	"encoding/binary"
	"fmt"
	"strings"
)

// Protocol versions this implementation speaks. Rules of change: a field or
// frame type is never removed or given another meaning within a version; a new
// meaning raises VersionCurrent; VersionMin rises only when a release no longer
// speaks the old one.
const (
	VersionMin     = 1
	VersionCurrent = 1
)

// Role is which end of the bus a session is.
type Role uint8

// Roles.
const (
	Card Role = 1
	Host Role = 2
)

// String implements fmt.Stringer.
func (r Role) String() string {
	switch r {
	case Card:
		return "card"
	case Host:
		return "host"
	}
	return fmt.Sprintf("role %d", uint8(r))
}

// Bounds of texts on the wire, in bytes.
const (
	MaxBuild  = 64
	MaxReason = 256
)

const helloFixed = 2 + 2 + 1 + 3 + 8 + 8 + 8 + 1

// hello is the payload of a HELLO frame.
type hello struct {
	min, current uint16
	role         Role
	nonce        uint64 // the sender's, random for each session, never 0
	echo         uint64 // the nonce last heard from the peer; 0 for none
	pool         uint64 // bytes of the host's memory pool as the sender sees it; 0 for none
	build        string
}

func (h hello) append(dst []byte) []byte {
	le := binary.LittleEndian
	dst = le.AppendUint16(dst, h.min)
	dst = le.AppendUint16(dst, h.current)
	dst = append(dst, byte(h.role), 0, 0, 0)
	dst = le.AppendUint64(dst, h.nonce)
	dst = le.AppendUint64(dst, h.echo)
	dst = le.AppendUint64(dst, h.pool)
	dst = append(dst, byte(len(h.build)))
	return append(dst, h.build...)
}

// parseHello reads a HELLO. Bytes behind the known fields are allowed: a later
// version may append fields.
func parseHello(b []byte) (hello, error) {
	if len(b) < helloFixed || len(b) < helloFixed+int(b[helloFixed-1]) {
		return hello{}, fmt.Errorf("hello of %d bytes: cut short", len(b))
	}
	le := binary.LittleEndian
	h := hello{
		min: le.Uint16(b), current: le.Uint16(b[2:]), role: Role(b[4]),
		nonce: le.Uint64(b[8:]), echo: le.Uint64(b[16:]), pool: le.Uint64(b[24:]),
		build: string(b[helloFixed : helloFixed+int(b[helloFixed-1])]),
	}
	switch {
	case h.role != Card && h.role != Host:
		return hello{}, fmt.Errorf("hello: unknown %s", h.role)
	case h.nonce == 0:
		return hello{}, fmt.Errorf("hello: nonce is 0")
	case h.min == 0 || h.current < h.min:
		return hello{}, fmt.Errorf("hello: versions %d to %d", h.min, h.current)
	case len(h.build) > MaxBuild || clean(h.build, MaxBuild) != h.build:
		return hello{}, fmt.Errorf("hello: build is not at most %d printable characters", MaxBuild)
	}
	return h, nil
}

// agree picks the highest version both ends speak.
func (h hello) agree() (uint16, error) {
	v := min(h.current, VersionCurrent)
	if v < h.min || v < VersionMin {
		return 0, fmt.Errorf("%w: the peer speaks %d to %d, this end %d to %d", ErrVersion, h.min, h.current, VersionMin, VersionCurrent)
	}
	return v, nil
}

// clean makes a text fit for a log line or a status: printable ASCII, bounded.
func clean(s string, limit int) string {
	s = s[:min(len(s), limit)]
	return strings.Map(func(r rune) rune {
		if r < 0x20 || r > 0x7e {
			return '?'
		}
		return r
	}, s)
}
