// SPDX-License-Identifier: Apache-2.0

package vcard

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"os"

	"golang.org/x/sys/unix"

	"github.com/davit-dpu/davit/firmware/bus"
	"github.com/davit-dpu/davit/firmware/control"
	"github.com/davit-dpu/davit/firmware/spec"
	"github.com/davit-dpu/davit/firmware/virtio/guestmem"
	"github.com/davit-dpu/davit/firmware/virtio/vhostuser"
)

// window is the DMA window with the file behind it.
type window struct {
	*bus.Window
	file       *os.File
	fileOffset uint64
	regular    bool // holes can be punched into it
}

// mapWindow maps the window. It owns file.
func mapWindow(req *control.AttachBus, file *os.File) (*window, error) {
	st, err := file.Stat()
	if err == nil && st.Mode().IsRegular() && uint64(st.Size()) < uint64(req.FileOffset+req.WindowSize) {
		// An access behind the end would raise SIGBUS.
		err = fmt.Errorf("file of %d bytes is shorter than the window: %w", st.Size(), control.ErrInvalid)
	}
	if err != nil {
		return nil, errors.Join(fmt.Errorf("window: %w", err), file.Close())
	}
	w, err := bus.Map(bus.Aperture{File: file, FileOffset: uint64(req.FileOffset), PoolOffset: uint64(req.WindowBase), Size: uint64(req.WindowSize)})
	if err != nil {
		return nil, errors.Join(err, file.Close())
	}
	return &window{Window: w, file: file, fileOffset: uint64(req.FileOffset), regular: st.Mode().IsRegular()}, nil
}

func (w *window) close() error { return errors.Join(w.Window.Close(), w.file.Close()) }

// memoryRange is a piece of the pool, given to one instance.
type memoryRange struct{ offset, size spec.Bytes }

func (r memoryRange) overlaps(o memoryRange) bool {
	return r.offset < o.offset+o.size && o.offset < r.offset+r.size
}

func (r memoryRange) String() string { return fmt.Sprintf("[%s, +%s)", r.offset, r.size) }

// inside reports whether the range lies in the window.
func (w *window) inside(r memoryRange) error {
	_, err := w.Slice(uint64(r.offset), uint64(r.size))
	return err
}

// rangeMapper gives a front end on the bus the memory of its own instance and
// nothing else. MemRegion.Offset is an offset in the host's pool.
type rangeMapper struct {
	window *window
	limit  memoryRange
}

// Map implements vhostuser.Mapper.
func (m rangeMapper) Map(r vhostuser.MemRegion, fd int) (guestmem.Region, error) {
	if fd != vhostuser.NoFD {
		return guestmem.Region{}, errors.New("file descriptor on a bus")
	}
	first, size := uint64(m.limit.offset), uint64(m.limit.size)
	if r.Offset < first || r.Offset-first > size || r.Size > size-(r.Offset-first) {
		return guestmem.Region{}, fmt.Errorf("pool [%#x, +%#x) is not inside the instance's memory %s", r.Offset, r.Size, m.limit)
	}
	mem, err := m.window.Slice(r.Offset, r.Size)
	if err != nil {
		return guestmem.Region{}, err
	}
	return guestmem.NewRegion(r.GuestPhys, r.UserAddr, mem, nil)
}

// dialer makes the streams of bus sessions out of what the controller handed
// over: a virtio-serial port, a connected socket or a listening one. f stays
// the caller's; stop gives up what the dialer holds.
func dialer(listen bool, f *os.File) (dial bus.DialFunc, stop func() error, err error) {
	if listen {
		ln, err := streamListener(f)
		if err != nil {
			return nil, nil, err
		}
		return bus.AcceptFrom(ln), ln.Close, nil
	}
	st, err := f.Stat()
	if err != nil {
		return nil, nil, fmt.Errorf("bus stream: %w", err)
	}
	switch {
	case st.Mode()&os.ModeCharDevice != 0:
		fd, err := dup(f)
		if err != nil {
			return nil, nil, fmt.Errorf("bus stream: %w", err)
		}
		port, err := bus.NewPort(fd)
		if err != nil {
			return nil, nil, err
		}
		return port.Dial, port.Close, nil
	case st.Mode()&os.ModeSocket != 0:
		conn, err := net.FileConn(f)
		if err != nil {
			return nil, nil, fmt.Errorf("bus stream: %w", err)
		}
		return dialOnce(conn), conn.Close, nil
	}
	return nil, nil, fmt.Errorf("bus stream: %s is neither a character device nor a socket: %w", st.Mode(), control.ErrInvalid)
}

// dialOnce gives a connection that was made by somebody else. There is no
// second one.
func dialOnce(conn net.Conn) bus.DialFunc {
	first := make(chan net.Conn, 1)
	first <- conn
	return func(ctx context.Context) (io.ReadWriteCloser, error) {
		select {
		case c := <-first:
			return c, nil
		case <-ctx.Done():
			return nil, ctx.Err()
		}
	}
}

// streamListener takes a listening unix stream socket. f stays the caller's.
func streamListener(f *os.File) (*net.UnixListener, error) {
	l, err := net.FileListener(f)
	if err != nil {
		return nil, fmt.Errorf("listener: %w: %w", control.ErrInvalid, err)
	}
	ul, ok := l.(*net.UnixListener)
	if !ok || l.Addr().Network() != "unix" {
		return nil, errors.Join(fmt.Errorf("listener of network %s: %w", l.Addr().Network(), control.ErrInvalid), l.Close())
	}
	ul.SetUnlinkOnClose(false) // the path is its maker's
	return ul, nil
}

// dup duplicates a descriptor without File.Fd, which would make it blocking.
func dup(f *os.File) (int, error) {
	raw, err := f.SyscallConn()
	if err != nil {
		return 0, err
	}
	var fd int
	var derr error
	err = raw.Control(func(old uintptr) { fd, derr = unix.FcntlInt(old, unix.F_DUPFD_CLOEXEC, 0) })
	return fd, errors.Join(err, derr)
}
