// SPDX-License-Identifier: Apache-2.0

package vhostuser

import (
	"errors"
	"fmt"
	"sync"

	"golang.org/x/sys/unix"
)

// backend is the channel for requests of the back end to the front end
// (vhost-user, "Back-end communication"), a socket that the front end made. Its zero
// value is a channel that the front end has not set up yet.
type backend struct {
	mu   sync.Mutex
	open bool // guarded by mu: fd is the socket
	fd   int  // guarded by mu
}

// set makes fd, which it takes over also on error, the channel.
func (b *backend) set(fd int) error {
	if err := checkSocket(fd); err != nil {
		_ = unix.Close(fd)
		return err
	}
	b.close()
	b.mu.Lock()
	defer b.mu.Unlock()
	b.open, b.fd = true, fd
	return nil
}

// checkSocket refuses what is not a unix stream socket: only of such a one it is
// certain that sending does not block.
func checkSocket(fd int) error {
	domain, err := unix.GetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_DOMAIN)
	if err != nil {
		return fmt.Errorf("is not a socket: %w", err)
	}
	kind, err := unix.GetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_TYPE)
	if err != nil || domain != unix.AF_UNIX || kind != unix.SOCK_STREAM {
		return fmt.Errorf("socket of domain %d and type %d is not a unix stream socket", domain, kind)
	}
	return nil
}

// configChanged tells the front end, if it wants to hear, that it should read the
// configuration space again. It never blocks. A full socket needs no message: what is
// in it and not read yet says the same.
func (b *backend) configChanged() error {
	b.mu.Lock()
	defer b.mu.Unlock()
	if !b.open {
		return nil
	}
	m := AppendMessage(nil, Message{Request: BackendConfigChange, Flags: flagVersion})
	for {
		_, err := unix.SendmsgN(b.fd, m, nil, nil, unix.MSG_DONTWAIT|unix.MSG_NOSIGNAL)
		switch {
		case errors.Is(err, unix.EINTR):
			continue
		case err == nil, errors.Is(err, unix.EAGAIN):
			return nil
		}
		return fmt.Errorf("send on the back-end channel: %w", err)
	}
}

func (b *backend) close() {
	b.mu.Lock()
	defer b.mu.Unlock()
	if b.open {
		_ = unix.Close(b.fd)
		b.open = false
	}
}

// setBackendFD takes over the back-end channel.
func (s *session) setBackendFD(m *Message) error {
	if err := m.checkEmpty(); err != nil {
		return err
	}
	if len(m.FDs) != 1 {
		return m.errorf("%d file descriptors, want 1", len(m.FDs))
	}
	fd := m.FDs[0]
	m.FDs = nil
	if err := s.backend.set(fd); err != nil {
		return m.wrap("back-end channel", err)
	}
	return nil
}

// configChanged is called when the device's configuration space has changed.
func (s *session) configChanged() {
	if err := s.backend.configChanged(); err != nil {
		s.log.Warn("front end was not told of a new configuration", "err", err)
		return
	}
	s.log.Info("configuration changed")
}
