// SPDX-License-Identifier: Apache-2.0

package door

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"io"
	"net"
	"sync"
	"time"

	"github.com/davit-dpu/davit/firmware/mailbox"
)

// lingerBytes is how much of an oversized command is read and dropped so that
// its refusal reaches the peer.
const lingerBytes = 1 << 20

// conn is the card's side of one connection. Commands are answered one after
// the other.
type conn struct {
	server *Server
	place  *session
	raw    io.Closer     // closing it ends any waiting read or write
	rw     io.ReadWriter // raw, or TLS over it
}

// within does one thing that must not take longer than d, else the connection
// is closed. This works on every stream, deadlines or not.
func (c *conn) within(d time.Duration, do func() error) error {
	t := time.AfterFunc(d, func() { _ = c.raw.Close() }) // do sees the end
	err := do()
	if !t.Stop() {
		return fmt.Errorf("took longer than %v: %w", d, errors.Join(err, net.ErrClosed))
	}
	return err
}

// throttle takes tokens for what the peer is about to cause, and waits while
// the peer is overdrawn. Only this peer waits.
func (c *conn) throttle(ctx context.Context, tokens float64) error {
	if d := c.server.peers.spend(c.place.name, tokens); d > 0 && !pause(ctx, d) {
		return ctx.Err()
	}
	return nil
}

func (c *conn) handshake(ctx context.Context, config *tls.Config) error {
	if err := c.throttle(ctx, 1); err != nil {
		return err
	}
	raw, ok := c.raw.(net.Conn)
	if !ok {
		return fmt.Errorf("TLS over a %T", c.raw)
	}
	secure := tls.Server(raw, config)
	c.rw = secure
	return c.within(c.server.cfg.Frame, func() error { return secure.HandshakeContext(ctx) })
}

// run answers commands until the peer goes.
func (c *conn) run(ctx context.Context) error {
	for {
		message, whole, err := c.next()
		if err == io.EOF {
			return nil
		}
		if err != nil {
			return err
		}
		if err := c.throttle(ctx, 1); err != nil {
			return err
		}
		if err := c.answer(ctx, message); err != nil {
			return err
		}
		if !whole {
			return c.linger()
		}
	}
}

// next reads one command. Of one that is too large it reads just enough for
// the mailbox to see that; whole is false then.
func (c *conn) next() (message []byte, whole bool, err error) {
	var header [headerSize]byte
	err = c.within(c.server.cfg.Idle, func() error {
		_, err := io.ReadFull(c.rw, header[:1])
		return err
	})
	if err != nil {
		return nil, false, err
	}
	err = c.within(c.server.cfg.Frame, func() error {
		if _, err := io.ReadFull(c.rw, header[1:]); err != nil {
			return unexpected(err)
		}
		kind, size, err := parseHeader(header, []Kind{Envelope})
		if err != nil {
			return err
		}
		if whole = size <= mailbox.MaxCommand; whole {
			message, err = readBody(c.rw, kind, size)
			return err
		}
		message = make([]byte, mailbox.MaxCommand+1)
		_, err = io.ReadFull(c.rw, message)
		return unexpected(err)
	})
	if err != nil {
		return nil, false, err
	}
	return message, whole, nil
}

// answer lets the mailbox answer, and charges the peer for what it sent. Newcomers
// may have the place of a peer that pays by waiting, or that does not take the
// answer to what nobody signed: see link.Authenticated.
func (c *conn) answer(ctx context.Context, message []byte) error {
	l := &link{conn: c}
	code, err := c.server.cfg.Mailbox.Serve(ctx, c.server.cfg.Door, message, l)
	err = errors.Join(err, l.drain())
	c.server.peers.setActive(c.place, false)
	if err != nil {
		return err
	}
	if code.Refused() && !l.authenticated {
		return c.throttle(ctx, badCost-1)
	}
	return nil
}

