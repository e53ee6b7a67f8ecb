// SPDX-License-Identifier: Apache-2.0

package terminal

import (
	"bytes"
	"errors"
	"regexp"
	"strings"
	"testing"
	"unicode/utf8"
)

// filtered writes the input in pieces.
func filtered(t *testing.T, pieces ...[]byte) string {
	t.Helper()
	var out bytes.Buffer
	f := NewFilter(&out)
	for _, p := range pieces {
		if n, err := f.Write(p); n != len(p) || err != nil {
			t.Fatalf("write: %d of %d, %v", n, len(p), err)
		}
	}
	return out.String()
}

func TestFilter(t *testing.T) {
	for _, tt := range []struct{ name, in, want string }{
		{"text", "login: größe 試 🙂\r\n\t\b\a", "login: größe 試 🙂\r\n\t\b\a"},
		{"colours", "\x1b[1;31mred\x1b[38;2;1;2;3m\x1b[38:5:9m\x1b[m", "\x1b[1;31mred\x1b[38;2;1;2;3m\x1b[38:5:9m\x1b[m"},
		{"cursor", "\x1b[H\x1b[2J\x1b[10;20H\x1b[3A\x1b[K\x1b[?25l\x1b[2 q\x1b7\x1b8", "\x1b[H\x1b[2J\x1b[10;20H\x1b[3A\x1b[K\x1b[?25l\x1b[2 q\x1b7\x1b8"},
		{"other screen", "\x1b[?1049h\x1b[1;24r\x1b[?1;2004h\x1b[?1049l", "\x1b[?1049h\x1b[1;24r\x1b[?1;2004h\x1b[?1049l"},
		{"line drawing", "\x1b(0\x0elqk\x0f\x1b(B", "\x1b(0\x0elqk\x0f\x1b(B"},
		{"reset", "\x1bc\x1b[!p", "\x1bc\x1b[!p"},
		{"control inside a sequence", "\x1b[3\n1m", "\n\x1b[31m"},

		{"clipboard", "a\x1b]52;c;ZWNobw==\x07b", "ab"},
		{"clipboard, other end", "a\x1b]52;c;?\x1b\\b", "ab"},
		{"title", "\x1b]0;root@bank\x07", ""},
		{"title of screen", "\x1bkrm -rf\x1b\\x", "x"},
		{"link", "\x1b]8;;http://x\x1b\\click\x1b]8;;\x1b\\", "click"},
		{"device control", "\x1bP$q\"p\x1b\\x", "x"},
		{"other strings", "\x1bXa\x1b\\\x1b^b\x1b\\\x1b_c\x1b\\x", "x"},
		{"string without end", "\x1b]0;lost\r\nlogin: ", "\r\nlogin: "},
		{"string broken off", "\x1b]0;lost\x18x", "x"},
		{"enquiry", "a\x05b\x1b[\x056n", "ab"},
		{"position and status", "\x1b[5n\x1b[6n\x1b[?6n", ""},
		{"device attributes", "\x1b[c\x1b[0c\x1b[>c\x1b[=c\x1bZ", ""},
		{"version", "\x1b[>q", ""},
		{"window", "\x1b[21t\x1b[20t\x1b[14t\x1b[8;9;9t\x1b[22;0t", ""},
		{"modes asked for", "\x1b[?2004$p\x1b[4$p", ""},
		{"checksum, parameters", "\x1b[1;1;1;1;1;1*y\x1b[x", ""},
		{"printer", "\x1b[5i\x1b[?5i", ""},
		{"keyboard", "\x1b[2h\x1b[20h\x1b[>4;2m\x1b[>1u\x1b[?u\x1b[?1004h\x1b[?2048h", ""},
		{"mouse", "\x1b[?1000h\x1b[?1003;1006h", ""},
		{"a bad mode among good ones", "\x1b[?25;1000h", ""},
		{"modes restored", "\x1b[?1000r\x1b[?1000s", ""},
		{"other character sets", "\x1b%@\x1b%G\x1b F\x1b G", ""},
		{"controls of two bytes", "\u009b6n\u009d52;c;x\u0090", "\ufffd6n\ufffd52;c;x\ufffd"},
		{"controls of 8 bits", "\x9b6n\x9d0;x", "\ufffd6n\ufffd0;x"},
		{"broken characters", "\xc3\x1b[6nx\xe2\x82y\xff", "\ufffdx\ufffdy\ufffd"},
		{"character in a sequence", "\x1b[3é1m", "é1m"},
		{"too long", "\x1b[" + strings.Repeat("1;", 100) + "mx", "x"},
		{"sequence anew", "\x1b[3\x1b[31mx", "\x1b[31mx"},
		{"nothing for the eye", "\x00\x11\x13\x7fx", "x"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			if got := filtered(t, []byte(tt.in)); got != tt.want {
				t.Errorf("got %q, want %q", got, tt.want)
			}
		})
	}
}

