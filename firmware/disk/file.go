// SPDX-License-Identifier: Apache-2.0

package disk

import (
	"errors"
	"fmt"
	"io"
	"os"
	"sync"
	"sync/atomic"

	"golang.org/x/sys/unix"
)

// maxVector is the longest vector that preadv and pwritev take (IOV_MAX).
const maxVector = 1024

// File is a Volume in a raw image file or a block device.
type File struct {
	readOnly bool

	growMu sync.Mutex
	size   atomic.Int64 // stored under growMu

	mu sync.RWMutex // read: I/O, write: Close
	f  *os.File     // nil after Close; guarded by mu
	fd int          // of f

	lost atomic.Pointer[error] // why Flush failed first

	sync    func(fd int) error // fdatasync(2)
	through bool               // open with O_DSYNC: what has ended is durable

	inMemory   bool        // on a file system without a device: nothing waits
	neverReads atomic.Bool // the file system knows no reads that do not wait
}

// OpenFile makes a volume of an open file or block device, and takes it over,
// also on error. A writable volume is locked: as long as it is open, OpenFile fails with ErrInUse for
// every other open file description of the same file, in any process; read-only ones share the file.
func OpenFile(f *os.File, readOnly bool) (*File, error) {
	v, err := openFile(f, readOnly)
	if err != nil {
		return nil, errors.Join(fmt.Errorf("open volume %s: %w", f.Name(), err), f.Close())
	}
	return v, nil
}

func openFile(f *os.File, readOnly bool) (*File, error) {
	st, err := f.Stat()
	if err != nil {
		return nil, err
	}
	isDevice := st.Mode()&os.ModeDevice != 0 && st.Mode()&os.ModeCharDevice == 0
	if !st.Mode().IsRegular() && !isDevice {
		return nil, fmt.Errorf("%v is neither a file nor a block device", st.Mode().Type())
	}
	flags, err := unix.FcntlInt(f.Fd(), unix.F_GETFL, 0)
	if err != nil {
		return nil, fmt.Errorf("get open mode: %w", err)
	}
	if mode := flags & unix.O_ACCMODE; mode == unix.O_WRONLY || !readOnly && mode != unix.O_RDWR {
		return nil, fmt.Errorf("file is open in mode %#o: %w", mode, os.ErrPermission)
	}
	size, err := f.Seek(0, io.SeekEnd) // also right for block devices
	if err != nil {
		return nil, err
	}
	if err := checkSize(size); err != nil {
		return nil, err
	}
	lock := unix.LOCK_EX
	if readOnly {
		lock = unix.LOCK_SH
	}
	if err := unix.Flock(int(f.Fd()), lock|unix.LOCK_NB); errors.Is(err, unix.EWOULDBLOCK) {
		return nil, ErrInUse
	} else if err != nil {
		return nil, fmt.Errorf("lock: %w", err)
	}
	v := &File{
		readOnly: readOnly, f: f, fd: int(f.Fd()),
		sync: unix.Fdatasync, through: flags&unix.O_DSYNC != 0,
	}
	v.size.Store(size)
	var fs unix.Statfs_t
	if err := unix.Fstatfs(v.fd, &fs); err != nil {
		return nil, fmt.Errorf("look at the file system: %w", err)
	}
	v.inMemory = !isDevice && fs.Type == unix.TMPFS_MAGIC
	return v, nil
}

// Info implements Volume.
func (v *File) Info() Info { return Info{Size: v.size.Load(), ReadOnly: v.readOnly} }

// Grow implements Growable.
func (v *File) Grow() (int64, error) {
	v.growMu.Lock()
	defer v.growMu.Unlock()
	v.mu.RLock()
	defer v.mu.RUnlock()
	if v.f == nil {
		return 0, ErrClosed
	}
	size, err := v.f.Seek(0, io.SeekEnd)
	if err != nil {
		return 0, fmt.Errorf("find the volume's size: %w", err)
	}
	if err := checkSize(size); err != nil {
		return 0, err
	}
	if was := v.size.Load(); size < was {
		return 0, fmt.Errorf("volume of %d bytes has become %d: %w", was, size, ErrShrunk)
	}
	v.size.Store(size)
	return size, nil
}

// ReadAt implements Volume.
func (v *File) ReadAt(bufs [][]byte, off int64) error {
	return v.transfer("read", unix.Preadv, bufs, off)
}

// WriteAt implements Volume.
func (v *File) WriteAt(bufs [][]byte, off int64) error {
	if v.readOnly {
		return ErrReadOnly
	}
	return v.transfer("write", unix.Pwritev, bufs, off)
}

// TryReadAt implements Prompter: what is in the page cache does not have to wait.
func (v *File) TryReadAt(bufs [][]byte, off int64) error {
	if v.inMemory {
		return v.ReadAt(bufs, off)
	}
	if v.neverReads.Load() {
		return ErrWouldBlock
	}
	err := v.transfer("read", preadNoWait, bufs, off)
	if errors.Is(err, unix.EOPNOTSUPP) || errors.Is(err, unix.ENOSYS) || errors.Is(err, unix.EPERM) {
		v.neverReads.Store(true)
		return ErrWouldBlock
	}
	if errors.Is(err, unix.EAGAIN) {
		return ErrWouldBlock
	}
	return err
}

