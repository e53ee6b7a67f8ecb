// SPDX-License-Identifier: Apache-2.0

package control

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"net"
	"os"
	"os/exec"
	"syscall"

	"golang.org/x/sys/unix"
)

// ListenerFD is the file descriptor under which vcard finds its socket.
const ListenerFD = 3

// Bind makes the socket at path for a new vcard, in place of one left by a
// vcard that is gone; only this user can connect to it. It is bound but does
// not listen: vcard calls listen(2) itself, so that nobody is connected before
// it runs, and so that the kernel names it as the peer (Client.PID). A path
// at which somebody listens is an error.
func Bind(path string) (*os.File, error) {
	if conn, err := net.Dial("unixpacket", path); err == nil {
		_ = conn.Close()
		return nil, fmt.Errorf("bind %s: a vcard listens there", path)
	}
	if err := os.Remove(path); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return nil, fmt.Errorf("bind: %w", err)
	}
	fd, err := unix.Socket(unix.AF_UNIX, unix.SOCK_SEQPACKET|unix.SOCK_CLOEXEC|unix.SOCK_NONBLOCK, 0)
	if err != nil {
		return nil, fmt.Errorf("bind %s: socket: %w", path, err)
	}
	f := os.NewFile(uintptr(fd), path)
	// fchmod before bind(2): there is no moment at which others may connect.
	if err := errors.Join(unix.Fchmod(fd, 0o600), unix.Bind(fd, &unix.SockaddrUnix{Name: path})); err != nil {
		_ = f.Close()
		return nil, fmt.Errorf("bind %s: %w", path, err)
	}
	return f, nil
}

// Listen makes the socket that Bind made, inherited as fd, a listener.
func Listen(fd uintptr) (*net.UnixListener, error) {
	f := os.NewFile(fd, "control socket")
	if f == nil {
		return nil, fmt.Errorf("control socket: descriptor %d: %w", fd, syscall.EBADF)
	}
	defer func() { _ = f.Close() }()
	kind, err := unix.GetsockoptInt(int(fd), unix.SOL_SOCKET, unix.SO_TYPE)
	if err != nil {
		return nil, fmt.Errorf("control socket: descriptor %d: %w", fd, err)
	}
	if kind != unix.SOCK_SEQPACKET {
		return nil, fmt.Errorf("control socket: descriptor %d is of type %d, not SOCK_SEQPACKET", fd, kind)
	}
	if err := unix.Listen(int(fd), 8); err != nil {
		return nil, fmt.Errorf("control socket: %w", err)
	}
	ln, err := net.FileListener(f)
	if err != nil {
		return nil, fmt.Errorf("control socket: %w", err)
	}
	ul, ok := ln.(*net.UnixListener)
	if !ok {
		return nil, errors.Join(fmt.Errorf("control socket: %s is not a unix socket", ln.Addr()), ln.Close())
	}
	ul.SetUnlinkOnClose(false) // the path is davitd's
	return ul, nil
}

// Command prepares a vcard process that confines itself: started by root it is
// born into namespaces of its own, in which there is no network, no other
// process and no mount that others see. It inherits standard error, the socket
// of Bind as ListenerFD, an empty environment and nothing else. It is in a
// session of its own and is not killed when davitd goes; ctx kills it. args
// are vcard's flags.
//
// As an ordinary user there are no namespaces: a vcard with --sandbox=strict
// refuses to run then.
func Command(ctx context.Context, program string, socket *os.File, args ...string) *exec.Cmd {
	cmd := exec.CommandContext(ctx, program, args...)
	cmd.Env = []string{}
	cmd.Stderr = os.Stderr
	cmd.Dir = "/"
	cmd.ExtraFiles = []*os.File{socket}
	cmd.SysProcAttr = ProcAttr()
	return cmd
}

// ProcAttr is how Command starts vcard, for a supervisor with its own way to
// start processes.
func ProcAttr() *syscall.SysProcAttr {
	attr := &syscall.SysProcAttr{Setsid: true}
	if os.Geteuid() == 0 {
		attr.Cloneflags = syscall.CLONE_NEWNET | syscall.CLONE_NEWNS | syscall.CLONE_NEWIPC | syscall.CLONE_NEWUTS | syscall.CLONE_NEWPID
	}
	return attr
}
