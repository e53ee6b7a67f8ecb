// SPDX-License-Identifier: Apache-2.0

package nbd

import (
	"errors"
	"fmt"
	"io"
	"net"
	"sync"
	"sync/atomic"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
)

// request is one request, from its first sending to its end. Its buffers are the
// caller's until done has got the result.
type request struct {
	cmd    uint16
	cookie uint64
	head   [requestLen]byte
	bufs   [][]byte   // a read fills them, a write sends them
	covers uint64     // flush: how many changes it makes durable
	done   chan error // capacity 1; one result for each use

	phase atomic.Int32 // on the connection of the moment
	fault error        // its buffers can not be accessed; set while it is sent or read
}

// Phases of a request on a connection.
const (
	unsent int32 = iota
	sending
	sent
)

// conn is one connection to a server, after the handshake.
type conn struct {
	net.Conn
	in net.Buffers // scratch of the reader

	mu   sync.Mutex  // held while a request is sent
	out  net.Buffers // guarded by mu; scratch
	dead bool        // guarded by mu: no request is touched any more
	err  error       // why a sender ended the connection; guarded by mu
}

// send sends a request, unless the connection is dead. What goes wrong ends
// the connection, and its reader sees that.
func (c *conn) send(r *request) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.dead {
		return
	}
	r.phase.Store(sending)
	defer r.phase.Store(sent)
	c.out = append(c.out[:0], r.head[:])
	if r.cmd == cmdWrite {
		c.out = append(c.out, r.bufs...)
	}
	vec := c.out // WriteTo uses it up
	if _, err := vec.WriteTo(c.Conn); err != nil {
		if errors.Is(err, unix.EFAULT) {
			r.fault = fmt.Errorf("write: %w", err)
		}
		if c.err == nil {
			c.err = err
		}
		_ = c.Close()
	}
	clear(c.out)
}

// wasSent reports whether the server can have the whole request. A reply can
// come before the sender has seen that its last byte was taken: it is waited for.
func (c *conn) wasSent(r *request) bool {
	if r.phase.Load() != sending {
		return r.phase.Load() == sent
	}
	c.mu.Lock() // until the sender is through
	defer c.mu.Unlock()
	return r.phase.Load() == sent
}

// kill ends the connection, and returns when no sender touches a request any
// more. The error is that of the first sender who met one.
func (c *conn) kill() error {
	_ = c.Close() // ends a sender that waits for the server
	c.mu.Lock()
	defer c.mu.Unlock()
	c.dead = true
	return c.err
}

// hangUp ends the connection as the protocol wants it, if that does not take long.
func (c *conn) hangUp() {
	if c.mu.TryLock() {
		b := encodeRequest(0, cmdDisconnect, 0, 0, 0)
		if c.SetWriteDeadline(time.Now().Add(time.Second)) == nil {
			_, _ = c.Write(b[:])
		}
		c.dead = true
		c.mu.Unlock()
	}
	_ = c.Close()
}

// receive fills the buffers of a read.
func (c *conn) receive(r *request) error {
	c.in = append(c.in[:0], r.bufs...)
	defer clear(c.in)
	var err error
	if s, ok := c.Conn.(syscall.Conn); ok {
		err = readVector(s, c.in)
	} else {
		for _, b := range c.in {
			if _, err = io.ReadFull(c.Conn, b); err != nil {
				break
			}
		}
	}
	if errors.Is(err, unix.EFAULT) {
		r.fault = fmt.Errorf("read: %w", err)
	}
	return err
}

// maxVector is the longest vector that readv takes (IOV_MAX).
const maxVector = 1024

// readVector fills vec, which it uses up, by as few system calls as possible.
func readVector(s syscall.Conn, vec [][]byte) error {
	raw, err := s.SyscallConn()
	if err != nil {
		return err
	}
	for vec = drop(vec, 0); len(vec) > 0; {
		var n int
		var errRead error
		err := raw.Read(func(fd uintptr) bool {
			n, errRead = unix.Readv(int(fd), vec[:min(len(vec), maxVector)])
			return !errors.Is(errRead, unix.EAGAIN)
		})
		switch {
		case err != nil:
			return err
		case errors.Is(errRead, unix.EINTR):
			continue
		case errRead != nil:
			return errRead
		case n == 0:
			return io.ErrUnexpectedEOF
		}
		vec = drop(vec, n)
	}
	return nil
}

// drop takes n bytes, and the empty buffers after them, off the front of vec, which it changes.
func drop(vec [][]byte, n int) [][]byte {
	for len(vec) > 0 && n >= len(vec[0]) {
		n -= len(vec[0])
		vec = vec[1:]
	}
	if n > 0 {
		vec[0] = vec[0][n:]
	}
	return vec
}
