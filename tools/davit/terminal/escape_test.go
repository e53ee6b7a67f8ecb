// SPDX-License-Identifier: Apache-2.0

package terminal

import (
	"bytes"
	"testing"
	"unicode"
)

func TestEscape(t *testing.T) {
	for _, tt := range []struct{ in, want string }{
		{"plain größe 試 🙂\n\tx", "plain größe 試 🙂\n\tx"},
		{"\x1b]52;c;x\x07", `\u001b]52;c;x\u0007`},
		{"a\rb\x7f\x00", `a\u000db\u007f\u0000`},
		{"\u009b6n\u202e\u200b\U000e0001", `\u009b6n\u202e\u200b\udb40\udc01`},
		{"\x9b6n\xe2\x82", `\x9b6n\xe2\x82`},
	} {
		if got := Escape(tt.in); got != tt.want {
			t.Errorf("got %q, want %q", got, tt.want)
		}
	}
}

func FuzzEscaper(f *testing.F) {
	f.Add([]byte("größe\x1b[6n\u009b\n"), uint(1))
	f.Fuzz(func(t *testing.T, in []byte, size uint) {
		in = append(in, '\n') // finishes whatever is in the middle
		whole := Escape(string(in))
		for _, r := range whole {
			if r != '\n' && r != '\t' && (unicode.IsControl(r) || unicode.Is(unicode.Cf, r)) {
				t.Errorf("%q holds %U", whole, r)
			}
		}
		var out bytes.Buffer
		e := NewEscaper(&out)
		for _, p := range pieces(in, size) {
			if n, err := e.Write(p); n != len(p) || err != nil {
				t.Fatalf("write: %d of %d, %v", n, len(p), err)
			}
		}
		if out.String() != whole {
			t.Errorf("in pieces %q, whole %q", out.String(), whole)
		}
	})
}
