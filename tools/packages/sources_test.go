// SPDX-License-Identifier: Apache-2.0

package packages

import (
	"os"
	"path/filepath"
	"reflect"
	"strings"
	"testing"
)

func testdata(t testing.TB, name string) string {
	t.Helper()
	b, err := os.ReadFile(filepath.Join("testdata", name))
	if err != nil {
		t.Fatal(err)
	}
	return string(b)
}

const debianKey = "/usr/share/keyrings/debian-archive-keyring.gpg"

func TestParseList(t *testing.T) {
	t.Parallel()
	got, err := parseList(testdata(t, "installer.list"))
	if err != nil {
		t.Fatal(err)
	}
	want := []source{
		{uris: []string{"http://mirror.example.org/debian/"}, suites: []string{"trixie"}, components: []string{"main", "non-free-firmware"}},
		{uris: []string{"http://security.example.org/debian-security"}, suites: []string{"trixie-security"}, components: []string{"main"}, signedBy: debianKey},
		{uris: []string{"http://mirror.example.org/debian/"}, suites: []string{"trixie-updates"}, components: []string{"main"}},
	}
	if !reflect.DeepEqual(got, want) {
		t.Errorf("parseList = %+v\nwant %+v", got, want)
	}
}

func TestParseListRejects(t *testing.T) {
	t.Parallel()
	for _, bad := range []string{
		"debian http://x bookworm main", "deb", "deb http://x", "deb [arch=amd64 http://x bookworm main",
		strings.Repeat("#\n", maxSourcesBytes),
	} {
		if got, err := parseList(bad); err == nil || got != nil {
			t.Errorf("parseList(%.40q) = %v, %v; want an error", bad, got, err)
		}
	}
}

func TestParseDeb822(t *testing.T) {
	t.Parallel()
	got, err := parseDeb822(testdata(t, "image.sources"))
	if err != nil {
		t.Fatal(err)
	}
	want := []source{
		{uris: []string{"http://mirror.example.org/debian"}, suites: []string{"bookworm", "bookworm-updates"}, components: []string{"main"}, signedBy: debianKey},
		{uris: []string{"http://mirror.example.org/debian-security"}, suites: []string{"bookworm-security"}, components: []string{"main"}, signedBy: debianKey},
	}
	if !reflect.DeepEqual(got, want) {
		t.Errorf("parseDeb822 = %+v\nwant %+v", got, want)
	}
}

func TestParseDeb822InlineKey(t *testing.T) {
	t.Parallel()
	got, err := parseDeb822(testdata(t, "inline-key.sources"))
	if err != nil {
		t.Fatal(err)
	}
	if len(got) != 1 {
		t.Fatalf("%d sources, want 1: the second stanza is disabled", len(got))
	}
	s := got[0]
	if len(s.uris) != 2 || s.checkValidUntil != "no" {
		t.Errorf("source is %+v", s)
	}
	// What is rendered must say the same, key included, but never that
	// unsigned content is trusted.
	text := s.render(s.suites, []string{"amd64"})
	again, err := parseDeb822(text)
	if err != nil {
		t.Fatalf("%v in\n%s", err, text)
	}
	s.components = []string{"main"}
	if !reflect.DeepEqual(again, []source{s}) {
		t.Errorf("reads back as %+v\nwant %+v", again, s)
	}
	if strings.Contains(strings.ToLower(text), "trusted") {
		t.Errorf("rendered source carries Trusted:\n%s", text)
	}
	if !strings.Contains(s.signedBy, "\n -----END PGP") {
		t.Errorf("key is %q", s.signedBy)
	}
}

func TestParseDeb822Rejects(t *testing.T) {
	t.Parallel()
	for _, bad := range []string{
		" continued\n", "no colon\n", "Types: deb\nURIs: http://x\n", "Types: deb\nSuites: a\n\n",
		"Types: " + strings.Repeat("x", maxSourcesLine), strings.Repeat("#\n", maxSourcesBytes),
	} {
		if got, err := parseDeb822(bad); err == nil || got != nil {
			t.Errorf("parseDeb822(%.40q) = %v, %v; want an error", bad, got, err)
		}
	}
}

