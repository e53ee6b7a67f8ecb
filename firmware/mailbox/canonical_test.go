// SPDX-License-Identifier: Apache-2.0

package mailbox

import (
	"bytes"
	"encoding/hex"
	"strings"
	"testing"
)

func unhex(t testing.TB, s string) []byte {
	t.Helper()
	b, err := hex.DecodeString(strings.ReplaceAll(s, " ", ""))
	if err != nil {
		t.Fatal(err)
	}
	return b
}

func TestCanonical(t *testing.T) {
	t.Parallel()
	for _, tt := range []struct {
		name, hex string
		ok        bool
	}{
		{"zero", "00", true},
		{"24", "1818", true},
		{"23 in two bytes", "1817", false},
		{"255 in three bytes", "1900ff", false},
		{"65535 in five bytes", "1a0000ffff", false},
		{"2^32-1 in nine bytes", "1b00000000ffffffff", false},
		{"2^64-1", "1bffffffffffffffff", true},
		{"negative", "3863", true},
		{"reserved length", "1c", false},
		{"indefinite bytes", "5f4100ff", false},
		{"indefinite map", "bfff", false},
		{"break", "ff", false},
		{"empty map", "a0", true},
		{"map in order", "a2 01 00 02 00", true},
		{"map by length of key", "a2 1818 00 20 00", true},
		{"map out of order", "a2 02 00 01 00", false},
		{"map with a key twice", "a2 01 00 01 01", false},
		{"map announced too large", "bb7fffffffffffffff", false},
		{"map cut short", "a2 01 00", false},
		{"map with bytes as key", "a1 41 00 00", false},
		{"map with true as key", "a1 f5 00", false},
		{"map with a list as key", "a1 80 00", false},
		{"array announced too large", "9b7fffffffffffffff", false},
		{"bytes announced too large", "5b7fffffffffffffff 00", false},
		{"bytes cut short", "42 00", false},
		{"text", "62 c3a9", true},
		{"text not UTF-8", "61 ff", false},
		{"true", "f5", true},
		{"null", "f6", false},
		{"null inside", "81f6", false},
		{"undefined", "f7", false},
		{"simple value", "f0", false},
		{"simple value in two bytes", "f820", false},
		{"half float", "f90000", false},
		{"double", "fb0000000000000000", false},
		{"tag", "c000", false},
		{"two items", "0000", false},
		{"nothing", "", false},
		{"deep", strings.Repeat("81", 15) + "00", true},
		{"too deep", strings.Repeat("81", 16) + "00", false},
	} {
		if err := commandDialect.check(unhex(t, tt.hex)); (err == nil) != tt.ok {
			t.Errorf("%s: got %v, want ok %v", tt.name, err, tt.ok)
		}
	}
	if err := resultDialect.check(unhex(t, "a1 01 f6")); err != nil {
		t.Errorf("null in a result: %v", err)
	}
}

// FuzzCanonical compares our reading with the CBOR library's: whatever passes
// must decode there, and encode to the same bytes again.
func FuzzCanonical(f *testing.F) {
	for _, s := range []string{"a0", "a301020304056161", "8301f5f6", "1bffffffffffffffff", "3bffffffffffffffff", "a2616100626161f4", "5818" + strings.Repeat("00", 24), "a141000f"} {
		f.Add(unhex(f, s))
	}
	f.Fuzz(func(t *testing.T, data []byte) {
		if resultDialect.check(data) != nil {
			return
		}
		m := codecs()
		if m.err != nil {
			t.Fatal(m.err)
		}
		if err := m.strict.Wellformed(data); err != nil {
			t.Fatalf("%x passes but is not well-formed: %v", data, err)
		}
		// Go's maps here hold text keys only, and its integers not every
		// integer; what they hold must come back.
		var v any
		if err := m.strict.Unmarshal(data, &v); err != nil {
			return
		}
		again, err := encode(v)
		if err != nil {
			t.Fatalf("%x: %v", data, err)
		}
		if !bytes.Equal(again, data) {
			t.Fatalf("%x passes but encodes to %x", data, again)
		}
	})
}
