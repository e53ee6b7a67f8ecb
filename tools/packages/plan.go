// SPDX-License-Identifier: Apache-2.0

package packages

import (
	"cmp"
	"context"
	"crypto/sha256"
	"encoding/hex"
	"fmt"
	"net/url"
	"slices"
	"strconv"
	"strings"
)

// Bounds on one plan.
const (
	maxPlanPackages = 2000
	maxPackageBytes = 4 << 30
)

// archive is one package file of a plan, as the signed metadata describes it.
type archive struct {
	name    string
	version string
	arch    string
	sha256  string // lower-case hexadecimal
	size    int64  // bytes; not kept in the marker
}

// String is the archive's line in the marker.
func (a archive) String() string {
	return a.name + " " + a.version + " " + a.arch + " " + a.sha256
}

// plan is all that meets a need, sorted by name.
type plan []archive

// size is what has to be downloaded, in bytes.
func (p plan) size() int64 {
	var n int64
	for _, a := range p {
		n += a.size
	}
	return n
}

// digest names the plan's content: equal plans unpack to equal trees.
func (p plan) digest() string {
	sum := sha256.Sum256([]byte(p.marker()))
	return hex.EncodeToString(sum[:8])
}

// marker is the content of the file that makes a generation complete.
func (p plan) marker() string {
	var b strings.Builder
	for _, a := range p {
		b.WriteString(a.String() + "\n")
	}
	return b.String()
}

// find gives the archive of a package.
func (p plan) find(name string) (archive, bool) {
	for _, a := range p {
		if a.name == name {
			return a, true
		}
	}
	return archive{}, false
}

// parseMarker reads a marker back.
func parseMarker(text string) (plan, error) {
	var p plan
	for line := range strings.Lines(text) {
		f := strings.Fields(line)
		if !strings.HasSuffix(line, "\n") || len(f) != 4 || !isSHA256(f[3]) {
			return nil, fmt.Errorf("marker: line %d is not name, version, architecture, sha256", len(p)+1)
		}
		p = append(p, archive{name: f[0], version: f[1], arch: f[2], sha256: f[3]})
		if len(p) > maxPlanPackages {
			return nil, fmt.Errorf("marker: more than %d packages", maxPlanPackages)
		}
	}
	if len(p) == 0 {
		return nil, fmt.Errorf("marker: empty")
	}
	return p, nil
}

// parsePrintURIs reads what "apt-get --print-uris" prints: a line
// 'URI' NAME_VERSION_ARCH.deb SIZE SHA256:HASH for each archive.
func parsePrintURIs(text string) (plan, error) {
	var p plan
	for line := range strings.Lines(text) {
		if !strings.HasPrefix(line, "'") {
			continue
		}
		a, err := parsePrintURI(line)
		if err != nil {
			return nil, fmt.Errorf("plan: archive %d: %w", len(p)+1, err)
		}
		p = append(p, a)
		if len(p) > maxPlanPackages {
			return nil, fmt.Errorf("plan: more than %d packages", maxPlanPackages)
		}
	}
	slices.SortFunc(p, func(a, b archive) int { return cmp.Compare(a.String(), b.String()) })
	return p, nil
}

func parsePrintURI(line string) (archive, error) {
	f := strings.Fields(line)
	if len(f) != 4 {
		return archive{}, fmt.Errorf("%d fields, want 4", len(f))
	}
	base, ok := strings.CutSuffix(f[1], ".deb")
	parts := strings.Split(base, "_")
	if !ok || len(parts) != 3 {
		return archive{}, fmt.Errorf("file name %q is not name_version_arch.deb", f[1])
	}
	version, err := url.PathUnescape(parts[1])
	if err != nil {
		return archive{}, fmt.Errorf("file name %q: %w", f[1], err)
	}
	a := archive{name: parts[0], version: version, arch: parts[2]}
	for _, word := range []string{a.name, a.version, a.arch} {
		if !isPackageWord(word) {
			return archive{}, fmt.Errorf("file name %q: %q is not a package's name, version or architecture", f[1], word)
		}
	}
	if a.size, err = strconv.ParseInt(f[2], 10, 64); err != nil || a.size < 0 || a.size > maxPackageBytes {
		return archive{}, fmt.Errorf("package %s: size is %q", a.name, f[2])
	}
	if a.sha256, ok = strings.CutPrefix(f[3], "SHA256:"); !ok || !isSHA256(a.sha256) {
		return archive{}, fmt.Errorf("package %s: checksum is %q, want SHA256", a.name, f[3])
	}
	return a, nil
}

// isPackageWord says whether s is made of what deb-version(7) and package
// names allow: such a word cannot be an option, a path or a shell's business.
func isPackageWord(s string) bool {
	for _, r := range s {
		if !('a' <= r && r <= 'z' || 'A' <= r && r <= 'Z' || '0' <= r && r <= '9' || strings.ContainsRune("+-.~:", r)) {
			return false
		}
	}
	return s != "" && s[0] != '-' && s[0] != '.'
}

func isSHA256(s string) bool {
	b, err := hex.DecodeString(s)
	return err == nil && len(b) == sha256.Size && strings.ToLower(s) == s
}

// unneeded is left out of a closure: the C library, which is the system's own
// (the closure is of the same release), and what only maintainer scripts use,
// which never run.
var unneeded = []string{
	"adduser", "base-files", "coreutils", "debconf", "debianutils", "dpkg", "init-system-helpers",
	"libc-bin", "libc6", "libcrypt1", "libpam-modules", "libpam-modules-bin", "libpam-runtime",
	"mount", "passwd", "perl-base", "sysvinit-utils", "tar", "ucf",
}

// plan resolves what meets the need, from the lists as they are.
func (t *aptTree) plan(ctx context.Context, s spec, arch string) (plan, error) {
	args := append([]string{"install", "--print-uris", "-qq", "-y"}, forArch(arch)...)
	if s.backports && t.backports != "" {
		args = append(args, "-t", t.backports)
	}
	out, err := t.run(ctx, "apt-get", append(args, s.roots...)...)
	if err != nil {
		return nil, fmt.Errorf("resolve %s for %s: %w", strings.Join(s.roots, " "), arch, err)
	}
	all, err := parsePrintURIs(out)
	if err != nil {
		return nil, err
	}
	if err := s.recentEnough(all); err != nil {
		return nil, err
	}
	p := slices.DeleteFunc(all, func(a archive) bool { return !s.wants(a.name) })
	if len(p) == 0 {
		return nil, fmt.Errorf("resolve %s for %s: no package of it is of use: %w", strings.Join(s.roots, " "), arch, ErrMissing)
	}
	return p, nil
}

// recentEnough checks that all roots are in the plan, the first one in the
// version that the need demands.
func (s spec) recentEnough(p plan) error {
	for i, root := range s.roots {
		a, ok := p.find(root)
		if !ok {
			return fmt.Errorf("package %s is not in the archive: %w", root, ErrMissing)
		}
		if i > 0 || s.min == (Version{}) {
			continue
		}
		v, err := ParsePackageVersion(a.version)
		if err != nil {
			return err
		}
		if v.Less(s.min) {
			return fmt.Errorf("package %s is version %s, want %s or later: %w", root, v, s.min, ErrMissing)
		}
	}
	return nil
}

// wants says whether a package that the resolution named is unpacked.
func (s spec) wants(name string) bool {
	switch {
	case slices.Contains(s.roots, name) && s.keep == nil:
		return true
	case s.keep != nil:
		return s.keep.MatchString(name)
	case s.closure:
		return !slices.Contains(unneeded, name)
	}
	return false
}
