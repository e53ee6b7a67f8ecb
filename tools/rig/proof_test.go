// SPDX-License-Identifier: Apache-2.0

package rig

import (
	"strings"
	"testing"
)

const digest = "e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855"

func TestReadProof(t *testing.T) {
	line := "DAVIT-PROOF nonce=ab disk=vda offset=4096 length=4096 sha256=" + digest + "\r\n"
	tests := []struct {
		name, console string
		want          int // extents; 0: an error
	}{
		{"whole", "[    1.0] noise\r\n" + line + line + "DAVIT-PROOF nonce=ab end\r\n", 2},
		{"behind a kernel's half line", "random: " + line + "DAVIT-PROOF nonce=ab end\n", 1},
		{"another run's", strings.ReplaceAll(line, "nonce=ab", "nonce=cd") + "DAVIT-PROOF nonce=cd end\n", 0},
		{"cut", line, 0},
		{"nothing written", "DAVIT-PROOF nonce=ab end\n", 0},
		{"guest's error", line + "DAVIT-PROOF nonce=ab error: read back other bytes\n", 0},
		{"no digest", "DAVIT-PROOF nonce=ab disk=vda offset=1 length=1 sha256=zz\nDAVIT-PROOF nonce=ab end\n", 0},
		{"negative", "DAVIT-PROOF nonce=ab disk=vda offset=-1 length=1 sha256=" + digest + "\nDAVIT-PROOF nonce=ab end\n", 0},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			got, err := ReadProof(strings.NewReader(tt.console), "ab")
			if len(got) != tt.want || (err == nil) != (tt.want > 0) {
				t.Errorf("got %d extents, %v; want %d", len(got), err, tt.want)
			}
		})
	}
}

func FuzzReadProof(f *testing.F) {
	f.Add("DAVIT-PROOF nonce=ab disk=vda offset=4096 length=4096 sha256=" + digest + "\nDAVIT-PROOF nonce=ab end\n")
	f.Fuzz(func(t *testing.T, console string) {
		got, err := ReadProof(strings.NewReader(console), "ab")
		if (err == nil) != (len(got) > 0) {
			t.Fatalf("got %d extents and %v", len(got), err)
		}
	})
}
