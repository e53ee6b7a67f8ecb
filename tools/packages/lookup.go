// SPDX-License-Identifier: Apache-2.0

package packages

import (
	"context"
	"debug/elf"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strings"
	"time"
)

// kind says what sort of place meets a need.
type kind string

const (
	kindLocal   kind = "local"
	kindSystem  kind = "system"
	kindFetched kind = "fetched"
)

// place is a tree that holds all that a need asks for.
type place struct {
	spec spec
	kind kind
	// root is the tree; for kindSystem, the system's own.
	root string
	// version is that of the first command or package; empty when unknown.
	version string
	// tools are absolute paths by command name, and files by logical name.
	tools map[string]string
	files map[string]string
}

// Why nothing meets a need: no trace of it, or a program of the system's that
// is too old or lacks something, so that installing it again helps nobody.
var (
	errNotFound = errors.New("not found")
	errUnfit    = errors.New("the system's own doesn't serve")
)

// versionTimeout bounds how long a program may take to say its version.
const versionTimeout = 20 * time.Second

// binDirs are where a tree keeps programs; ordinary users' PATH often lacks
// the sbin ones.
var binDirs = []string{"usr/bin", "usr/sbin", "bin", "sbin"}

// localDir is where users may unpack a tree for a need themselves.
func (c *Cache) localDir(n Need) string { return filepath.Join(c.dir, "local", string(n)) }

// find looks for a place that meets the need, without changing anything. Its
// error says what is there and doesn't serve, for the user to mend: a tree
// unpacked by hand that is not whole, or a program of the system's.
func (c *Cache) find(ctx context.Context, s spec) (place, error) {
	p, local := openTree(c.localDir(s.need), s)
	if local == nil {
		p.kind = kindLocal
		return p, nil
	}
	var system error
	if !c.cfg.NoSystem {
		if p, system = openSystem(ctx, c.cfg.Root, s); system == nil {
			return p, nil
		}
	}
	if p, ok := c.findFetched(s); ok {
		return p, nil
	}
	switch {
	case isDir(c.localDir(s.need)):
		return place{}, local
	case errors.Is(system, errUnfit):
		return place{}, system
	}
	return place{}, errNotFound
}

// findFetched opens the generation in use.
func (c *Cache) findFetched(s spec) (place, bool) {
	home := filepath.Join(c.store(), string(s.need))
	gen, err := os.Readlink(filepath.Join(home, currentName))
	if err != nil || gen != filepath.Base(gen) {
		return place{}, false
	}
	// The generation's own path: current may move on while the set is in use.
	p, err := openGeneration(filepath.Join(home, gen), s)
	return p, err == nil
}

// openGeneration opens a fetched tree, if its marker and all its files are there.
func openGeneration(gen string, s spec) (place, error) {
	text, err := os.ReadFile(filepath.Join(gen, completeName))
	if err != nil {
		return place{}, fmt.Errorf("open generation: %w", err)
	}
	marker, err := parseMarker(string(text))
	if err != nil {
		return place{}, err
	}
	// The table may have grown since the generation was made.
	for _, r := range s.roots {
		if _, ok := marker.find(r); !ok && s.keep == nil {
			return place{}, fmt.Errorf("%s has no package %s: %w", gen, r, ErrMissing)
		}
	}
	p, err := openTree(filepath.Join(gen, rootName), s)
	if err != nil {
		return place{}, err
	}
	p.kind = kindFetched
	for _, a := range marker {
		if p.version == "" || a.name == s.roots[0] {
			p.version = a.version
		}
	}
	return p, nil
}

// openTree opens an unpacked tree that has all commands and files of the need.
func openTree(root string, s spec) (place, error) {
	if _, err := os.Stat(root); err != nil {
		return place{}, fmt.Errorf("open tree: %w", err)
	}
	p := place{spec: s, root: root, tools: map[string]string{}}
	for _, c := range s.commands {
		tool, ok := findTool(root, c.name)
		if !ok {
			return place{}, fmt.Errorf("%s has no program %s: %w", root, c.name, ErrMissing)
		}
		p.tools[c.name] = tool
	}
	var err error
	p.files, err = findFiles(root, s)
	return p, err
}

// findTool looks for an executable below root.
func findTool(root, name string) (string, bool) {
	for _, d := range binDirs {
		path := filepath.Join(root, d, name)
		if info, err := os.Stat(path); err == nil && info.Mode().IsRegular() && info.Mode()&0o111 != 0 {
			return path, true
		}
	}
	return "", false
}

// findFiles looks for all files of the need below root.
func findFiles(root string, s spec) (map[string]string, error) {
	files := map[string]string{}
	for _, f := range s.files {
		path, err := findFile(root, s, f)
		if err != nil {
			return nil, err
		}
		files[f.name] = path
	}
	return files, nil
}

