// SPDX-License-Identifier: Apache-2.0

package boot

import (
	"bufio"
	"bytes"
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"

	"golang.org/x/sys/unix"
)

// modulePlace is where modules are; a list that names anything else is refused.
const modulePlace = "/lib/modules/"

// parseModules reads the module list: one absolute path a line in load order,
// empty lines and lines that begin with # are left out.
func parseModules(text []byte) ([]string, error) {
	var paths []string
	s := bufio.NewScanner(bytes.NewReader(text))
	for n := 1; s.Scan(); n++ {
		line := strings.TrimSpace(s.Text())
		if line == "" || line[0] == '#' {
			continue
		}
		if filepath.Clean(line) != line || !strings.HasPrefix(line, modulePlace) {
			return nil, fmt.Errorf("line %d: %q is not a clean path below %s", n, line, modulePlace)
		}
		paths = append(paths, line)
	}
	if err := s.Err(); err != nil {
		return nil, err
	}
	return paths, nil
}

// outcome is what became of the modules of a list.
type outcome struct {
	used   []string // paths that were handed to the kernel
	absent []string // names of those whose hardware is not there
	failed []string // names of those that failed, each with the reason
}

// loadModules loads each module in order and goes on after one that fails.
func loadModules(paths []string, load func(path string) error) outcome {
	var o outcome
	for _, p := range paths {
		err := load(p)
		if !errors.Is(err, os.ErrNotExist) {
			o.used = append(o.used, p)
		}
		name := filepath.Base(p)
		switch {
		case err == nil, errors.Is(err, unix.EEXIST): // loaded already, or built in
		case errors.Is(err, unix.ENODEV):
			o.absent = append(o.absent, name)
		default:
			o.failed = append(o.failed, fmt.Sprintf("%s: %v", name, err))
		}
	}
	return o
}

// loadModule has the kernel load one module file, init_module(2). From the file,
// so that the kernel knows where it comes from; one that is compressed is
// decompressed by the kernel, if it was built to.
func loadModule(path string) error {
	f, err := os.Open(path)
	if err != nil {
		return err
	}
	defer f.Close()
	flags := 0
	if filepath.Ext(path) != ".ko" {
		flags = unix.MODULE_INIT_COMPRESSED_FILE
	}
	return unix.FinitModule(int(f.Fd()), "", flags)
}

func stepModules(_ context.Context, m *machine) (string, error) {
	text, err := os.ReadFile(m.cfg.ModuleList)
	if errors.Is(err, os.ErrNotExist) {
		return "", skip("no module list " + m.cfg.ModuleList)
	}
	if err != nil {
		return "", fmt.Errorf("module list: %w", err)
	}
	paths, err := parseModules(text)
	if err != nil {
		return "", fmt.Errorf("module list %s: %w", m.cfg.ModuleList, err)
	}
	o := loadModules(paths, loadModule)
	m.modules = o.used
	if len(o.failed) > 0 {
		return "", fmt.Errorf("%d of %d failed: %s", len(o.failed), len(paths), strings.Join(o.failed, "; "))
	}
	detail := fmt.Sprintf("%d loaded", len(paths)-len(o.absent))
	if len(o.absent) > 0 {
		detail += ", no device for " + strings.Join(o.absent, " ")
	}
	return detail, nil
}
