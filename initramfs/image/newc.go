// SPDX-License-Identifier: Apache-2.0

package image

import (
	"errors"
	"fmt"
	"io/fs"
	"path"
	"strconv"

	"github.com/u-root/mkuimage/cpio"
)

// ErrArchive says that an initramfs is malformed.
var ErrArchive = errors.New("malformed initramfs")

// record is one entry of a newc archive. The data are part of the archive's.
type record struct {
	name string // relative, clean
	mode uint64
	data []byte
}

const (
	newcMagic  = "070701"
	newcHeader = 110 // 6 of magic, 13 numbers of 8 hexadecimal digits
	trailer    = "TRAILER!!!"
)

// walk calls f for each record of a newc archive (Linux
// Documentation/driver-api/early-userspace/buffer-format.rst). Archives come
// out of files that someone hands us, so every length is checked before it is
// used; f's error ends the walk.
func walk(archive []byte, f func(record) error) error {
	rest := archive
	for {
		if len(rest) < newcHeader || string(rest[:6]) != newcMagic {
			return fmt.Errorf("%w: no record header at byte %d", ErrArchive, len(archive)-len(rest))
		}
		var field [13]uint64
		for i := range field {
			n, err := strconv.ParseUint(string(rest[6+8*i:14+8*i]), 16, 32)
			if err != nil {
				return fmt.Errorf("%w: header at byte %d: %w", ErrArchive, len(archive)-len(rest), err)
			}
			field[i] = n
		}
		mode, size, nameSize := field[1], field[6], field[11]
		data := round4(newcHeader + nameSize)
		if nameSize == 0 || nameSize > 4096 || data+size > uint64(len(rest)) {
			return fmt.Errorf("%w: record of %d bytes with a name of %d at byte %d is cut off",
				ErrArchive, size, nameSize, len(archive)-len(rest))
		}
		name := string(rest[newcHeader : newcHeader+nameSize-1])
		if name == trailer {
			return nil
		}
		if !fs.ValidPath(name) || path.Clean(name) != name {
			return fmt.Errorf("%w: name %q", ErrArchive, name)
		}
		if err := f(record{name: name, mode: mode, data: rest[data : data+size]}); err != nil {
			return err
		}
		rest = rest[min(round4(data+size), uint64(len(rest))):]
	}
}

func round4(n uint64) uint64 { return (n + 3) &^ 3 }

// fileMode gives a record's mode in Go's terms.
func fileMode(mode uint64) fs.FileMode {
	m := fs.FileMode(mode & 0o777)
	if mode&0o1000 != 0 {
		m |= fs.ModeSticky
	}
	switch mode & cpio.S_IFMT {
	case cpio.S_IFDIR:
		m |= fs.ModeDir
	case cpio.S_IFLNK:
		m |= fs.ModeSymlink
	case cpio.S_IFCHR:
		m |= fs.ModeDevice | fs.ModeCharDevice
	case cpio.S_IFREG:
	default:
		m |= fs.ModeIrregular
	}
	return m
}