func findFile(root string, s spec, f file) (string, error) {
	for _, pattern := range f.places {
		matches, err := filepath.Glob(filepath.Join(escapeGlob(root), pattern))
		if err != nil {
			return "", fmt.Errorf("look for %s: %w", pattern, err)
		}
		for i := len(matches) - 1; i >= 0; i-- {
			info, err := os.Stat(matches[i])
			if err == nil && info.Mode().IsRegular() && info.Size() > 0 && (!s.static || isStatic(matches[i], s.arch)) {
				return matches[i], nil
			}
		}
	}
	return "", fmt.Errorf("%s has no %s: %w", root, f.places[0], ErrMissing)
}

// escapeGlob keeps a folder's name from being read as a pattern.
func escapeGlob(s string) string {
	return strings.NewReplacer(`\`, `\\`, `*`, `\*`, `?`, `\?`, `[`, `\[`).Replace(s)
}

// elfMachines are the ELF machine numbers of the architectures.
var elfMachines = map[string]elf.Machine{ArchAMD64: elf.EM_X86_64, ArchARM64: elf.EM_AARCH64}

// isStatic says whether a program of the architecture runs without any library.
func isStatic(path, arch string) bool {
	f, err := elf.Open(path)
	if err != nil {
		return false
	}
	defer f.Close()
	for _, p := range f.Progs {
		if p.Type == elf.PT_INTERP {
			return false
		}
	}
	return f.Machine == elfMachines[arch]
}

// openSystem finds the need on the system itself, in versions that serve.
func openSystem(ctx context.Context, root string, s spec) (place, error) {
	if s.noSystem {
		return place{}, fmt.Errorf("%s: never taken from the system: %w", s.need, ErrMissing)
	}
	p := place{spec: s, kind: kindSystem, root: root, tools: map[string]string{}}
	for i, c := range s.commands {
		path, err := lookPath(root, c.name)
		if err != nil {
			return place{}, err
		}
		p.tools[c.name] = path
		v, err := c.check(ctx, path, s.min)
		if err != nil {
			return place{}, fmt.Errorf("%w: %w", errUnfit, err)
		}
		if i == 0 {
			p.version = v
		}
	}
	var err error
	p.files, err = findFiles(root, s)
	return p, err
}

// lookPath finds a program on PATH, or in the system's folders for programs
// of the administrator.
func lookPath(root, name string) (string, error) {
	if root == "/" {
		path, err := exec.LookPath(name)
		if err == nil {
			return filepath.Abs(path)
		}
		if !errors.Is(err, exec.ErrNotFound) && !errors.Is(err, fs.ErrNotExist) {
			return "", fmt.Errorf("look for %s: %w", name, err)
		}
	}
	if path, ok := findTool(root, name); ok {
		return path, nil
	}
	return "", fmt.Errorf("%s is not on PATH: %w", name, ErrMissing)
}

// check runs the program to learn its version, and whether that and what it
// offers will do. It gives the version, empty when the program is not asked.
func (c command) check(ctx context.Context, path string, min Version) (string, error) {
	if c.versionArgs == nil {
		return "", nil
	}
	out, err := answer(ctx, path, c.versionArgs)
	if err != nil {
		return "", err
	}
	v, err := ParseToolVersion(out)
	if err != nil {
		return "", fmt.Errorf("%s %s: %w", path, strings.Join(c.versionArgs, " "), err)
	}
	if v.Less(min) {
		return "", fmt.Errorf("%s is version %s, want %s or later", path, v, min)
	}
	if c.probe == nil {
		return v.String(), nil
	}
	if out, err = answer(ctx, path, c.probe); err != nil {
		return "", err
	}
	for word := range strings.FieldsSeq(out) {
		if word == c.want {
			return v.String(), nil
		}
	}
	return "", fmt.Errorf("%s %s: no %q in its answer", path, strings.Join(c.probe, " "), c.want)
}

// answer gives what a program prints, on both of its outputs: mke2fs -V
// prints on standard error.
func answer(ctx context.Context, path string, args []string) (string, error) {
	ctx, cancel := context.WithTimeout(ctx, versionTimeout)
	defer cancel()
	cmd := exec.CommandContext(ctx, path, args...)
	cmd.WaitDelay = time.Second
	out, err := cmd.CombinedOutput()
	if err != nil {
		return "", fmt.Errorf("%s %s: %w", path, strings.Join(args, " "), err)
	}
	return string(out), nil
}

// triplet is the name of this machine's library folders in Debian.
func triplet() string {
	if runtime.GOARCH == ArchARM64 {
		return "aarch64-linux-gnu"
	}
	return "x86_64-linux-gnu"
}