// linger reads what is left of an oversized command, up to a bound: closing
// with unread data would take the refusal away from the peer.
func (c *conn) linger() error {
	return c.within(c.server.cfg.Frame, func() error {
		_, err := io.CopyN(io.Discard, c.rw, lingerBytes)
		if err == io.EOF {
			return nil
		}
		return err
	})
}

// link is the conn as one command sees it.
type link struct {
	conn          *conn
	authenticated bool // set before Serve returns

	mu     sync.Mutex // serialises frames
	opened bool       // a stream was opened; guarded by mu
	ended  bool       // our end frame was sent; guarded by mu

	fromPeer *io.PipeReader
	done     chan struct{} // closed when the peer's side has ended; nil without a stream
	err      error         // why it ended, valid after done; nil for an end frame
	cancel   context.CancelFunc
}

// Authenticated implements mailbox.Link. Only from here on the connection is safe
// from newcomers, until the command has been answered.
func (l *link) Authenticated() {
	l.authenticated = true
	l.conn.server.peers.setActive(l.conn.place, true)
}

// Receipt implements mailbox.Link.
func (l *link) Receipt(receipt []byte) error {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.opened && !l.ended {
		l.ended = true
		if err := l.write(End, nil); err != nil {
			return err
		}
	}
	return l.write(Receipt, receipt)
}

// write sends a frame. Needs mu.
func (l *link) write(kind Kind, body []byte) error {
	return l.conn.within(l.conn.server.cfg.Frame, func() error { return WriteFrame(l.conn.rw, kind, body) })
}

// Stream implements mailbox.Link.
func (l *link) Stream(ctx context.Context) (context.Context, mailbox.Stream) {
	l.mu.Lock()
	l.opened = true
	l.mu.Unlock()
	ctx, cancel := context.WithCancel(ctx)
	reader, writer := io.Pipe()
	l.fromPeer, l.done, l.cancel = reader, make(chan struct{}), cancel
	go func() {
		defer close(l.done)
		l.err = l.receive(writer)
		writer.CloseWithError(l.err) // nil: io.EOF
		if l.err != nil {
			cancel() // the peer is gone
		}
	}()
	return ctx, stream{l}
}

// receive passes the peer's data on until it ends its side. Data that the op
// no longer wants is dropped.
func (l *link) receive(to *io.PipeWriter) error {
	for {
		kind, body, err := ReadFrame(l.conn.rw, Data, End)
		if err != nil {
			return unexpected(err)
		}
		if kind == End {
			return nil
		}
		if _, err := to.Write(body); err != nil && !errors.Is(err, errOpEnded) {
			return err
		}
	}
}

// errOpEnded tells the receiving side that nobody reads any more.
var errOpEnded = errors.New("the op has ended")

// drain waits for the peer to end its side of the stream, after the op has
// ended, so that the next frame is a command again.
func (l *link) drain() error {
	if l.done == nil {
		return nil
	}
	l.cancel()
	l.fromPeer.CloseWithError(errOpEnded)
	return l.conn.within(l.conn.server.cfg.Frame, func() error {
		<-l.done
		return l.err
	})
}

// stream is the op's side of the stream.
type stream struct{ link *link }

// Read implements io.Reader.
func (s stream) Read(p []byte) (int, error) { return s.link.fromPeer.Read(p) }

// Write implements io.Writer, in as many frames as needed.
func (s stream) Write(p []byte) (int, error) {
	written := 0
	for len(p) > 0 {
		n := min(len(p), MaxData)
		if err := s.frame(p[:n]); err != nil {
			return written, err
		}
		written, p = written+n, p[n:]
	}
	return written, nil
}

func (s stream) frame(p []byte) error {
	s.link.mu.Lock()
	defer s.link.mu.Unlock()
	if s.link.ended {
		return io.ErrClosedPipe
	}
	return s.link.write(Data, p)
}

// interface check: a link is what the mailbox wants.
var _ mailbox.Link = (*link)(nil)
