// SPDX-License-Identifier: Apache-2.0

package packages

import (
	"errors"
	"os"
	"path/filepath"
	"reflect"
	"strings"
	"testing"
)

func TestParseOSRelease(t *testing.T) {
	t.Parallel()
	for name, want := range map[string]distribution{
		"os-release.debian12": {id: "debian", codename: "bookworm", name: "Debian GNU/Linux 12 (bookworm)"},
		"os-release.ubuntu24": {id: "ubuntu", like: []string{"debian"}, codename: "noble", name: "Ubuntu 24.04.2 LTS"},
	} {
		if got := parseOSRelease(testdata(t, name)); !reflect.DeepEqual(got, want) {
			t.Errorf("%s: %+v, want %+v", name, got, want)
		}
	}
	d := parseOSRelease("ID='alpine'\nrubbish\nVERSION_CODENAME=\"\n")
	if d.id != "alpine" || d.codename != `"` {
		t.Errorf("odd quotes: %+v", d)
	}
}

func TestReadOSReleaseElsewhere(t *testing.T) {
	t.Parallel()
	root := t.TempDir()
	if d, err := readOSRelease(root); err != nil || d.id != "" || d.name == "" {
		t.Errorf("without os-release: %+v, %v", d, err)
	}
	writeFile(t, filepath.Join(root, "usr/lib/os-release"), "ID=debian\nVERSION_CODENAME=trixie\n", 0o644)
	if d, err := readOSRelease(root); err != nil || d.codename != "trixie" {
		t.Errorf("in /usr/lib: %+v, %v", d, err)
	}
}

func TestReadSources(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	if got, err := readSources(dir); err != nil || got != nil {
		t.Errorf("empty folder: %v, %v", got, err)
	}
	writeFile(t, filepath.Join(dir, "sources.list"), testdata(t, "installer.list"), 0o644)
	writeFile(t, filepath.Join(dir, "sources.list.d/third.list"), testdata(t, "third-party.list"), 0o644)
	writeFile(t, filepath.Join(dir, "sources.list.d/debian.sources"), testdata(t, "image.sources"), 0o644)
	writeFile(t, filepath.Join(dir, "sources.list.d/off.list.disabled"), "rubbish", 0o644)
	got, err := readSources(dir)
	if err != nil || len(got) != 3+4+2 {
		t.Errorf("%d sources, %v; want 9", len(got), err)
	}
	bad := filepath.Join(dir, "sources.list.d/bad.sources")
	writeFile(t, bad, "rubbish\n", 0o644)
	if _, err := readSources(dir); err == nil || !strings.Contains(err.Error(), bad) {
		t.Errorf("error %v doesn't name %s", err, bad)
	}
}

func TestTransferOptions(t *testing.T) {
	t.Parallel()
	all, err := parseAptDump(testdata(t, "apt-config-dump.txt"))
	if err != nil {
		t.Fatal(err)
	}
	want := []aptOption{
		{"Acquire::http::Proxy", "http://proxy.example.org:3128/"},
		{"Acquire::https::CaInfo", "/etc/ssl/certs/corporate.pem"},
		{"Acquire::Retries", "3"},
	}
	if got := transferOptions(all); !reflect.DeepEqual(got, want) {
		t.Errorf("transferOptions = %v, want %v", got, want)
	}
	for _, bad := range []string{`A::B value;`, `A::B "value"`, `A::B "va"lue";`, `A"B "value";`, `A::B "`} {
		if got, err := parseAptDump(bad); err == nil || got != nil {
			t.Errorf("parseAptDump(%q) = %v, %v; want an error", bad, got, err)
		}
	}
}

func FuzzParseAptDump(f *testing.F) {
	f.Add(testdata(f, "apt-config-dump.txt"))
	f.Add("A::B \"\";\n")
	f.Fuzz(func(t *testing.T, text string) {
		options, err := parseAptDump(text)
		if err != nil {
			if options != nil {
				t.Errorf("error %v, and options %v", err, options)
			}
			return
		}
		for _, o := range options {
			if strings.ContainsAny(o.key+o.value, "\"\n") {
				t.Errorf("option %q could break out of its quotes", o)
			}
		}
	})
}

func FuzzParseOSRelease(f *testing.F) {
	f.Add(testdata(f, "os-release.debian12"))
	f.Add("ID=\"\nID_LIKE='a b'")
	f.Fuzz(func(t *testing.T, text string) {
		if d := parseOSRelease(text); strings.ContainsAny(d.id+d.codename+d.name, "\n") {
			t.Errorf("line break in %+v", d)
		}
	})
}

func TestHomeCache(t *testing.T) {
	t.Parallel()
	for _, tc := range []struct {
		env  map[string]string
		want string
	}{
		{map[string]string{"XDG_CACHE_HOME": "/x", "HOME": "/h"}, "/x"},
		{map[string]string{"HOME": "/h"}, "/h/.cache"},
		{map[string]string{"XDG_CACHE_HOME": "x", "HOME": "/h"}, ""},
		{map[string]string{"HOME": "h"}, ""},
		{nil, ""},
	} {
		got, err := homeCache(func(k string) string { return tc.env[k] })
		if got != tc.want || (err != nil) != (tc.want == "") || (err != nil && !errors.Is(err, ErrNoCache)) {
			t.Errorf("homeCache(%v) = %q, %v; want %q", tc.env, got, err, tc.want)
		}
	}
}

func TestOpenRefusesOddFolders(t *testing.T) {
	t.Parallel()
	for _, dir := range []string{"/a:b", `/a"b`, "/a;b", `/a\b`, "/a\nb"} {
		if c, err := Open(Config{Dir: dir}); !errors.Is(err, ErrNoCache) || c != nil {
			t.Errorf("Open(%q) = %v, %v; want ErrNoCache", dir, c, err)
		}
	}
}

// writeFile makes a file, and the folders above it.
func writeFile(t testing.TB, path, content string, mode os.FileMode) {
	t.Helper()
	if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(path, []byte(content), mode); err != nil {
		t.Fatal(err)
	}
}