func TestCandidates(t *testing.T) {
	t.Parallel()
	read := func(parse func(string) ([]source, error), name string) []source {
		s, err := parse(testdata(t, name))
		if err != nil {
			t.Fatal(err)
		}
		return s
	}
	installer := read(parseList, "installer.list")
	third := read(parseList, "third-party.list")
	image := read(parseDeb822, "image.sources")
	inline := read(parseDeb822, "inline-key.sources")
	for _, tc := range []struct {
		name     string
		sources  []source
		codename string
		want     []string // first URI of each candidate
	}{
		{"image", image, "bookworm", []string{"http://mirror.example.org/debian"}},
		{"another release", image, "trixie", nil},
		{"installer", installer, "trixie", []string{"http://mirror.example.org/debian/"}},
		{"third parties only: component and suite must fit", third, "trixie", []string{"https://apt.example.com"}},
		{"the unkeyed before the third party", append(third, installer...), "trixie", []string{"http://mirror.example.org/debian/", "https://apt.example.com"}},
		{"corporate mirror", inline, "trixie", []string{"https://artifacts.example.com/debian"}},
		{"none", nil, "trixie", nil},
		{"disc", []source{{uris: []string{"cdrom:[x]/"}, suites: []string{"trixie"}, components: []string{"main"}}}, "trixie", nil},
	} {
		t.Run(tc.name, func(t *testing.T) {
			t.Parallel()
			var got []string
			for _, a := range candidates(tc.sources, tc.codename) {
				got = append(got, a.main.uris[0])
			}
			if !reflect.DeepEqual(got, tc.want) {
				t.Errorf("candidates = %q, want %q", got, tc.want)
			}
		})
	}
}

func TestArchivesRender(t *testing.T) {
	t.Parallel()
	sources, err := parseDeb822(testdata(t, "image.sources"))
	if err != nil {
		t.Fatal(err)
	}
	a := candidates(sources, "bookworm")[0]
	want := `Types: deb
URIs: http://mirror.example.org/debian
Suites: bookworm bookworm-backports
Components: main
Architectures: amd64 arm64
Signed-By: /usr/share/keyrings/debian-archive-keyring.gpg

Types: deb
URIs: http://mirror.example.org/debian
Suites: bookworm-updates
Components: main
Architectures: amd64 arm64
Signed-By: /usr/share/keyrings/debian-archive-keyring.gpg

Types: deb
URIs: http://mirror.example.org/debian-security
Suites: bookworm-security
Components: main
Architectures: amd64 arm64
Signed-By: /usr/share/keyrings/debian-archive-keyring.gpg
`
	if got := a.render([]string{"amd64", "arm64"}, true); got != want {
		t.Errorf("render =\n%s\nwant\n%s", got, want)
	}
}

func FuzzParseList(f *testing.F) {
	for _, n := range []string{"installer.list", "third-party.list"} {
		f.Add(testdata(f, n))
	}
	f.Fuzz(func(t *testing.T, text string) { checkSources(t, parseList, text) })
}

func FuzzParseDeb822(f *testing.F) {
	for _, n := range []string{"image.sources", "inline-key.sources", "ubuntu.sources"} {
		f.Add(testdata(f, n))
	}
	f.Fuzz(func(t *testing.T, text string) { checkSources(t, parseDeb822, text) })
}

// checkSources holds for whatever the files say: an error comes without
// sources, and what is rendered for apt reads back as one stanza that says
// the same, so that no value can smuggle a field in.
func checkSources(t *testing.T, parse func(string) ([]source, error), text string) {
	t.Helper()
	sources, err := parse(text)
	if err != nil {
		if sources != nil {
			t.Errorf("error %v, and sources %v", err, sources)
		}
		return
	}
	for _, s := range sources {
		out := s.render([]string{"trixie"}, []string{"amd64"})
		again, err := parseDeb822(out)
		if err != nil || len(again) != 1 {
			t.Fatalf("rendered source reads back as %v, %v:\n%s", again, err, out)
		}
		s.suites, s.components = []string{"trixie"}, []string{"main"}
		if !reflect.DeepEqual(again[0], s) {
			t.Errorf("reads back as %+v\nwant %+v", again[0], s)
		}
	}
}
