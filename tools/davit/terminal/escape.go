// SPDX-License-Identifier: Apache-2.0

package terminal

import (
	"bytes"
	"fmt"
	"io"
	"unicode"
	"unicode/utf16"
	"unicode/utf8"
)

// Escape shows what is not plain text: controls but newline and tab, characters
// that are not seen or turn the direction of writing, and broken UTF-8. It
// writes characters the way JSON does, so that JSON stays JSON.
func Escape(s string) string { return string(appendEscaped(nil, []byte(s))) }

func appendEscaped(dst, src []byte) []byte {
	for len(src) > 0 {
		r, n := utf8.DecodeRune(src)
		switch {
		case r == utf8.RuneError && n == 1:
			dst = fmt.Appendf(dst, `\x%02x`, src[0])
		case r == '\n' || r == '\t' || unicode.IsGraphic(r):
			dst = append(dst, src[:n]...)
		default:
			for _, unit := range utf16.AppendRune(nil, r) {
				dst = fmt.Appendf(dst, `\u%04x`, unit)
			}
		}
		src = src[n:]
	}
	return dst
}

// Escaper is a writer that escapes as Escape does.
type Escaper struct {
	w    io.Writer
	held []byte // the beginning of a character
}

// NewEscaper makes an escaper in front of w. A character that the input does not
// finish is lost.
func NewEscaper(w io.Writer) *Escaper { return &Escaper{w: w} }

// Write takes all of p; an error is w's.
func (e *Escaper) Write(p []byte) (int, error) {
	all := append(e.held, p...)
	whole := len(all)
	for i := max(0, len(all)-utf8.UTFMax+1); i < len(all); i++ {
		if utf8.RuneStart(all[i]) && !utf8.FullRune(all[i:]) {
			whole = i
			break
		}
	}
	e.held = bytes.Clone(all[whole:])
	if _, err := e.w.Write(appendEscaped(nil, all[:whole])); err != nil {
		return 0, err
	}
	return len(p), nil
}
