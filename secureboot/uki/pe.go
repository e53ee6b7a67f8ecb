// SPDX-License-Identifier: Apache-2.0

package uki

import (
	"bytes"
	"cmp"
	"encoding/binary"
	"errors"
	"fmt"
	"slices"
)

// ErrFormat says that a file is not a PE image that this package accepts.
var ErrFormat = errors.New("malformed PE image")

// Sizes and offsets of the PE/COFF specification, sections 3 and 4.
const (
	lfanewOffset    = 0x3c
	coffSize        = 20
	sectionSize     = 40
	magicPE32Plus   = 0x20b
	optionalFixed   = 112 // of PE32+, before the data directories
	dirCertificates = 4   // index of the certificate table's data directory
	dirDebug        = 6

	offSectionAlignment = 32
	offFileAlignment    = 36
	offSizeOfImage      = 56
	offSizeOfHeaders    = 60
	offCheckSum         = 64
	offNumberOfDirs     = 108
)

// Machine types (IMAGE_FILE_MACHINE_*) of the boards we have.
const (
	MachineAMD64 uint16 = 0x8664
	MachineARM64 uint16 = 0xaa64
)

// header is what this package reads from the headers of an image. Offsets are
// positions in the file.
type header struct {
	machine       uint16
	coff          int // offset of the COFF header
	optional      int // offset of the optional header
	table         int // offset of the section table
	sectionAlign  uint32
	fileAlign     uint32
	sizeOfImage   uint32
	sizeOfHeaders uint32
	certDir       int // offset of the certificate table's data directory
	certOffset    uint32
	certSize      uint32
	debugSize     uint32
	sections      []section // as in the table
}

// section is one entry of the section table.
type section struct {
	name            string
	virtualSize     uint32
	virtualAddress  uint32
	rawSize         uint32
	rawOffset       uint32
	characteristics uint32
}

func (s section) rawEnd() uint64     { return uint64(s.rawOffset) + uint64(s.rawSize) }
func (s section) virtualEnd() uint64 { return uint64(s.virtualAddress) + uint64(s.virtualSize) }

var le = binary.LittleEndian

// parseHeader reads and checks the headers of a PE32+ image. It accepts only
// images whose every byte is header, section, data behind the sections, or
// certificate: then an Authenticode digest covers all but checksum and
// certificates.
func parseHeader(data []byte) (*header, error) {
	var h header
	if err := h.locate(data); err != nil {
		return nil, fmt.Errorf("%w: %w", ErrFormat, err)
	}
	if err := h.parseOptional(data); err != nil {
		return nil, fmt.Errorf("%w: %w", ErrFormat, err)
	}
	if err := h.parseSections(data); err != nil {
		return nil, fmt.Errorf("%w: %w", ErrFormat, err)
	}
	if err := h.checkCertificates(len(data)); err != nil {
		return nil, fmt.Errorf("%w: %w", ErrFormat, err)
	}
	return &h, nil
}

// locate finds COFF header, optional header and section table.
func (h *header) locate(data []byte) error {
	if len(data) < lfanewOffset+4 || data[0] != 'M' || data[1] != 'Z' {
		return errors.New("no DOS header")
	}
	if uint64(len(data)) > 1<<31 {
		return fmt.Errorf("%d bytes are too many", len(data))
	}
	pe := uint64(le.Uint32(data[lfanewOffset:]))
	if pe+4+coffSize > uint64(len(data)) || !bytes.Equal(data[pe:pe+4], []byte("PE\x00\x00")) {
		return fmt.Errorf("no PE signature at %#x", pe)
	}
	h.coff = int(pe) + 4
	h.optional = h.coff + coffSize
	h.machine = le.Uint16(data[h.coff:])
	optionalSize := int(le.Uint16(data[h.coff+16:]))
	h.table = h.optional + optionalSize
	if optionalSize < optionalFixed || h.table > len(data) {
		return fmt.Errorf("optional header of %d bytes", optionalSize)
	}
	return nil
}

