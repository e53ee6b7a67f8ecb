// SPDX-License-Identifier: Apache-2.0

// Package terminal keeps what others write from steering the terminal of who
// reads it. It knows two kinds of text:
//
//	Escape, NewEscaper   lines, such as a status or a log: no control at all
//	NewFilter            a console: what draws passes, the rest does not
//
// A console is a program for a terminal: it moves the cursor, colours, and uses
// the other screen. But terminals also obey sequences with which a guest would
// reach beyond its window: into the clipboard (OSC 52), the title, files and
// printers (DCS, media copy), the keyboard's settings, and, worst, into the
// input: a terminal that is asked for its state, its answerback or its title
// answers as if the user had typed, wherever the keys go by then.
//
// So Filter has a list of what passes (filter.go), and drops all else, whole
// sequences at a time:
//
//	          ┌────────────── whole, or broken off ──────────────┐
//	          ▼                                                  │
//	     ┌────────┐  ESC  ┌────────┐  [   ┌───────────────────┐  │
//	────►│ ground ├──────►│ escape ├─────►│ control sequence  ├──┤
//	     └────────┘       └───┬────┘      └───────────────────┘  │
//	                          │ ] P X ^ _ k   ┌────────┐         │
//	                          └──────────────►│ string ├─────────┘
//	                                          └────────┘ BEL, ESC, end of line
//
// The sequences are those of ECMA-48, VT510 and xterm (ctlseqs). What comes out
// is UTF-8, and the same in whatever pieces the input came. The terminal is
// taken to expect UTF-8: to one of 8 bits a letter's second byte may be a
// control.
//
// The package does not know where text comes from or where terminals are.
package terminal
