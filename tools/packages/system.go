// SPDX-License-Identifier: Apache-2.0

package packages

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
)

// distribution is what os-release(5) says of the system.
type distribution struct {
	id       string
	like     []string
	codename string
	name     string
}

// is says whether the system is, or descends from, the distribution id.
func (d distribution) is(id string) bool { return d.id == id || slices.Contains(d.like, id) }

// parseOSRelease reads os-release(5): shell-like assignments, one a line.
func parseOSRelease(text string) distribution {
	var d distribution
	for line := range strings.Lines(text) {
		key, value, ok := strings.Cut(strings.TrimSpace(line), "=")
		if !ok {
			continue
		}
		value = unquote(value)
		switch key {
		case "ID":
			d.id = value
		case "ID_LIKE":
			d.like = strings.Fields(value)
		case "VERSION_CODENAME":
			d.codename = value
		case "PRETTY_NAME":
			d.name = value
		}
	}
	return d
}

// unquote takes one pair of shell quotes off.
func unquote(s string) string {
	if len(s) >= 2 && (s[0] == '"' || s[0] == '\'') && s[len(s)-1] == s[0] {
		return s[1 : len(s)-1]
	}
	return s
}

// readOSRelease reads the system's own os-release.
func readOSRelease(root string) (distribution, error) {
	for _, p := range []string{"etc/os-release", "usr/lib/os-release"} {
		b, err := os.ReadFile(filepath.Join(root, p))
		if errors.Is(err, fs.ErrNotExist) {
			continue
		}
		if err != nil {
			return distribution{}, fmt.Errorf("identify the distribution: %w", err)
		}
		return parseOSRelease(string(b)), nil
	}
	return distribution{name: "this system"}, nil
}

// readSources reads all of the system's apt sources. A file that apt itself
// could not parse is an error naming it; one that the user may not read (it may
// hold a password) is passed over.
func readSources(aptDir string) ([]source, error) {
	var out []source
	lists, _ := filepath.Glob(filepath.Join(aptDir, "sources.list.d", "*.list"))
	deb822, _ := filepath.Glob(filepath.Join(aptDir, "sources.list.d", "*.sources"))
	for _, p := range append(append([]string{filepath.Join(aptDir, "sources.list")}, lists...), deb822...) {
		b, err := os.ReadFile(p)
		if errors.Is(err, fs.ErrNotExist) || errors.Is(err, fs.ErrPermission) {
			continue
		}
		if err != nil {
			return nil, fmt.Errorf("read apt sources: %w", err)
		}
		parse := parseList
		if strings.HasSuffix(p, ".sources") {
			parse = parseDeb822
		}
		s, err := parse(string(b))
		if err != nil {
			return nil, fmt.Errorf("%s: %w", p, err)
		}
		out = append(out, s...)
	}
	return out, nil
}

// aptOption is one line of "apt-config dump".
type aptOption struct{ key, value string }

// parseAptDump reads the output of "apt-config dump": KEY "VALUE"; a line.
func parseAptDump(text string) ([]aptOption, error) {
	var out []aptOption
	for line := range strings.Lines(text) {
		line = strings.TrimSpace(line)
		key, rest, ok := strings.Cut(line, " ")
		if !ok || key == "" {
			continue
		}
		if len(rest) < 3 || rest[0] != '"' || !strings.HasSuffix(rest, `";`) {
			return nil, fmt.Errorf("apt configuration %s: value is not quoted", key)
		}
		value := rest[1 : len(rest)-2]
		if strings.ContainsAny(value, "\"\n") || strings.ContainsAny(key, "\"{};") {
			return nil, fmt.Errorf("apt configuration %s: quote within", key)
		}
		out = append(out, aptOption{key, value})
	}
	return out, nil
}

// transferOptions are those of the system's apt options that say how to reach
// the mirrors: proxies, time-outs, certificates, snapshots' dates. What says
// which content to trust or to fetch is decided here and not taken over.
func transferOptions(all []aptOption) []aptOption {
	var out []aptOption
	for _, o := range all {
		k := strings.ToLower(o.key)
		switch {
		case o.value == "":
		case strings.HasPrefix(k, "acquire::http::"), strings.HasPrefix(k, "acquire::https::"),
			k == "acquire::check-valid-until", k == "acquire::check-date", k == "acquire::retries",
			k == "acquire::forceipv4", k == "acquire::forceipv6":
			out = append(out, o)
		}
	}
	return out
}

// homeCache is the user's cache folder: $XDG_CACHE_HOME, or ~/.cache.
func homeCache(getenv func(string) string) (string, error) {
	if x := getenv("XDG_CACHE_HOME"); x != "" {
		if !filepath.IsAbs(x) {
			return "", fmt.Errorf("XDG_CACHE_HOME is %s: %w", strconv.Quote(x), ErrNoCache)
		}
		return x, nil
	}
	if h := getenv("HOME"); filepath.IsAbs(h) {
		return filepath.Join(h, ".cache"), nil
	}
	return "", fmt.Errorf("neither XDG_CACHE_HOME nor HOME is an absolute path: %w", ErrNoCache)
}
