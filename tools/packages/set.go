// SPDX-License-Identifier: Apache-2.0

package packages

import (
	"context"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
)

// Logical names of files in the table.
const (
	fileKernel       = "kernel"
	fileKernelConfig = "kernel configuration"
	fileCode         = "firmware code"
	fileVars         = "firmware variables"
	fileStub         = "stub"
	fileBusybox      = "busybox"
)

// Set is a number of met needs. It is immutable, and its paths stay valid
// until the second next Update.
type Set struct {
	places map[Need]place
}

// Kernel is a Linux kernel with its modules.
type Kernel struct {
	Image      string // the bootable file, as the distribution ships it
	Config     string // its configuration
	ModulesDir string // …/lib/modules/RELEASE; without index files (modules.dep)
	Release    string // what uname -r will print
}

// Firmware is a UEFI firmware for QEMU's two flash devices.
type Firmware struct {
	Code string // read-only
	Vars string // template of the variable store: copy it, then write to the copy
}

// Where says what meets a need: the root of its tree, and the version when known.
func (s *Set) Where(n Need) (root, version string, err error) {
	p, err := s.place(n)
	return p.root, p.version, err
}

func (s *Set) place(n Need) (place, error) {
	p, ok := s.places[n]
	if !ok {
		return place{}, fmt.Errorf("need %s is not in the set: %w", n, ErrMissing)
	}
	return p, nil
}

func (s *Set) file(n Need, name string) (string, error) {
	p, err := s.place(n)
	if err != nil {
		return "", err
	}
	return p.files[name], nil
}

// Kernel gives the kernel for machines of arch.
func (s *Set) Kernel(arch string) (Kernel, error) {
	p, err := s.place(KernelFor(arch))
	if err != nil {
		return Kernel{}, err
	}
	k := Kernel{Image: p.files[fileKernel], Config: p.files[fileKernelConfig]}
	k.Release = strings.TrimPrefix(filepath.Base(k.Image), "vmlinuz-")
	for _, d := range []string{"usr/lib/modules", "lib/modules"} {
		k.ModulesDir = filepath.Join(p.root, d, k.Release)
		if info, err := os.Stat(k.ModulesDir); err == nil && info.IsDir() {
			return k, nil
		}
	}
	return Kernel{}, fmt.Errorf("modules of kernel %s below %s: %w", k.Release, p.root, ErrMissing)
}

// Firmware gives the UEFI firmware for machines of arch.
func (s *Set) Firmware(arch string) (Firmware, error) {
	code, err := s.file(FirmwareFor(arch), fileCode)
	if err != nil {
		return Firmware{}, err
	}
	vars, err := s.file(FirmwareFor(arch), fileVars)
	if err != nil {
		return Firmware{}, err
	}
	return Firmware{Code: code, Vars: vars}, nil
}

// Stub gives the EFI stub for unified kernel images of arch.
func (s *Set) Stub(arch string) (string, error) { return s.file(StubFor(arch), fileStub) }

// Busybox gives the static busybox of arch.
func (s *Set) Busybox(arch string) (string, error) { return s.file(BusyboxFor(arch), fileBusybox) }

// Tool gives the path of a program of the set. A fetched program needs the
// environment that Command gives it.
func (s *Set) Tool(name string) (string, error) {
	p, err := s.toolPlace(name)
	if err != nil {
		return "", err
	}
	if path, ok := p.tools[name]; ok {
		return path, nil
	}
	path, ok := findTool(p.root, name)
	if !ok {
		return "", fmt.Errorf("program %s: %w", name, ErrMissing)
	}
	return path, nil
}

