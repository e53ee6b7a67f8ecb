// SPDX-License-Identifier: Apache-2.0

package control

import (
	"errors"
	"fmt"
	"os"

	"golang.org/x/sys/unix"
)

// Files are the descriptors that came with a request. What the handler does
// not Take is closed when it returns.
type Files struct{ files []*os.File }

// Take hands over the i-th file: the caller now owns it. It is nil when there
// is none or it was taken before.
func (f *Files) Take(i int) *os.File {
	if i < 0 || i >= len(f.files) {
		return nil
	}
	file := f.files[i]
	f.files[i] = nil
	return file
}

// DeviceFiles are the files of an AddDevice.
type DeviceFiles struct {
	Volume   *os.File // an overlay's store, if there is a base
	Base     *os.File // nil without AddDevice.Base
	Listener *os.File // nil without AddDevice.Listen
}

// Take hands over what came with the request: the caller now owns it.
func (m *AddDevice) Take(files *Files) DeviceFiles {
	taken := DeviceFiles{Volume: files.Take(0)}
	next := 1
	if m.Base != nil {
		taken.Base = files.Take(next)
		next++
	}
	if m.Listen {
		taken.Listener = files.Take(next)
	}
	return taken
}

// Close closes them all.
func (d DeviceFiles) Close() error {
	var failed []error
	for _, f := range []*os.File{d.Volume, d.Base, d.Listener} {
		if f != nil {
			failed = append(failed, f.Close())
		}
	}
	return errors.Join(failed...)
}

func (f *Files) close() { closeFiles(f.files) }

func closeFiles(files []*os.File) {
	for _, f := range files {
		if f != nil {
			_ = f.Close()
		}
	}
}

// parseFiles turns control messages into files. On an error every descriptor
// that was received has been closed.
func parseFiles(oob []byte) ([]*os.File, error) {
	if len(oob) == 0 {
		return nil, nil
	}
	msgs, err := unix.ParseSocketControlMessage(oob)
	if err != nil {
		return nil, fmt.Errorf("control message: %v: %w", err, ErrProtocol)
	}
	var files []*os.File
	foreign := false
	for i := range msgs {
		fds, err := unix.ParseUnixRights(&msgs[i])
		if err != nil {
			foreign = true
			continue
		}
		for _, fd := range fds {
			files = append(files, os.NewFile(uintptr(fd), "received"))
		}
	}
	if foreign {
		closeFiles(files)
		return nil, fmt.Errorf("control message that is not file descriptors: %w", ErrProtocol)
	}
	return files, nil
}

// fileRights encodes files for sending. It does not use File.Fd, which would
// make descriptors blocking.
func fileRights(files []*os.File) ([]byte, error) {
	if len(files) == 0 {
		return nil, nil
	}
	fds := make([]int, 0, len(files))
	for _, f := range files {
		raw, err := f.SyscallConn()
		if err != nil {
			return nil, fmt.Errorf("pass %s: %w", f.Name(), err)
		}
		if err := raw.Control(func(fd uintptr) { fds = append(fds, int(fd)) }); err != nil {
			return nil, fmt.Errorf("pass %s: %w", f.Name(), err)
		}
	}
	return unix.UnixRights(fds...), nil
}