func TestWriteErrors(t *testing.T) {
	for name, w := range map[string]interface{ Write([]byte) (int, error) }{
		"filter": NewFilter(broken{}), "escaper": NewEscaper(broken{}),
	} {
		if n, err := w.Write([]byte("x")); n != 0 || !errors.Is(err, errBroken) {
			t.Errorf("%s: got %d, %v", name, n, err)
		}
	}
}

var errBroken = errors.New("broken")

type broken struct{}

func (broken) Write([]byte) (int, error) { return 0, errBroken }

// harmless is what may begin with ESC in the output, said in another way than
// in the filter.
var harmless = regexp.MustCompile(`\x1b(?:` +
	`[78=>DEHMc]|[()][0AB]|#8|` +
	`\[(?:[0-9;:]*[@A-MPSTXZ` + "`" + `abd-gmrsu]|[0-9;:]*(?: q|!p)|\?[0-9;]*[JK]|` +
	`4(?:;0*4)*[hl]|0+4(?:;0*4)*[hl]|\?(?:0*(?:1|5|6|7|12|25|45|47|66|1047|1048|1049|2004|2026);?)+[hl]))`)

// checkHarmless is the promise of the filter.
func checkHarmless(t *testing.T, out string) {
	t.Helper()
	if !utf8.ValidString(out) {
		t.Errorf("%q is no UTF-8", out)
	}
	for _, r := range harmless.ReplaceAllString(out, "") {
		switch {
		case strings.ContainsRune("\a\b\t\n\v\f\r\x0e\x0f", r):
		case r < ' ' || r >= 0x7f && r < 0xa0:
			t.Errorf("%q holds %U outside of what is harmless", out, r)
		}
	}
}

func FuzzFilter(f *testing.F) {
	f.Add([]byte("\x1b[1;31mred\x1b[?1049h é\x1b(0"), uint(3))
	f.Add([]byte("\x1b]52;c;ZWNobw==\x07\x1bP$q\"p\x1b\\\x1b[21t\x05\x1b[6n\x1b[c"), uint(1))
	f.Add([]byte("\x1b]0;lost\r\n\xc2\x9b6n\xe2\x82"), uint(2))
	f.Fuzz(func(t *testing.T, in []byte, size uint) {
		whole := filtered(t, in)
		checkHarmless(t, whole)
		if got := filtered(t, pieces(in, size)...); got != whole {
			t.Errorf("in pieces %q, whole %q", got, whole)
		}
		if again := filtered(t, []byte(whole)); again != whole {
			t.Errorf("filtered again %q, once %q", again, whole)
		}
	})
}

// pieces cuts p into pieces of a size.
func pieces(p []byte, size uint) [][]byte {
	n := int(size%7) + 1
	var all [][]byte
	for ; len(p) > n; p = p[n:] {
		all = append(all, p[:n])
	}
	return append(all, p)
}
