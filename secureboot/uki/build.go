// SPDX-License-Identifier: Apache-2.0

package uki

import (
	"errors"
	"fmt"
	"math"
	"strings"
)

// ErrStub says that a stub cannot be made into a unified kernel image.
var ErrStub = errors.New("unusable stub")

// Sections is what is joined with a stub. Linux must be given; what is empty
// of the others gets no section.
type Sections struct {
	OSRelease []byte // .osrel: os-release(5) text
	Cmdline   string // .cmdline: the kernel's command line, one line, printable ASCII
	Uname     string // .uname: the kernel's release
	Linux     []byte // .linux: the kernel, a PE image itself
	Initrd    []byte // .initrd: cpio archives, compressed or not
}

// Section characteristics: initialised data, readable.
const dataCharacteristics = 0x40000040

// Build joins a stub and sections to an unsigned image. The result depends on
// its arguments only. Neither stub nor sections are changed or kept.
func Build(stub []byte, s Sections) ([]byte, error) {
	base, err := Open(stub)
	if err != nil {
		return nil, fmt.Errorf("%w: %w", ErrStub, err)
	}
	list, err := s.list()
	if err != nil {
		return nil, fmt.Errorf("build kernel image: %w", err)
	}
	if err := checkStub(base, list); err != nil {
		return nil, err
	}
	return assemble(base, list)
}

type content struct {
	name string
	data []byte
}

// list gives the sections in the order in which they are laid down.
func (s Sections) list() ([]content, error) {
	if len(s.Linux) == 0 {
		return nil, errors.New("no kernel")
	}
	if strings.ContainsFunc(s.Cmdline, func(r rune) bool { return r < ' ' || r > '~' }) {
		return nil, fmt.Errorf("command line %q is not one line of printable ASCII", s.Cmdline)
	}
	var list []content
	for _, c := range []content{
		{".osrel", s.OSRelease},
		{".cmdline", []byte(s.Cmdline)},
		{".uname", []byte(s.Uname)},
		{".linux", s.Linux},
		{".initrd", s.Initrd},
	} {
		if len(c.data) > math.MaxInt32 {
			return nil, fmt.Errorf("section %s of %d bytes is too large", c.name, len(c.data))
		}
		if len(c.data) > 0 {
			list = append(list, c)
		}
	}
	return list, nil
}

func checkStub(base *Image, list []content) error {
	h := base.header
	if base.Signed() {
		return fmt.Errorf("%w: it is signed, and its signature would not survive", ErrStub)
	}
	if h.debugSize != 0 {
		// Debug entries point into the file behind the sections, which is dropped.
		return fmt.Errorf("%w: it has a debug directory", ErrStub)
	}
	for _, s := range h.sections {
		for _, c := range list {
			if s.name == c.name {
				return fmt.Errorf("%w: it has a section %s already", ErrStub, c.name)
			}
		}
		if s.virtualAddress < uint32(h.table) {
			return fmt.Errorf("%w: section %s is mapped over the headers", ErrStub, s.name)
		}
	}
	need := h.table + (len(h.sections)+len(list))*sectionSize
	if need > int(h.sizeOfHeaders) {
		return fmt.Errorf("%w: its headers have %d bytes, the section table needs %d", ErrStub, h.sizeOfHeaders, need)
	}
	if !isFiller(base.data[h.table+len(h.sections)*sectionSize : need]) {
		return fmt.Errorf("%w: the room behind its section table is in use", ErrStub)
	}
	return nil
}

// isFiller tells if b is one 4-byte word over and over: linkers fill the room
// between headers and code with zeros, or with the machine's no-operation.
func isFiller(b []byte) bool {
	for i := 4; i < len(b); i++ {
		if b[i] != b[i-4] {
			return false
		}
	}
	return true
}

func assemble(base *Image, list []content) ([]byte, error) {
	h := base.header
	end, err := h.sectionsEnd(len(base.data))
	if err != nil {
		return nil, fmt.Errorf("%w: %w", ErrStub, err)
	}
	if uint64(end)%uint64(h.fileAlign) != 0 {
		return nil, fmt.Errorf("%w: its last section ends at %#x, not aligned to %#x", ErrStub, end, h.fileAlign)
	}
	fileAlign, pageAlign := uint64(h.fileAlign), uint64(max(h.sectionAlign, 4096))
	virtual := uint64(h.sizeOfHeaders)
	for _, s := range h.sections {
		virtual = max(virtual, s.virtualEnd())
	}
	total := uint64(end)
	for _, c := range list {
		total += align(uint64(len(c.data)), fileAlign)
	}
	out := make([]byte, 0, total)
	out = append(out, base.data[:end]...)
	table := h.table + len(h.sections)*sectionSize
	for _, c := range list {
		virtual = align(virtual, pageAlign)
		raw := align(uint64(len(c.data)), fileAlign)
		if virtual+raw > math.MaxInt32 || uint64(len(out))+raw > math.MaxInt32 {
			return nil, fmt.Errorf("build kernel image: section %s makes it larger than 2 GiB", c.name)
		}
		putSection(out[table:table+sectionSize], section{
			name:        c.name,
			virtualSize: uint32(len(c.data)), virtualAddress: uint32(virtual),
			rawSize: uint32(raw), rawOffset: uint32(len(out)),
			characteristics: dataCharacteristics,
		})
		table += sectionSize
		virtual += uint64(len(c.data))
		out = pad(append(out, c.data...), fileAlign)
	}
	le.PutUint16(out[h.coff+2:], uint16(len(h.sections)+len(list)))
	le.PutUint32(out[h.coff+8:], 0) // PointerToSymbolTable: dropped
	le.PutUint32(out[h.coff+12:], 0)
	le.PutUint32(out[h.optional+offSizeOfImage:], uint32(align(virtual, uint64(h.sectionAlign))))
	le.PutUint32(out[h.optional+offCheckSum:], 0)
	return out, nil
}

// putSection writes one entry of the section table.
func putSection(b []byte, s section) {
	clear(b)
	copy(b[:8], s.name)
	le.PutUint32(b[8:], s.virtualSize)
	le.PutUint32(b[12:], s.virtualAddress)
	le.PutUint32(b[16:], s.rawSize)
	le.PutUint32(b[20:], s.rawOffset)
	le.PutUint32(b[36:], s.characteristics)
}

// pad appends zeros up to a multiple of a.
func pad(b []byte, a uint64) []byte {
	return append(b, make([]byte, align(uint64(len(b)), a)-uint64(len(b)))...)
}
