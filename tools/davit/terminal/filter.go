// SPDX-License-Identifier: Apache-2.0

package terminal

import (
	"io"
	"slices"
	"strconv"
	"strings"
	"unicode/utf8"
)

const (
	esc = 0x1b
	can = 0x18 // breaks a sequence off
	sub = 0x1a // the same
	del = 0x7f
)

// controls that pass: they ring, move the cursor and switch between two sets of
// characters. ENQ is not among them: it asks for the answerback.
const controls = "\a\b\t\n\v\f\r\x0e\x0f"

// escapes that pass, without the ESC.
var escapes = []string{
	"7", "8", // save and restore the cursor
	"=", ">", // keypad
	"D", "E", "H", "M", // index, next line, set tab, reverse index
	"c",                                // reset
	"(0", "(A", "(B", ")0", ")A", ")B", // line drawing, UK, ASCII
	"#8", // alignment pattern
}

// finals of control sequences that pass with any numbers: erase, insert, delete,
// move, scroll, repeat, colours, margins, tabs.
const finals = "@ABCDEFGHIJKLMPSTXZ`abdefgmrsu"

// shaped are control sequences that pass with bytes before the final one: the
// cursor's shape, and a soft reset.
var shaped = []string{" q", "!p"}

// modes that may be set and reset, by their prefix. Of those that change the keys
// only what full-screen programs need is among them, cursor keys and keypad, and
// no locked keyboard or newline mode; nor is what has the terminal report by
// itself: mouse, focus, size.
var modes = map[string][]int{
	"": {4}, // insert
	"?": {
		1,                   // cursor keys
		5, 6, 7, 12, 25, 45, // reverse, origin, wrap, blink, cursor, reverse wrap
		47, 1047, 1048, 1049, // other screen
		66,   // keypad
		2004, // bracketed paste: the user's own text, marked
		2026, // synchronized output
	},
}

// maxSequence bounds what is kept of a control sequence; a longer one is
// dropped. Colours of 24 bits, several at once, have 40 bytes.
const maxSequence = 128

// state is where in the input the filter is; drawn in doc.go.
type state int

const (
	ground   state = iota
	escape         // after ESC, and bytes in between
	sequence       // after ESC [
	text           // in a string
)

// Filter is a writer that passes on what a console may do to a terminal.
type Filter struct {
	w     io.Writer
	state state
	held  []byte // ground: the beginning of a character; else the sequence without ESC and [
	out   []byte
}

// NewFilter makes a filter in front of w. What it holds back at the end of the
// input is an unfinished character or sequence.
func NewFilter(w io.Writer) *Filter { return &Filter{w: w} }

// Write takes all of p; an error is w's.
func (f *Filter) Write(p []byte) (int, error) {
	f.out = f.out[:0]
	for _, b := range p {
		f.step(b)
	}
	if len(f.out) == 0 {
		return len(p), nil
	}
	if _, err := f.w.Write(f.out); err != nil {
		return 0, err
	}
	return len(p), nil
}

// step takes one byte.
func (f *Filter) step(b byte) {
	if f.state == ground && (len(f.held) > 0 || b >= utf8.RuneSelf) {
		f.character(b)
		return
	}
	switch {
	case b == esc:
		f.enter(escape)
	case b == can || b == sub:
		f.enter(ground)
	case f.state == text:
		if b == '\a' || b == '\n' || b == '\r' { // a string that nobody ends must not swallow the console
			f.enter(ground)
		}
		if b == '\n' || b == '\r' {
			f.out = append(f.out, b)
		}
	case b < ' ': // terminals obey it in the middle of a sequence, too
		if strings.IndexByte(controls, b) >= 0 {
			f.out = append(f.out, b)
		}
	case b == del:
	case b >= utf8.RuneSelf: // no part of a sequence
		f.enter(ground)
		f.character(b)
	case f.state == escape:
		f.escape(b)
	case f.state == sequence:
		f.sequence(b)
	default:
		f.out = append(f.out, b)
	}
}

func (f *Filter) enter(s state) { f.state, f.held = s, f.held[:0] }

// character collects the bytes of a character that has several. One that is
// broken is replaced, so that no single byte passes that some terminals take for
// a control, and so are the controls that have two bytes.
func (f *Filter) character(b byte) {
	if len(f.held) > 0 && utf8.RuneStart(b) { // it is cut short
		f.held = f.held[:0]
		f.out = utf8.AppendRune(f.out, utf8.RuneError)
		f.step(b)
		return
	}
	f.held = append(f.held, b)
	if !utf8.FullRune(f.held) {
		return
	}
	r, _ := utf8.DecodeRune(f.held)
	f.held = f.held[:0]
	if r >= 0x80 && r < 0xa0 {
		r = utf8.RuneError
	}
	f.out = utf8.AppendRune(f.out, r)
}

// escape takes a byte of a sequence that is not a control sequence.
func (f *Filter) escape(b byte) {
	if len(f.held) == 0 {
		switch b {
		case '[':
			f.enter(sequence)
			return
		case ']', 'P', 'X', '^', '_', 'k': // k: the title, of screen and tmux
			f.enter(text)
			return
		}
	}
	f.hold(b)
	if b < '0' { // more to come
		return
	}
	if slices.Contains(escapes, string(f.held)) {
		f.out = append(append(f.out, esc), f.held...)
	}
	f.enter(ground)
}

// sequence takes a byte of a control sequence.
func (f *Filter) sequence(b byte) {
	f.hold(b)
	if b < '@' { // more to come
		return
	}
	if len(f.held) < maxSequence && draws(string(f.held)) {
		f.out = append(append(f.out, esc, '['), f.held...)
	}
	f.enter(ground)
}

// hold keeps a byte; the last place means that it was too long.
func (f *Filter) hold(b byte) {
	if len(f.held) < maxSequence {
		f.held = append(f.held, b)
	}
}

// draws decides on a control sequence, without ESC and [.
func draws(seq string) bool {
	rest := strings.TrimLeft(seq, "0123456789;:")
	numbers := seq[:len(seq)-len(rest)]
	if len(rest) == 1 && strings.Contains(finals, rest) || slices.Contains(shaped, rest) {
		return true
	}
	prefix, final := "", rest
	if strings.HasPrefix(seq, "?") {
		prefix = "?"
		final = strings.TrimLeft(seq[1:], "0123456789;")
		numbers = seq[1 : len(seq)-len(final)]
	}
	if prefix == "?" && (final == "J" || final == "K") { // erase what is not protected
		return true
	}
	if final != "h" && final != "l" {
		return false
	}
	for mode := range strings.SplitSeq(numbers, ";") {
		n, err := strconv.Atoi(mode)
		if err != nil || !slices.Contains(modes[prefix], n) {
			return false
		}
	}
	return true
}
