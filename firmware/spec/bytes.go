// SPDX-License-Identifier: Apache-2.0

package spec

import (
	"fmt"
	"math"
	"strconv"
	"strings"
)

// Bytes is a size in bytes. Its text form is a decimal number with an optional
// binary unit (KiB, MiB, GiB, TiB); its CBOR form is an unsigned integer.
type Bytes uint64

// Binary units, largest first: String picks the first that divides the size.
const (
	KiB Bytes = 1 << 10
	MiB Bytes = 1 << 20
	GiB Bytes = 1 << 30
	TiB Bytes = 1 << 40
)

var byteUnits = []struct {
	name string
	size Bytes
}{{"TiB", TiB}, {"GiB", GiB}, {"MiB", MiB}, {"KiB", KiB}, {"", 1}}

// ParseBytes reads "512", "64KiB", "256MiB", "4GiB" or "1TiB". Fractions,
// decimal units and signs are refused: a size is exact.
func ParseBytes(text string) (Bytes, error) {
	for _, u := range byteUnits {
		digits, ok := strings.CutSuffix(text, u.name)
		if !ok {
			continue
		}
		n, err := strconv.ParseUint(digits, 10, 64)
		if err != nil {
			return 0, fmt.Errorf("size %q: want a number with an optional KiB, MiB, GiB or TiB", text)
		}
		if n > math.MaxUint64/uint64(u.size) {
			return 0, fmt.Errorf("size %q: larger than 2^64 bytes", text)
		}
		return Bytes(n) * u.size, nil
	}
	return 0, fmt.Errorf("size %q: empty", text)
}

// String gives the shortest exact form, for example "256MiB".
func (b Bytes) String() string {
	for _, u := range byteUnits {
		if b != 0 && b%u.size == 0 {
			return strconv.FormatUint(uint64(b/u.size), 10) + u.name
		}
	}
	return "0"
}

// MarshalText implements encoding.TextMarshaler, for YAML and JSON.
func (b Bytes) MarshalText() ([]byte, error) { return []byte(b.String()), nil }

// UnmarshalText implements encoding.TextUnmarshaler, for YAML and JSON.
func (b *Bytes) UnmarshalText(text []byte) error {
	v, err := ParseBytes(string(text))
	if err != nil {
		return err
	}
	*b = v
	return nil
}
