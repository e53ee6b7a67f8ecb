// SPDX-License-Identifier: Apache-2.0

package kernel

import (
	"errors"
	"fmt"
	"path"
	"path/filepath"
	"slices"
	"strings"
)

// ErrUnknownModule says that a kernel has no module of that name, neither
// loadable nor built in.
var ErrUnknownModule = errors.New("unknown module")

// Module is one loadable module.
type Module struct {
	Name    string   // as the kernel knows it, with underscores
	Path    string   // where modules are expected: lib/modules/REL/…/x.ko, slash-separated, relative
	Depends []string // names of the modules that must be loaded first
	Data    []byte   // the decompressed file, with its appended signature
}

// Set is what Resolve finds.
type Set struct {
	Load    []Module // in load order: each after all that it depends on
	BuiltIn []string // asked for, and part of the kernel image; sorted
}

// Resolve gives the named modules and all that they depend on, in an order in
// which they can be loaded. The order depends on names and kernel only. A name
// may be written with dashes or underscores, and more than once. An unknown
// name is an error that wraps ErrUnknownModule and names module and kernel.
func (k *Kernel) Resolve(names []string) (*Set, error) {
	r := resolver{kernel: k, state: make(map[string]mark)}
	builtin := make(map[string]bool)
	for _, name := range names {
		name = normalise(strings.TrimSpace(name))
		if k.builtin[name] {
			builtin[name] = true
			continue
		}
		if err := r.visit(name, "", 0); err != nil {
			return nil, fmt.Errorf("resolve modules of kernel %s: %w", k.release, err)
		}
	}
	set := &Set{Load: r.order}
	for name := range builtin {
		set.BuiltIn = append(set.BuiltIn, name)
	}
	slices.Sort(set.BuiltIn)
	return set, nil
}

type mark int

const (
	unseen mark = iota
	open        // on the path that is being followed
	done
)

// maxDepth bounds chains of dependencies; real ones are shorter than ten.
const maxDepth = 64

type resolver struct {
	kernel *Kernel
	state  map[string]mark
	order  []Module
}

// visit appends name to the order, after what it depends on.
func (r *resolver) visit(name, neededBy string, depth int) error {
	switch {
	case r.state[name] == done || r.kernel.builtin[name]:
		return nil
	case r.state[name] == open:
		return fmt.Errorf("module %s depends on itself through %s", name, neededBy)
	case depth > maxDepth:
		return fmt.Errorf("module %s: more than %d levels of dependencies", name, maxDepth)
	}
	file, ok := r.kernel.modules[name]
	if !ok {
		if neededBy != "" {
			return fmt.Errorf("%w %q, needed by %s, in kernel %s", ErrUnknownModule, name, neededBy, r.kernel.release)
		}
		return fmt.Errorf("%w %q in kernel %s", ErrUnknownModule, name, r.kernel.release)
	}
	r.state[name] = open
	mod, err := r.kernel.readModule(name, file)
	if err != nil {
		return err
	}
	for _, dep := range mod.Depends {
		if err := r.visit(dep, name, depth+1); err != nil {
			return err
		}
	}
	r.state[name] = done
	r.order = append(r.order, mod)
	return nil
}

func (k *Kernel) readModule(name, file string) (Module, error) {
	data, err := readCompressed(filepath.Join(k.root, filepath.FromSlash(file)))
	if err != nil {
		return Module{}, fmt.Errorf("module %s: %w", name, err)
	}
	info, err := readInfo(data)
	if err != nil {
		return Module{}, fmt.Errorf("module %s: %w", name, err)
	}
	if got := normalise(info.name); got != "" && got != name {
		return Module{}, fmt.Errorf("module %s: %s says that it is %q", name, file, info.name)
	}
	// A module of another kernel would be refused at load time, on the card;
	// better now.
	if release, _, _ := strings.Cut(info.vermagic, " "); release != k.release {
		return Module{}, fmt.Errorf("module %s: %s is for kernel %q, not %s", name, file, release, k.release)
	}
	return Module{
		Name:    name,
		Path:    path.Join("lib/modules", k.release, uncompressedName(file)),
		Depends: info.depends,
		Data:    data,
	}, nil
}

func uncompressedName(file string) string {
	for _, s := range moduleSuffixes[1:] {
		if base, ok := strings.CutSuffix(file, s); ok {
			return base + ".ko"
		}
	}
	return file
}