func (h *header) parseOptional(data []byte) error {
	o := data[h.optional:h.table]
	if magic := le.Uint16(o); magic != magicPE32Plus {
		return fmt.Errorf("optional header magic %#x, want PE32+", magic)
	}
	h.sectionAlign = le.Uint32(o[offSectionAlignment:])
	h.fileAlign = le.Uint32(o[offFileAlignment:])
	h.sizeOfImage = le.Uint32(o[offSizeOfImage:])
	h.sizeOfHeaders = le.Uint32(o[offSizeOfHeaders:])
	for _, a := range []uint32{h.sectionAlign, h.fileAlign} {
		if a < 8 || a > 1<<16 || a&(a-1) != 0 {
			return fmt.Errorf("alignment %d", a)
		}
	}
	if uint64(h.sizeOfHeaders) > uint64(len(data)) {
		return fmt.Errorf("headers of %d bytes in a file of %d", h.sizeOfHeaders, len(data))
	}
	dirs := le.Uint32(o[offNumberOfDirs:])
	if dirs > 16 || optionalFixed+8*int(dirs) > len(o) {
		return fmt.Errorf("%d data directories in an optional header of %d bytes", dirs, len(o))
	}
	if dirs <= dirCertificates {
		return fmt.Errorf("%d data directories: no room for a certificate table", dirs)
	}
	h.certDir = h.optional + optionalFixed + 8*dirCertificates
	h.certOffset = le.Uint32(data[h.certDir:])
	h.certSize = le.Uint32(data[h.certDir+4:])
	if dirs > dirDebug {
		h.debugSize = le.Uint32(o[optionalFixed+8*dirDebug+4:])
	}
	return nil
}

func (h *header) parseSections(data []byte) error {
	n := int(le.Uint16(data[h.coff+2:]))
	end := h.table + n*sectionSize
	if n == 0 || n > 96 || uint64(end) > uint64(h.sizeOfHeaders) {
		return fmt.Errorf("%d sections in headers of %d bytes", n, h.sizeOfHeaders)
	}
	names := make(map[string]bool)
	for b := data[h.table:end]; len(b) > 0; b = b[sectionSize:] {
		s := section{
			name:            string(bytes.TrimRight(b[:8], "\x00")),
			virtualSize:     le.Uint32(b[8:]),
			virtualAddress:  le.Uint32(b[12:]),
			rawSize:         le.Uint32(b[16:]),
			rawOffset:       le.Uint32(b[20:]),
			characteristics: le.Uint32(b[36:]),
		}
		if names[s.name] {
			return fmt.Errorf("section %q is there twice", s.name)
		}
		names[s.name] = true
		if s.virtualEnd() > 1<<32-1 {
			return fmt.Errorf("section %q lies beyond 4 GiB", s.name)
		}
		h.sections = append(h.sections, s)
	}
	_, err := h.sectionsEnd(len(data))
	return err
}

// sectionsEnd gives the offset behind the last section's data, after checking
// that the sections follow headers and each other without gap or overlap.
func (h *header) sectionsEnd(size int) (int, error) {
	end := uint64(h.sizeOfHeaders)
	for _, s := range h.byOffset() {
		if uint64(s.rawOffset) != end {
			return 0, fmt.Errorf("section %q begins at %#x of the file, want %#x", s.name, s.rawOffset, end)
		}
		if end = s.rawEnd(); end > uint64(size) {
			return 0, fmt.Errorf("section %q ends at %#x of a file of %#x bytes", s.name, end, size)
		}
	}
	return int(end), nil
}

// byOffset gives the sections that have data, in the order of the file.
func (h *header) byOffset() []section {
	var s []section
	for _, x := range h.sections {
		if x.rawSize != 0 {
			s = append(s, x)
		}
	}
	slices.SortFunc(s, func(a, b section) int { return cmp.Compare(a.rawOffset, b.rawOffset) })
	return s
}

// checkCertificates checks that the certificate table, if there is one, is the
// end of the file, where the specification wants it.
func (h *header) checkCertificates(size int) error {
	if h.certOffset == 0 && h.certSize == 0 {
		return nil
	}
	end, err := h.sectionsEnd(size)
	if err != nil {
		return err
	}
	if h.certOffset%8 != 0 || int64(h.certOffset) < int64(end) ||
		h.certSize == 0 || uint64(h.certOffset)+uint64(h.certSize) != uint64(size) {
		return fmt.Errorf("certificate table of %d bytes at %#x in a file of %#x bytes", h.certSize, h.certOffset, size)
	}
	return nil
}

// content gives the bytes of a section: VirtualSize of them, or what the file
// has when that is less (the rest would be zeros that only memory has).
func (s section) content(data []byte) []byte {
	n := min(s.virtualSize, s.rawSize)
	if n == 0 {
		return nil
	}
	return data[s.rawOffset : s.rawOffset+n]
}
