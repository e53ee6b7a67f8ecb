// SPDX-License-Identifier: Apache-2.0

package door

import (
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"io"

	"github.com/davit-dpu/davit/firmware/mailbox"
)

// ClientStream is the requester's side of an op with a stream. Read, Write and
// the Close functions may be used at the same time, each by one goroutine.
type ClientStream struct {
	client  *Client
	command mailbox.Digest
	ctx     context.Context
	stop    func() bool

	rest   []byte // of the last data frame
	ended  bool   // the card ended its side
	closed bool   // we ended our side
}

// Stream does the same as Do for an op with a stream, up to the card's
// Accepted receipt. The connection belongs to the stream until Wait returns.
// ctx bounds the whole stream.
func (c *Client) Stream(ctx context.Context, op string, args any, reason string) (*ClientStream, error) {
	command, err := c.sign(ctx, op, args, reason)
	if err != nil {
		return nil, err
	}
	return c.SendStream(ctx, command)
}

// SendStream is Stream for a command that was signed before.
func (c *Client) SendStream(ctx context.Context, command []byte) (*ClientStream, error) {
	r, err := c.Send(ctx, command)
	if err != nil {
		return nil, err
	}
	if r.Code != mailbox.Accepted {
		return nil, fmt.Errorf("the op has no stream; the card answers %s", r.Code)
	}
	return &ClientStream{
		client: c, command: sha256.Sum256(command), ctx: ctx,
		stop: context.AfterFunc(ctx, func() { _ = c.conn.Close() }), // ends what is waiting
	}, nil
}

// Read implements io.Reader; io.EOF when the card ended its side.
func (s *ClientStream) Read(p []byte) (int, error) {
	for len(s.rest) == 0 {
		if s.ended {
			return 0, io.EOF
		}
		kind, body, err := ReadFrame(s.client.conn, Data, End)
		if err != nil {
			return 0, fmt.Errorf("read stream: %w", s.client.cause(s.ctx, unexpected(err)))
		}
		s.rest, s.ended = body, kind == End
	}
	n := copy(p, s.rest)
	s.rest = s.rest[n:]
	return n, nil
}

// Write implements io.Writer.
func (s *ClientStream) Write(p []byte) (int, error) {
	written := 0
	for len(p) > 0 {
		n := min(len(p), MaxData)
		if err := WriteFrame(s.client.conn, Data, p[:n]); err != nil {
			return written, fmt.Errorf("write stream: %w", s.client.cause(s.ctx, err))
		}
		written, p = written+n, p[n:]
	}
	return written, nil
}

// CloseWrite ends our side; the op sees the end of its input.
func (s *ClientStream) CloseWrite() error {
	if s.closed {
		return nil
	}
	s.closed = true
	return WriteFrame(s.client.conn, End, nil)
}

// Wait ends our side, drops what the card still sends, and returns the
// verified last receipt; a *Answer error if the op did not succeed. After it
// the client can be used for the next command.
func (s *ClientStream) Wait() (*mailbox.Receipt, error) {
	defer s.stop()
	closing := s.CloseWrite()
	_, reading := io.Copy(io.Discard, s)
	if err := errors.Join(closing, reading); err != nil {
		return nil, err
	}
	_, body, err := ReadFrame(s.client.conn, Receipt)
	if err != nil {
		return nil, fmt.Errorf("receive receipt: %w", s.client.cause(s.ctx, unexpected(err)))
	}
	u, err := mailbox.ParseReceipt(body)
	if err != nil {
		return nil, err
	}
	r, err := s.client.accept(u, s.command)
	if err != nil {
		return nil, err
	}
	if r.Code == mailbox.Accepted {
		return nil, fmt.Errorf("%w: the last receipt is not final", mailbox.ErrReceipt)
	}
	return r, nil
}
