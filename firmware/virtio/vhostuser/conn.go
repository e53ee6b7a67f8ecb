// SPDX-License-Identifier: Apache-2.0

package vhostuser

import (
	"errors"
	"fmt"
	"io"
	"net"

	"golang.org/x/sys/unix"
)

// Conn carries messages between a front end and this back end.
type Conn interface {
	// ReadMessage waits for the next message. io.EOF is an orderly end, any
	// other error a broken one. Only one goroutine reads.
	ReadMessage() (Message, error)
	// WriteMessage sends a message, with file descriptors only if they pass. They
	// stay the caller's.
	WriteMessage(Message) error
	// PassesFDs says whether file descriptors can go along, in both directions.
	PassesFDs() bool
	// Close ends the connection and makes ReadMessage return.
	Close() error
}

// SocketConn is a Conn over a unix stream socket, with file descriptors in
// SCM_RIGHTS messages.
type SocketConn struct {
	conn *net.UnixConn
	oob  []byte
}

// NewSocketConn takes over a connected unix stream socket.
func NewSocketConn(c *net.UnixConn) *SocketConn {
	return &SocketConn{conn: c, oob: make([]byte, unix.CmsgSpace(4*MaxFDs))}
}

// ReadMessage implements Conn.
func (s *SocketConn) ReadMessage() (Message, error) {
	var (
		hdr [HeaderSize]byte
		fds []int
	)
	if err := s.readFull(hdr[:], &fds); err != nil {
		closeAll(fds)
		return Message{}, err
	}
	m, size, err := ParseHeader(hdr)
	if err != nil {
		closeAll(fds)
		return Message{}, err
	}
	m.Payload = make([]byte, size)
	if err := s.readFull(m.Payload, &fds); err != nil {
		closeAll(fds)
		if errors.Is(err, io.EOF) {
			err = io.ErrUnexpectedEOF
		}
		return Message{}, err
	}
	m.FDs = fds
	return m, nil
}

// readFull fills p and appends the descriptors that come with it to fds, also
// on error. io.EOF means that nothing was read.
func (s *SocketConn) readFull(p []byte, fds *[]int) error {
	for read := 0; read < len(p); {
		n, oobn, flags, _, err := s.conn.ReadMsgUnix(p[read:], s.oob)
		if err != nil && !errors.Is(err, io.EOF) {
			return fmt.Errorf("read vhost-user message: %w", err)
		}
		if err := appendFDs(fds, s.oob[:oobn]); err != nil {
			return err
		}
		switch {
		case flags&unix.MSG_CTRUNC != 0 || len(*fds) > MaxFDs:
			return fmt.Errorf("read vhost-user message: more than %d file descriptors", MaxFDs)
		case n == 0 && read == 0:
			return io.EOF
		case n == 0:
			return io.ErrUnexpectedEOF
		}
		read += n
	}
	return nil
}

func appendFDs(fds *[]int, oob []byte) error {
	if len(oob) == 0 {
		return nil
	}
	cmsgs, err := unix.ParseSocketControlMessage(oob)
	if err != nil {
		return fmt.Errorf("parse control message: %w", err)
	}
	for _, c := range cmsgs {
		if c.Header.Level != unix.SOL_SOCKET || c.Header.Type != unix.SCM_RIGHTS {
			continue
		}
		got, err := unix.ParseUnixRights(&c)
		if err != nil {
			return fmt.Errorf("parse file descriptors: %w", err)
		}
		*fds = append(*fds, got...)
	}
	return nil
}

// WriteMessage implements Conn.
func (s *SocketConn) WriteMessage(m Message) error {
	var rights []byte
	if len(m.FDs) > 0 {
		rights = unix.UnixRights(m.FDs...)
	}
	b := AppendMessage(nil, m)
	n, _, err := s.conn.WriteMsgUnix(b, rights, nil)
	if err == nil && n < len(b) {
		_, err = s.conn.Write(b[n:])
	}
	if err != nil {
		return fmt.Errorf("write vhost-user message: %w", err)
	}
	return nil
}

// PassesFDs implements Conn.
func (s *SocketConn) PassesFDs() bool { return true }

// Close implements Conn.
func (s *SocketConn) Close() error { return s.conn.Close() }

func closeAll(fds []int) {
	for _, fd := range fds {
		_ = unix.Close(fd)
	}
}
