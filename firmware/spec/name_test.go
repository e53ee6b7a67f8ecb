// SPDX-License-Identifier: Apache-2.0

package spec

import (
	"regexp"
	"strings"
	"testing"
)

// names is what CheckName accepts, said in another way.
var names = regexp.MustCompile(`^[a-z0-9]([a-z0-9._-]{0,61}[a-z0-9])?$`)

func TestCheckName(t *testing.T) {
	t.Parallel()
	for _, name := range []string{
		"", "a", "0", ".", "-", "a-", "-a", "a.b", "a..b", "a.-b", "A", "aB", "é", "a/b", "a\x00", "a\n", "web_1.eu-2",
		strings.Repeat("a", 63), strings.Repeat("a", 64), strings.Repeat("a", 62) + "-",
	} {
		checkOne(t, name)
	}
}

func FuzzCheckName(f *testing.F) {
	f.Add("web-1")
	f.Add("../x")
	f.Fuzz(checkOne)
}

func checkOne(t *testing.T, name string) {
	t.Helper()
	want := names.MatchString(name) && !strings.Contains(name, "..")
	if got := CheckName("instance", name) == nil; got != want {
		t.Errorf("name %q accepted: %v, want %v", name, got, want)
	}
}
