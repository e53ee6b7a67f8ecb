// SPDX-License-Identifier: Apache-2.0

package kernel

import (
	"bytes"
	"debug/elf"
	"errors"
	"fmt"
	"slices"
	"strings"
)

// ErrModinfo says that a file is not a kernel module, or that its .modinfo is
// malformed.
var ErrModinfo = errors.New("malformed module information")

// maxInfo bounds the .modinfo section: drivers with thousands of device
// aliases stay below 256 KiB.
const maxInfo = 4 << 20

// info is what this package uses of a module's .modinfo.
type info struct {
	name     string   // empty in modules of kernels before 4.13
	depends  []string // normalised names, sorted, each once
	vermagic string
}

// readInfo reads the .modinfo of a module's ELF image.
func readInfo(module []byte) (*info, error) {
	f, err := elf.NewFile(bytes.NewReader(module))
	if err != nil {
		return nil, fmt.Errorf("%w: %w", ErrModinfo, err)
	}
	if f.Type != elf.ET_REL {
		return nil, fmt.Errorf("%w: ELF type %v, want a relocatable file", ErrModinfo, f.Type)
	}
	s := f.Section(".modinfo")
	if s == nil {
		return nil, fmt.Errorf("%w: no .modinfo section", ErrModinfo)
	}
	if s.Type != elf.SHT_PROGBITS || s.Flags&elf.SHF_COMPRESSED != 0 || s.Size > maxInfo {
		return nil, fmt.Errorf("%w: .modinfo has type %v, flags %v, %d bytes", ErrModinfo, s.Type, s.Flags, s.Size)
	}
	data, err := s.Data()
	if err != nil {
		return nil, fmt.Errorf("%w: read .modinfo: %w", ErrModinfo, err)
	}
	return parseInfo(data)
}

// parseInfo parses the content of a .modinfo section: key=value strings, each
// ended by one NUL or more (the linker pads between object files).
func parseInfo(data []byte) (*info, error) {
	if len(data) > 0 && data[len(data)-1] != 0 {
		return nil, fmt.Errorf("%w: .modinfo does not end in NUL", ErrModinfo)
	}
	var in info
	for entry := range bytes.SplitSeq(data, []byte{0}) {
		if len(entry) == 0 {
			continue
		}
		key, value, ok := strings.Cut(string(entry), "=")
		if !ok {
			return nil, fmt.Errorf("%w: entry %q has no '='", ErrModinfo, clip(entry))
		}
		switch key {
		case "name":
			if in.name != "" || !validName(value) {
				return nil, fmt.Errorf("%w: name %q", ErrModinfo, clip(entry))
			}
			in.name = value
		case "vermagic":
			in.vermagic = value
		case "depends":
			if err := in.addDepends(value); err != nil {
				return nil, err
			}
		}
	}
	slices.Sort(in.depends)
	in.depends = slices.Compact(in.depends)
	return &in, nil
}

func (in *info) addDepends(list string) error {
	if list == "" {
		return nil
	}
	for dep := range strings.SplitSeq(list, ",") {
		if !validName(dep) {
			return fmt.Errorf("%w: depends on %q", ErrModinfo, clip([]byte(dep)))
		}
		in.depends = append(in.depends, normalise(dep))
	}
	return nil
}

// validName tells if s can be a module's name. Names become paths, so nothing
// that could lead out of a folder passes.
func validName(s string) bool {
	if s == "" || len(s) > 128 {
		return false
	}
	for _, c := range []byte(s) {
		switch {
		case 'a' <= c && c <= 'z', 'A' <= c && c <= 'Z', '0' <= c && c <= '9', c == '_', c == '-':
		default:
			return false
		}
	}
	return true
}

func clip(b []byte) []byte { return b[:min(len(b), 64)] }
