// SPDX-License-Identifier: Apache-2.0

package packages

import (
	"cmp"
	"errors"
	"fmt"
	"slices"
	"strings"
)

// Bounds on apt source files: far above what real ones hold.
const (
	maxSourcesBytes = 1 << 20
	maxSourcesLine  = 1 << 16
)

// source is one stanza of apt's sources: where packages come from, and which
// key vouches for them.
type source struct {
	uris       []string
	suites     []string
	components []string
	// signedBy is a key file, a fingerprint, or (deb822 only) a whole key,
	// its lines beginning with a space; empty: apt's trusted keys.
	signedBy string
	// checkValidUntil is "no" where the administrator allows expired
	// metadata (snapshots of an archive).
	checkValidUntil string
}

// parseList reads the one-line format of sources.list(5).
func parseList(text string) ([]source, error) {
	if len(text) > maxSourcesBytes {
		return nil, fmt.Errorf("apt sources: longer than %d bytes", maxSourcesBytes)
	}
	var out []source
	n := 0
	for line := range strings.Lines(text) {
		n++
		line, _, _ = strings.Cut(line, "#")
		line = strings.TrimSpace(line)
		if line == "" {
			continue
		}
		s, binary, err := parseListLine(line)
		if err != nil {
			return nil, fmt.Errorf("apt sources: line %d: %w", n, err)
		}
		if binary {
			out = append(out, s)
		}
	}
	return out, nil
}

// parseListLine reads "deb [options] uri suite component…". It reports
// whether the line names binary packages.
func parseListLine(line string) (source, bool, error) {
	kind, rest, _ := strings.Cut(strings.ReplaceAll(line, "\t", " "), " ")
	if kind != "deb" && kind != "deb-src" {
		return source{}, false, fmt.Errorf("type is %q, want deb or deb-src", kind)
	}
	rest = strings.TrimSpace(rest)
	var s source
	if strings.HasPrefix(rest, "[") {
		options, after, ok := strings.Cut(rest[1:], "]")
		if !ok {
			return source{}, false, fmt.Errorf("option list has no closing bracket")
		}
		rest = after
		for _, o := range strings.Fields(options) {
			key, value, _ := strings.Cut(o, "=")
			s.option(strings.ToLower(key), value)
		}
	}
	words := strings.Fields(rest)
	if len(words) < 2 {
		return source{}, false, fmt.Errorf("no URI and suite")
	}
	s.uris, s.suites, s.components = words[:1], words[1:2], words[2:]
	return s, kind == "deb", nil
}

// option keeps what bears on verification. An option that would weaken it
// (trusted=yes, allow-insecure=yes) is not kept.
func (s *source) option(key, value string) {
	switch key {
	case "signed-by":
		s.signedBy = value
	case "check-valid-until":
		s.checkValidUntil = value
	}
}

// parseDeb822 reads the deb822 format of sources.list(5).
func parseDeb822(text string) ([]source, error) {
	if len(text) > maxSourcesBytes {
		return nil, fmt.Errorf("apt sources: longer than %d bytes", maxSourcesBytes)
	}
	var out []source
	var st stanza
	n := 0
	flush := func() error {
		s, use, err := st.source()
		if err != nil {
			return fmt.Errorf("apt sources: stanza before line %d: %w", n+1, err)
		}
		if use {
			out = append(out, s)
		}
		st = stanza{}
		return nil
	}
	for line := range strings.Lines(text) {
		n++
		line = strings.TrimRight(line, " \t\r\n")
		if line == "" {
			if err := flush(); err != nil {
				return nil, err
			}
			continue
		}
		if err := st.add(line); err != nil {
			return nil, fmt.Errorf("apt sources: line %d: %w", n, err)
		}
	}
	if err := flush(); err != nil {
		return nil, err
	}
	return out, nil
}

// stanza collects the fields of a deb822 stanza, names in lower case. The
// lines that continue a field are kept, each after a line break and a space.
type stanza struct {
	fields map[string]string
	last   string
}

