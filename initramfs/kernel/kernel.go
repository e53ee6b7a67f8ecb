// SPDX-License-Identifier: Apache-2.0

package kernel

import (
	"bufio"
	"bytes"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path"
	"path/filepath"
	"slices"
	"strings"
)

// ErrNoKernel says that a folder holds no usable kernel package.
var ErrNoKernel = errors.New("no kernel package")

// maxImage bounds the size of a kernel image in bytes.
const maxImage = 256 << 20

// Kernel is one unpacked kernel package. It reads files when asked and keeps
// nothing open. The zero value is of no use: see Open.
type Kernel struct {
	release string
	image   string            // path of vmlinuz
	root    string            // .../lib/modules/REL
	modules map[string]string // normalised name -> path below root, slash-separated
	builtin map[string]bool   // normalised name
}

// Open reads the tree of the kernel package unpacked in dir. The package must
// hold exactly one kernel; ErrNoKernel is wrapped otherwise.
func Open(dir string) (*Kernel, error) {
	release, image, err := findImage(dir)
	if err != nil {
		return nil, err
	}
	k := &Kernel{release: release, image: image}
	for _, lib := range []string{"lib/modules", "usr/lib/modules"} {
		root := filepath.Join(dir, lib, release)
		if st, err := os.Stat(root); err == nil && st.IsDir() {
			k.root = root
			break
		}
	}
	if k.root == "" {
		return nil, fmt.Errorf("%w in %s: kernel %s has no lib/modules/%s", ErrNoKernel, dir, release, release)
	}
	if k.builtin, err = readBuiltin(filepath.Join(k.root, "modules.builtin")); err != nil {
		return nil, err
	}
	if k.modules, err = indexModules(k.root); err != nil {
		return nil, err
	}
	return k, nil
}

// Release is the kernel's release as `uname -r` prints it.
func (k *Kernel) Release() string { return k.release }

// ImagePath is the path of the kernel image (vmlinuz).
func (k *Kernel) ImagePath() string { return k.image }

// Image reads the kernel image (vmlinuz).
func (k *Kernel) Image() ([]byte, error) {
	st, err := os.Stat(k.image)
	if err != nil {
		return nil, fmt.Errorf("read kernel %s: %w", k.release, err)
	}
	if st.Size() == 0 || st.Size() > maxImage {
		return nil, fmt.Errorf("read kernel %s: %s is %d bytes, want 1 to %d", k.release, k.image, st.Size(), maxImage)
	}
	b, err := os.ReadFile(k.image)
	if err != nil {
		return nil, fmt.Errorf("read kernel %s: %w", k.release, err)
	}
	return b, nil
}

func findImage(dir string) (release, image string, err error) {
	const prefix = "vmlinuz-"
	found, err := filepath.Glob(filepath.Join(globEscape(dir), "boot", prefix+"*"))
	if err != nil {
		return "", "", fmt.Errorf("look for a kernel in %s: %w", dir, err)
	}
	switch len(found) {
	case 0:
		return "", "", fmt.Errorf("%w in %s: no boot/%s*", ErrNoKernel, dir, prefix)
	case 1:
		image = found[0]
		return strings.TrimPrefix(filepath.Base(image), prefix), image, nil
	default:
		return "", "", fmt.Errorf("%w in %s: %d kernels, want one", ErrNoKernel, dir, len(found))
	}
}

// globEscape makes dir match only itself in a glob pattern.
func globEscape(dir string) string {
	return strings.NewReplacer(`\`, `\\`, `*`, `\*`, `?`, `\?`, `[`, `\[`).Replace(dir)
}

func readBuiltin(file string) (map[string]bool, error) {
	b, err := os.ReadFile(file)
	if err != nil {
		return nil, fmt.Errorf("read list of built-in modules: %w", err)
	}
	builtin := make(map[string]bool)
	sc := bufio.NewScanner(bytes.NewReader(b))
	for sc.Scan() {
		if line := strings.TrimSpace(sc.Text()); line != "" {
			builtin[moduleName(line)] = true
		}
	}
	if err := sc.Err(); err != nil {
		return nil, fmt.Errorf("read list of built-in modules: %w", err)
	}
	return builtin, nil
}

func indexModules(root string) (map[string]string, error) {
	index := make(map[string]string)
	err := filepath.WalkDir(root, func(p string, d fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		if !d.Type().IsRegular() || !isModule(d.Name()) {
			return nil
		}
		rel, err := filepath.Rel(root, p)
		if err != nil {
			return err
		}
		rel = filepath.ToSlash(rel)
		name := moduleName(rel)
		if other, ok := index[name]; ok {
			return fmt.Errorf("module %s is there twice: %s and %s", name, other, rel)
		}
		index[name] = rel
		return nil
	})
	if err != nil {
		return nil, fmt.Errorf("list modules of %s: %w", root, err)
	}
	return index, nil
}

var moduleSuffixes = []string{".ko", ".ko.xz", ".ko.zst", ".ko.gz"}

func isModule(name string) bool {
	return slices.ContainsFunc(moduleSuffixes, func(s string) bool { return strings.HasSuffix(name, s) })
}

// moduleName gives the name by which the kernel knows the module in file:
// without folder and suffixes, and with underscores only.
func moduleName(file string) string {
	name, _, _ := strings.Cut(path.Base(file), ".ko")
	return normalise(name)
}

func normalise(name string) string { return strings.ReplaceAll(name, "-", "_") }
