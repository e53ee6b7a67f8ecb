// SPDX-License-Identifier: Apache-2.0

package measure

import (
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"

	"golang.org/x/sys/unix"

	"github.com/davit-dpu/davit/firmware/eventlog"
)

// MaxFile is the largest file that is measured, in bytes.
const MaxFile = 256 << 20

// fdFloor is the lowest number that the descriptor of a measured file gets.
// Starting a process moves the files it inherits to 3 and up, and must not
// land on the one that it executes.
const fdFloor = 256

// maxMemfdName keeps within what memfd_create takes; it is only for show.
const maxMemfdName = 128

// ErrFile: the path is not a regular file of at most MaxFile bytes.
var ErrFile = errors.New("not a regular file within bounds")

// Measured is a file's content as it was measured. It belongs to the caller,
// who closes it.
type Measured struct {
	// Name is the path that was measured.
	Name string
	// Size is the content's length in bytes.
	Size int64
	// Digest is the content's SHA-256.
	Digest [32]byte

	file *os.File
}

// File measures a file and returns its content. Nothing is returned that was
// not measured.
func (m *Measurer) File(ctx context.Context, kind Kind, path string) (*Measured, error) {
	files, err := m.Files(ctx, kind, path)
	if err != nil {
		return nil, err
	}
	return files[0], nil
}

// Files measures several files, at most [eventlog.MaxItems], with one event
// that names each, and returns their contents in the same order: all or none.
func (m *Measurer) Files(ctx context.Context, kind Kind, paths ...string) ([]*Measured, error) {
	var captured []*Captured
	for _, path := range paths {
		c, err := Capture(path)
		if err != nil {
			return nil, closeAll(err, captured)
		}
		captured = append(captured, c)
	}
	return m.Measure(ctx, kind, captured...)
}

// Captured is a file's content that was copied and hashed, and is in no log yet.
// Nothing can be done with it but to measure it, which gives it out, or to close
// it.
type Captured struct{ content *Measured }

// Capture copies and hashes a file for a later Measure. It is what takes time of
// measuring, and needs neither a TPM nor a log.
func Capture(path string) (*Captured, error) {
	content, err := capture(path)
	if err != nil {
		return nil, fmt.Errorf("measure %s: %w", path, err)
	}
	return &Captured{content}, nil
}

// Close gives up the content.
func (c *Captured) Close() error { return c.content.Close() }

// Measure measures what was captured, at most [eventlog.MaxItems], with one
// event that names each, and returns the contents in the same order. It takes
// the captured over: when it fails, all are closed.
func (m *Measurer) Measure(ctx context.Context, kind Kind, captured ...*Captured) ([]*Measured, error) {
	var files []*Measured
	var items []eventlog.Item
	for _, c := range captured {
		f := c.content
		files = append(files, f)
		items = append(items, eventlog.Item{Name: f.Name, Size: uint64(f.Size), Digest: f.Digest})
	}
	if err := m.record(ctx, kind, items...); err != nil {
		return nil, closeAll(err, captured)
	}
	return files, nil
}

// closeAll adds to err what closing fails with.
func closeAll(err error, captured []*Captured) error {
	for _, c := range captured {
		err = errors.Join(err, c.Close())
	}
	return err
}

// File returns the content as a sealed memfd, close-on-exec. It belongs to f;
// whoever reads it shares its offset, which starts at 0.
func (f *Measured) File() *os.File { return f.file }

// ExecPath returns a path by which this process, or a child at its exec, runs
// the content. It holds as long as f is open.
func (f *Measured) ExecPath() string { return fmt.Sprintf("/proc/self/fd/%d", f.file.Fd()) }

// Read returns the whole content.
func (f *Measured) Read() ([]byte, error) {
	out := make([]byte, f.Size)
	if _, err := io.ReadFull(io.NewSectionReader(f.file, 0, f.Size), out); err != nil {
		return nil, fmt.Errorf("read measured %s: %w", f.Name, err)
	}
	return out, nil
}

// Close gives up the content.
func (f *Measured) Close() error { return f.file.Close() }

// capture copies a file into a sealed memfd and hashes what it copied.
func capture(path string) (*Measured, error) {
	// Not to block on a pipe; it is refused below.
	src, err := os.OpenFile(path, os.O_RDONLY|unix.O_NONBLOCK, 0)
	if err != nil {
		return nil, err
	}
	defer src.Close()
	info, err := src.Stat()
	if err != nil {
		return nil, err
	}
	if !info.Mode().IsRegular() || info.Size() > MaxFile {
		return nil, fmt.Errorf("%w: %v of %d bytes", ErrFile, info.Mode(), info.Size())
	}
	dst, err := memfd(filepath.Base(path))
	if err != nil {
		return nil, err
	}
	m := &Measured{Name: path, file: dst}
	if err := m.fill(src); err != nil {
		return nil, errors.Join(err, dst.Close())
	}
	return m, nil
}

func (f *Measured) fill(src io.Reader) error {
	h := sha256.New()
	n, err := io.Copy(io.MultiWriter(f.file, h), io.LimitReader(src, MaxFile+1))
	if err != nil {
		return err
	}
	if n > MaxFile {
		return fmt.Errorf("%w: it grew", ErrFile)
	}
	f.Size = n
	h.Sum(f.Digest[:0])
	seals := unix.F_SEAL_SEAL | unix.F_SEAL_SHRINK | unix.F_SEAL_GROW | unix.F_SEAL_WRITE
	if _, err := unix.FcntlInt(f.file.Fd(), unix.F_ADD_SEALS, seals); err != nil {
		return fmt.Errorf("seal: %w", err)
	}
	_, err = f.file.Seek(0, io.SeekStart)
	return err
}

// memfd returns an empty file in memory that can be sealed and executed.
func memfd(name string) (*os.File, error) {
	name = name[:min(len(name), maxMemfdName)]
	const flags = unix.MFD_CLOEXEC | unix.MFD_ALLOW_SEALING
	fd, err := unix.MemfdCreate(name, flags|unix.MFD_EXEC)
	if errors.Is(err, unix.EINVAL) {
		// Before Linux 6.3 there is no such flag, and all can be executed.
		fd, err = unix.MemfdCreate(name, flags)
	}
	if err != nil {
		return nil, fmt.Errorf("create memory file: %w", err)
	}
	high, err := unix.FcntlInt(uintptr(fd), unix.F_DUPFD_CLOEXEC, fdFloor)
	if closeErr := unix.Close(fd); err != nil || closeErr != nil {
		return nil, fmt.Errorf("create memory file: %w", errors.Join(err, closeErr))
	}
	return os.NewFile(uintptr(high), name), nil
}
