// SPDX-License-Identifier: Apache-2.0

package host

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"net"
	"os"
	"path/filepath"
)

// withDir runs fn with a short path to dir: a unix socket address holds 107
// characters, a run directory may be deeper than that.
func withDir(dir string, fn func(short string) error) error {
	f, err := os.Open(dir)
	if err != nil {
		return err
	}
	defer f.Close()
	raw, err := f.SyscallConn()
	if err != nil {
		return err
	}
	var ferr error
	cerr := raw.Control(func(fd uintptr) { ferr = fn(fmt.Sprintf("/proc/self/fd/%d", fd)) })
	return errors.Join(cerr, ferr)
}

// listen makes a listening socket in dir, in place of what a predecessor left.
// Closing it does not remove the name.
func listen(dir, name string) (*net.UnixListener, error) {
	if err := os.Remove(filepath.Join(dir, name)); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return nil, fmt.Errorf("listen on %s: %w", name, err)
	}
	var l *net.UnixListener
	err := withDir(dir, func(short string) (err error) {
		l, err = net.ListenUnix("unix", &net.UnixAddr{Name: short + "/" + name, Net: "unix"})
		return err
	})
	if err != nil {
		return nil, fmt.Errorf("listen on %s: %w", name, err)
	}
	l.SetUnlinkOnClose(false)
	return l, nil
}

func dial(ctx context.Context, dir, name string) (net.Conn, error) {
	var c net.Conn
	err := withDir(dir, func(short string) (err error) {
		var d net.Dialer
		c, err = d.DialContext(ctx, "unix", short+"/"+name)
		return err
	})
	if err != nil {
		return nil, fmt.Errorf("connect to %s: %w", name, err)
	}
	return c, nil
}

// acceptOne waits for one connection, until ctx ends.
func acceptOne(ctx context.Context, l *net.UnixListener) (*net.UnixConn, error) {
	stop := context.AfterFunc(ctx, func() { _ = l.Close() })
	defer stop()
	c, err := l.AcceptUnix()
	if err != nil && ctx.Err() != nil {
		err = ctx.Err()
	}
	return c, err
}
