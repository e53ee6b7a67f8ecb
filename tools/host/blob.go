// SPDX-License-Identifier: Apache-2.0

package host

import (
	"bytes"
	"crypto/sha256"
	"errors"
	"fmt"
	"io"
	"os"

	"golang.org/x/sys/unix"

	"github.com/davit-dpu/davit/firmware/spec"
)

// pool is the file that all instances' memory is a part of.
type pool struct {
	path string
	file *os.File
	size uint64
	dev  uint64
	ino  uint64
}

func openPool(path string) (*pool, error) {
	f, err := os.Open(path)
	if err != nil {
		return nil, fmt.Errorf("open pool: %w", err)
	}
	var st unix.Stat_t
	if err := unix.Stat(path, &st); err != nil {
		return nil, errors.Join(fmt.Errorf("open pool: %w", err), f.Close())
	}
	if st.Mode&unix.S_IFMT != unix.S_IFREG || st.Size <= int64(spec.PoolReserved) {
		return nil, errors.Join(fmt.Errorf("open pool: %s is not a regular file of more than %s", path, spec.PoolReserved), f.Close())
	}
	return &pool{path: path, file: f, size: uint64(st.Size), dev: uint64(st.Dev), ino: st.Ino}, nil
}

// is says whether a file descriptor is the pool's file.
func (p *pool) is(fd int) bool {
	var st unix.Stat_t
	return unix.Fstat(fd, &st) == nil && uint64(st.Dev) == p.dev && st.Ino == p.ino
}

// copyOut copies a boot file out of the pool into a sealed memfd and checks it
// there, where nobody can change it any more.
func (p *pool) copyOut(name string, b *spec.Blob) (*os.File, error) {
	fd, err := unix.MemfdCreate(name, unix.MFD_CLOEXEC|unix.MFD_ALLOW_SEALING)
	if err != nil {
		return nil, fmt.Errorf("copy %s: %w", name, err)
	}
	f := os.NewFile(uintptr(fd), name)
	sum := sha256.New()
	_, err = io.Copy(io.MultiWriter(f, sum), io.NewSectionReader(p.file, int64(b.Offset), int64(b.Length)))
	if err == nil {
		_, err = unix.FcntlInt(uintptr(fd), unix.F_ADD_SEALS, unix.F_SEAL_WRITE|unix.F_SEAL_SHRINK|unix.F_SEAL_GROW|unix.F_SEAL_SEAL)
	}
	if err == nil && !bytes.Equal(sum.Sum(nil), b.SHA256) {
		err = fmt.Errorf("SHA-256 is %x, the order says %x", sum.Sum(nil), b.SHA256)
	}
	if err != nil {
		return nil, errors.Join(fmt.Errorf("copy %s: %w", name, err), f.Close())
	}
	return f, nil
}