// add takes one line that is not empty.
func (st *stanza) add(line string) error {
	switch {
	case len(line) > maxSourcesLine:
		return fmt.Errorf("longer than %d bytes", maxSourcesLine)
	case strings.HasPrefix(line, "#"):
		return nil
	case line[0] == ' ' || line[0] == '\t':
		if st.last == "" {
			return errors.New("continues no field")
		}
		st.fields[st.last] += "\n " + strings.TrimLeft(line, " \t")
		return nil
	}
	key, value, ok := strings.Cut(line, ":")
	if !ok {
		return errors.New("not a field")
	}
	if st.fields == nil {
		st.fields = map[string]string{}
	}
	st.last = strings.ToLower(key)
	st.fields[st.last] = strings.TrimSpace(value)
	return nil
}

// source turns the fields into a source. It reports whether the stanza is
// enabled and names binary packages.
func (st *stanza) source() (source, bool, error) {
	f := st.fields
	if len(f) == 0 || strings.EqualFold(f["enabled"], "no") || strings.EqualFold(f["enabled"], "false") {
		return source{}, false, nil
	}
	s := source{
		uris: strings.Fields(f["uris"]), suites: strings.Fields(f["suites"]),
		components: strings.Fields(f["components"]),
	}
	s.option("signed-by", f["signed-by"])
	s.option("check-valid-until", f["check-valid-until"])
	for _, field := range []struct {
		name   string
		values []string
	}{{"URIs", s.uris}, {"Suites", s.suites}} {
		if len(field.values) == 0 {
			return source{}, false, fmt.Errorf("no field %s", field.name)
		}
	}
	return s, slices.Contains(strings.Fields(f["types"]), "deb"), nil
}

// render writes the source for apt, for other suites and for the given
// architectures, component main only. A source without a key is verified with
// the keys that the system's apt trusts, as the system itself does.
func (s source) render(suites, archs []string) string {
	var b strings.Builder
	fmt.Fprintf(&b, "Types: deb\nURIs: %s\nSuites: %s\nComponents: main\nArchitectures: %s\n",
		strings.Join(s.uris, " "), strings.Join(suites, " "), strings.Join(archs, " "))
	if s.signedBy != "" {
		fmt.Fprintf(&b, "Signed-By: %s\n", s.signedBy)
	}
	if s.checkValidUntil != "" {
		fmt.Fprintf(&b, "Check-Valid-Until: %s\n", s.checkValidUntil)
	}
	return b.String()
}

// archives are the sources of one release of the distribution itself.
type archives struct {
	codename string
	main     source
	updates  []source // -updates and -security, each with its suite only
}

// candidates gives the sources that may be the release's own archive, the
// likeliest first: third parties also use the distribution's code names as
// suites, so the one whose key is the distribution's comes first, and whoever
// uses a candidate must check what the archive says of its origin.
func candidates(sources []source, codename string) []archives {
	var mains []source
	var updates []source
	for _, s := range sources {
		if !slices.Contains(s.components, "main") || !fetchable(s.uris) {
			continue
		}
		if slices.Contains(s.suites, codename) {
			mains = append(mains, s)
		}
		for _, suite := range []string{codename + "-updates", codename + "-security"} {
			if slices.Contains(s.suites, suite) {
				u := s
				u.suites = []string{suite}
				updates = append(updates, u)
			}
		}
	}
	slices.SortStableFunc(mains, func(a, b source) int { return cmp.Compare(a.rank(), b.rank()) })
	var out []archives
	for _, m := range mains {
		a := archives{codename: codename, main: m}
		for _, u := range updates {
			if u.rank() == m.rank() {
				a.updates = append(a.updates, u)
			}
		}
		out = append(out, a)
	}
	return out
}

// rank orders sources by how likely they are the distribution's own.
func (s source) rank() int {
	switch {
	case strings.Contains(s.signedBy, "debian-archive"):
		return 0
	case s.signedBy == "":
		return 1
	}
	return 2
}

// fetchable says whether all URIs are of kinds that need nobody to change a disc.
func fetchable(uris []string) bool {
	for _, u := range uris {
		if strings.HasPrefix(u, "cdrom:") {
			return false
		}
	}
	return true
}

// render writes the whole private source file, with the backports that the
// main archive carries when asked for.
func (a archives) render(archs []string, backports bool) string {
	suites := []string{a.codename}
	if backports {
		suites = append(suites, a.codename+"-backports")
	}
	stanzas := []string{a.main.render(suites, archs)}
	for _, u := range a.updates {
		stanzas = append(stanzas, u.render(u.suites, archs))
	}
	return strings.Join(stanzas, "\n")
}