// toolPlace finds the place that a program belongs to: the one that lists it
// among its commands, else any unpacked tree that has it.
func (s *Set) toolPlace(name string) (place, error) {
	needs := make([]Need, 0, len(s.places))
	for n, p := range s.places {
		if _, ok := p.tools[name]; ok {
			return p, nil
		}
		needs = append(needs, n)
	}
	slices.Sort(needs)
	for _, n := range needs {
		if p := s.places[n]; p.kind != kindSystem {
			if _, ok := findTool(p.root, name); ok {
				return p, nil
			}
		}
	}
	return place{}, fmt.Errorf("program %s belongs to no need of the set: %w", name, ErrMissing)
}

// Command prepares a program of the set as exec.Command does: the process is
// the program itself, so that signals reach it. A program from an unpacked
// tree gets the tree's libraries and data by environment and options. When the
// program is not in the set, running the command fails with that error.
func (s *Set) Command(tool string, args ...string) *exec.Cmd {
	return s.prepare(tool, args, exec.Command)
}

// CommandContext is Command whose process is killed when ctx ends.
func (s *Set) CommandContext(ctx context.Context, tool string, args ...string) *exec.Cmd {
	return s.prepare(tool, args, func(name string, args ...string) *exec.Cmd {
		return exec.CommandContext(ctx, name, args...)
	})
}

func (s *Set) prepare(tool string, args []string, command func(string, ...string) *exec.Cmd) *exec.Cmd {
	path, err := s.Tool(tool)
	if err != nil {
		cmd := command(tool, args...)
		cmd.Err = err
		return cmd
	}
	p, _ := s.toolPlace(tool)
	cmd := command(path, append(p.options(tool), args...)...)
	cmd.Env = p.environ(os.Environ())
	return cmd
}

// options are what a program from an unpacked tree must be told first.
func (p place) options(tool string) []string {
	if p.kind == kindSystem || !strings.HasPrefix(tool, "qemu-system-") {
		return nil
	}
	var out []string
	for _, d := range []string{"usr/share/qemu", "usr/share/seabios", "usr/lib/ipxe/qemu"} {
		if dir := filepath.Join(p.root, d); isDir(dir) {
			out = append(out, "-L", dir)
		}
	}
	return out
}

// environ is the environment of a program from an unpacked tree.
func (p place) environ(base []string) []string {
	if p.kind == kindSystem {
		return base
	}
	var libs, bins []string
	for _, d := range []string{"usr/lib", "lib"} {
		dir := filepath.Join(p.root, d, triplet())
		if !isDir(dir) {
			continue
		}
		libs = append(libs, dir)
		for _, private := range p.spec.libDirs {
			if sub := filepath.Join(dir, private); isDir(sub) {
				libs = append(libs, sub)
			}
		}
	}
	for _, d := range binDirs {
		if dir := filepath.Join(p.root, d); isDir(dir) {
			bins = append(bins, dir)
		}
	}
	out := slices.Clone(base)
	out = prepend(out, "LD_LIBRARY_PATH", libs)
	out = prepend(out, "PATH", bins)
	if modules := filepath.Join(p.root, "usr/lib", triplet(), "qemu"); isDir(modules) {
		out = append(out, "QEMU_MODULE_DIR="+modules)
	}
	if conf := filepath.Join(p.root, "etc/mke2fs.conf"); isFile(conf) {
		out = append(out, "MKE2FS_CONFIG="+conf)
	}
	return out
}

// prepend puts folders before those of a list variable; the last assignment
// of a variable is the one that counts for exec.Cmd.
func prepend(env []string, key string, dirs []string) []string {
	if len(dirs) == 0 {
		return env
	}
	value := strings.Join(dirs, ":")
	for i := len(env) - 1; i >= 0; i-- {
		if old, ok := strings.CutPrefix(env[i], key+"="); ok {
			if old != "" {
				value += ":" + old
			}
			break
		}
	}
	return append(env, key+"="+value)
}

func isDir(path string) bool {
	info, err := os.Stat(path)
	return err == nil && info.IsDir()
}

func isFile(path string) bool {
	info, err := os.Stat(path)
	return err == nil && info.Mode().IsRegular()
}
