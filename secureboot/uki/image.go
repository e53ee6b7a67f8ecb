// SPDX-License-Identifier: Apache-2.0

package uki

import (
	"bytes"
	"crypto/sha256"
)

// Image is a parsed PE image. It is well formed and nothing more: only Verify
// tells who made it. It keeps the bytes given to Open, which must not change.
type Image struct {
	data   []byte
	header *header
}

// Section describes one section of an image.
type Section struct {
	Name    string
	Address uint32   // where it is mapped, relative to the image's base
	Size    uint32   // of its content, in bytes
	SHA256  [32]byte // of its content
}

// Open parses a PE32+ image. The error wraps ErrFormat.
func Open(data []byte) (*Image, error) {
	h, err := parseHeader(data)
	if err != nil {
		return nil, err
	}
	return &Image{data: data, header: h}, nil
}

// Machine is the image's machine type, one of the Machine constants or another.
func (i *Image) Machine() uint16 { return i.header.machine }

// Size is the length of the file in bytes.
func (i *Image) Size() int { return len(i.data) }

// Sections lists the image's sections as in its section table.
func (i *Image) Sections() []Section {
	list := make([]Section, 0, len(i.header.sections))
	for _, s := range i.header.sections {
		c := s.content(i.data)
		list = append(list, Section{
			Name: s.name, Address: s.virtualAddress,
			Size: uint32(len(c)), SHA256: sha256.Sum256(c),
		})
	}
	return list
}

// Content gives a copy of the content of the section with that name, and
// whether there is one.
func (i *Image) Content(name string) ([]byte, bool) {
	for _, s := range i.header.sections {
		if s.name == name {
			return bytes.Clone(s.content(i.data)), true
		}
	}
	return nil, false
}

// Signed tells if the image carries a certificate table, of whomever.
func (i *Image) Signed() bool { return i.header.certSize != 0 }

// Digest is the Authenticode SHA-256 of the image: of all its bytes but
// CheckSum, the certificate table and its data directory, padded with zeros to
// a multiple of 8 bytes. Signing does not change it. It is what firmware
// compares with db and dbx, and what it measures into PCR 4.
func (i *Image) Digest() [32]byte {
	h := i.header
	end := len(i.data)
	if i.Signed() {
		end = int(h.certOffset)
	}
	sum := sha256.New()
	checksum := h.optional + offCheckSum
	// Sections follow each other without a gap (see parseHeader), so the
	// specification's walk over them is the walk over the file.
	sum.Write(i.data[:checksum])
	sum.Write(i.data[checksum+4 : h.certDir])
	sum.Write(i.data[h.certDir+8 : end])
	sum.Write(make([]byte, align(uint64(end), 8)-uint64(end)))
	return [32]byte(sum.Sum(nil))
}

// align rounds n up to a multiple of a, a power of two.
func align(n, a uint64) uint64 { return (n + a - 1) &^ (a - 1) }
