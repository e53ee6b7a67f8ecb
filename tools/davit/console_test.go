// SPDX-License-Identifier: Apache-2.0

package main

import (
	"bytes"
	"encoding/json"
	"fmt"
	"io"
	"net"
	"path/filepath"
	"strings"
	"testing"

	"github.com/davit-dpu/davit/tools/rig"
)

// steering colours, asks the terminal for its title and fills its clipboard.
const steering = "\x1b[31mlogin\x1b[m: \x1b[21t\x1b]52;c;ZWNobw==\x07"

func TestConsoleFilters(t *testing.T) {
	for _, tt := range []struct {
		name, want string
		flags      []string
	}{
		{"by default", "\x1b[31mlogin\x1b[m: ", nil},
		{"raw", steering, []string{"--raw"}},
	} {
		t.Run(tt.name, func(t *testing.T) {
			dir := t.TempDir()
			line := filepath.Join(dir, "line")
			ln, err := net.Listen("unix", line)
			if err != nil {
				t.Fatal(err)
			}
			defer ln.Close()
			go func() {
				if conn, err := ln.Accept(); err == nil {
					_, _ = io.WriteString(conn, steering)
					_ = conn.Close()
				}
			}()
			card := filepath.Join(dir, "card.json")
			if err := (&rig.Contact{CardConsole: line}).Save(card); err != nil {
				t.Fatal(err)
			}
			var out bytes.Buffer
			cmd := root()
			cmd.SetArgs(append([]string{"--card", card, "console", "card"}, tt.flags...))
			cmd.SetIn(strings.NewReader(""))
			cmd.SetOut(&out)
			if err := cmd.ExecuteContext(t.Context()); err != nil {
				t.Fatal(err)
			}
			if out.String() != tt.want {
				t.Errorf("got %q, want %q", out.String(), tt.want)
			}
		})
	}
}

// TestPrintEscapes: what is printed for people and for machines does not steer,
// and machines still read what was said.
func TestPrintEscapes(t *testing.T) {
	said := map[string]string{"reason": steering + "\u009b6n\u202e\x7f\U000e0001"}
	for _, o := range []options{{}, {json: true}} {
		var out bytes.Buffer
		err := o.print(&out, said, func(w io.Writer) { fmt.Fprintf(w, "reason\t%s\n", said["reason"]) })
		if err != nil {
			t.Fatal(err)
		}
		if strings.ContainsAny(out.String(), "\x1b\u009b\u202e\x7f\a") || !strings.Contains(out.String(), `login`) {
			t.Errorf("json %v: got %q", o.json, out.String())
		}
		var got map[string]string
		if err := json.Unmarshal(out.Bytes(), &got); o.json && (err != nil || got["reason"] != said["reason"]) {
			t.Errorf("read back: %q, %v", got, err)
		}
	}
}