func preadNoWait(fd int, bufs [][]byte, off int64) (int, error) {
	return unix.Preadv2(fd, bufs, off, unix.RWF_NOWAIT)
}

// TryWriteAt implements Prompter. Writes to a device's page cache may be throttled
// until the device has caught up: only memory never waits.
func (v *File) TryWriteAt(bufs [][]byte, off int64) error {
	if v.inMemory {
		return v.WriteAt(bufs, off)
	}
	return ErrWouldBlock
}

// transfer moves all of bufs by as few system calls as possible.
func (v *File) transfer(what string, call func(fd int, bufs [][]byte, off int64) (int, error), bufs [][]byte, off int64) error {
	if err := checkRange(v.size.Load(), off, length(bufs)); err != nil {
		return err
	}
	v.mu.RLock()
	defer v.mu.RUnlock()
	if v.f == nil {
		return ErrClosed
	}
	skip := 0 // bytes of bufs[0] that are done
	for len(bufs) > 0 {
		batch := bufs[:min(len(bufs), maxVector)]
		if skip > 0 {
			batch = [][]byte{bufs[0][skip:]} // after a short transfer: finish the buffer it ended in
		}
		n, err := call(v.fd, batch, off)
		if errors.Is(err, unix.EINTR) {
			continue
		}
		if err != nil {
			return fmt.Errorf("%s %d bytes at %d: %w", what, length(batch), off, err)
		}
		if n == 0 && length(batch) > 0 {
			return fmt.Errorf("%s at %d: %w", what, off, io.ErrUnexpectedEOF)
		}
		off += int64(n)
		bufs, skip = advance(bufs, skip+n)
	}
	return nil
}

// advance drops n bytes from the front of bufs: whole buffers from the list, and
// the rest as the number of bytes done of the first one.
func advance(bufs [][]byte, n int) (rest [][]byte, skip int) {
	for len(bufs) > 0 && n >= len(bufs[0]) {
		n -= len(bufs[0])
		bufs = bufs[1:]
	}
	return bufs, n
}

// Flush implements Volume.
func (v *File) Flush() error {
	v.mu.RLock()
	defer v.mu.RUnlock()
	if v.f == nil {
		return ErrClosed
	}
	if v.readOnly {
		return nil
	}
	if lost := v.lost.Load(); lost != nil {
		return *lost
	}
	if err := v.sync(v.fd); err != nil {
		// The kernel reports a failed write-back once and forgets the pages.
		err = fmt.Errorf("flush: %w", err)
		v.lost.CompareAndSwap(nil, &err)
		return err
	}
	if lost := v.lost.Load(); lost != nil {
		return *lost // one beside this one got the report
	}
	return nil
}

// Discard implements Trimmer.
func (v *File) Discard(off, n int64) error {
	err := v.allocate(unix.FALLOC_FL_PUNCH_HOLE|unix.FALLOC_FL_KEEP_SIZE, off, n)
	if err != nil {
		return fmt.Errorf("discard %d bytes at %d: %w", n, off, err)
	}
	return nil
}

// WriteZeroes implements Trimmer. File systems that have no fast way get zeroes
// written.
func (v *File) WriteZeroes(off, n int64, unmap bool) error {
	mode := uint32(unix.FALLOC_FL_ZERO_RANGE | unix.FALLOC_FL_KEEP_SIZE)
	if unmap {
		mode = unix.FALLOC_FL_PUNCH_HOLE | unix.FALLOC_FL_KEEP_SIZE
	}
	err := v.allocate(mode, off, n)
	switch {
	case errors.Is(err, ErrNotSupported):
		err = Zero(v, off, n)
	case err == nil && v.through:
		err = v.Flush() // O_DSYNC is about writes: a hole may be in the journal's memory only
	}
	if err != nil {
		return fmt.Errorf("write %d zeroes at %d: %w", n, off, err)
	}
	return nil
}

func (v *File) allocate(mode uint32, off, n int64) error {
	if v.readOnly {
		return ErrReadOnly
	}
	if err := checkRange(v.size.Load(), off, uint64(n)); err != nil || n == 0 {
		return err
	}
	v.mu.RLock()
	defer v.mu.RUnlock()
	if v.f == nil {
		return ErrClosed
	}
	for {
		err := unix.Fallocate(v.fd, mode, off, n)
		switch {
		case errors.Is(err, unix.EINTR):
			continue
		case errors.Is(err, unix.EOPNOTSUPP), errors.Is(err, unix.ENOSYS), errors.Is(err, unix.ENODEV):
			return fmt.Errorf("%w: %w", ErrNotSupported, err)
		}
		return err
	}
}

// Close implements Volume. The lock goes with the last descriptor of the file.
func (v *File) Close() error {
	v.mu.Lock()
	defer v.mu.Unlock()
	if v.f == nil {
		return ErrClosed
	}
	f := v.f
	v.f = nil
	return f.Close()
}

var (
	_ Volume   = (*File)(nil)
	_ Trimmer  = (*File)(nil)
	_ Prompter = (*File)(nil)
	_ Growable = (*File)(nil)
)
