// SPDX-License-Identifier: Apache-2.0

package control

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"os"
	"sync"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
)

// Options of a Client.
type Options struct {
	Build   string       // version text sent in Hello
	OnEvent func(Event)  // called from one goroutine, one event at a time; may call the Client; nil: events are dropped
	Log     *slog.Logger // required
}

// Client is davitd's end of a connection to one vcard. Its methods may be
// called from many goroutines; each ends with its context, with ErrClosed when
// the connection has ended, or with vcard's answer. Files passed to a method
// stay the caller's, who may close them as soon as it returns.
type Client struct {
	wire   *wire
	opts   Options
	hello  HelloReply
	pid    int
	events *eventQueue
	slots  chan struct{} // one element for each unanswered request
	paging chan struct{} // cap 1: held while Status collects its pages
	done   chan struct{} // closed when the connection has ended
	wg     sync.WaitGroup

	mu      sync.Mutex
	err     error                  // guarded by mu; why it ended
	next    uint64                 // guarded by mu
	pending map[uint64]chan *frame // guarded by mu; nil channel: given up, reply still to come
}

// Dial connects to the vcard that listens at path and says Hello. While a vcard
// is starting (the socket is not there yet, or nobody listens on it) it tries
// again until ctx ends; give ctx a deadline.
func Dial(ctx context.Context, path string, opts Options) (*Client, error) {
	var d net.Dialer
	var last error
	for {
		conn, err := d.DialContext(ctx, "unixpacket", path)
		if err == nil {
			return NewClient(ctx, conn.(*net.UnixConn), opts)
		}
		switch {
		case errors.Is(err, context.DeadlineExceeded) || ctx.Err() != nil:
			// The dialer keeps ctx's deadline itself; the reason is the one before.
		case errors.Is(err, syscall.ECONNREFUSED) || errors.Is(err, syscall.ENOENT):
			last = err
		default:
			return nil, fmt.Errorf("dial vcard: %w", err)
		}
		if !pause(ctx, 10*time.Millisecond) {
			return nil, fmt.Errorf("dial vcard: %w", errors.Join(ctx.Err(), last))
		}
	}
}

// NewClient says Hello on a connected SOCK_SEQPACKET socket, which it owns from
// now on.
func NewClient(ctx context.Context, conn *net.UnixConn, opts Options) (*Client, error) {
	w, err := newWire(conn, false)
	if err != nil {
		_ = conn.Close()
		return nil, err
	}
	c := &Client{
		wire: w, opts: opts, events: newEventQueue(), pid: peerPID(conn),
		slots: make(chan struct{}, MaxPending), paging: make(chan struct{}, 1), done: make(chan struct{}), pending: map[uint64]chan *frame{},
	}
	c.wg.Go(c.receive)
	c.wg.Go(c.dispatch)
	hello, err := call[HelloReply](ctx, c, &Hello{Min: VersionMin, Current: VersionCurrent, Build: opts.Build})
	if err != nil {
		_ = c.Close()
		return nil, fmt.Errorf("hello: %w", err)
	}
	c.hello = *hello
	return c, nil
}

// Peer is what vcard said of itself in Hello.
func (c *Client) Peer() HelloReply { return c.hello }

// PID is the process that listens on vcard's socket, as the kernel tells it in
// this process' PID namespace; 0 if it cannot be seen from here.
func (c *Client) PID() int { return c.pid }

// Done is closed when the connection has ended, from either side.
func (c *Client) Done() <-chan struct{} { return c.done }

// Err says why the connection ended; nil while it has not.
func (c *Client) Err() error {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.err
}

// Close ends the connection and waits until no handler runs any more, so it
// must not be called from OnEvent. vcard and its devices go on.
func (c *Client) Close() error {
	c.end(ErrClosed)
	c.wg.Wait()
	return nil
}

// end closes the connection with a first reason and lets all callers go.
func (c *Client) end(why error) {
	c.mu.Lock()
	if c.err != nil {
		c.mu.Unlock()
		return
	}
	c.err = why
	close(c.done)
	c.mu.Unlock()
	c.wire.close()
}

// receive is the only reader. It never waits for a caller or for OnEvent.
func (c *Client) receive() {
	for {
		f, _, err := c.wire.read()
		if err == nil {
			err = c.accept(f)
		}
		if err == nil {
			continue
		}
		if errors.Is(err, io.EOF) || errors.Is(err, net.ErrClosed) || errors.Is(err, syscall.ECONNRESET) {
			err = fmt.Errorf("vcard closed the connection: %w", ErrClosed)
		}
		c.end(err)
		return
	}
}

func (c *Client) accept(f *frame) error {
	switch f.Kind {
	case kindReply:
		return c.acceptReply(f)
	case kindEvent:
		var e Event
		if err := decodeBody(c.wire.codec, f.Body, &e); err != nil {
			return err
		}
		if !c.events.put(e) {
			return fmt.Errorf("events about too many subjects: %w", ErrProtocol)
		}
		return nil
	case kindPing:
		// A vcard that pings without reading must not hold up the reader.
		ctx, cancel := context.WithTimeout(context.Background(), time.Second)
		defer cancel()
		return c.wire.write(ctx, frame{Kind: kindPong}, nil, nil)
	}
	return fmt.Errorf("frame of kind %d from vcard: %w", f.Kind, ErrProtocol)
}

func (c *Client) acceptReply(f *frame) error {
	c.mu.Lock()
	ch, ok := c.pending[f.ID]
	delete(c.pending, f.ID)
	c.mu.Unlock()
	if !ok {
		return fmt.Errorf("reply to request %d, which was not asked or is answered: %w", f.ID, ErrProtocol)
	}
	<-c.slots
	if ch != nil {
		ch <- f
	}
	return nil
}

// dispatch calls OnEvent.
func (c *Client) dispatch() {
	for {
		select {
		case <-c.done:
			return
		case <-c.events.wake:
		}
		for e, ok := c.events.take(); ok; e, ok = c.events.take() {
			if c.opts.OnEvent != nil {
				c.opts.OnEvent(e)
			}
		}
	}
}

// call sends a request and waits for its reply.
func call[R any, P interface {
	*R
	Reply
}](ctx context.Context, c *Client, req Request, files ...*os.File) (*R, error) {
	f, err := c.roundTrip(ctx, req, files)
	if err != nil {
		return nil, fmt.Errorf("%s: %w", req.op(), err)
	}
	if f.Error != nil {
		return nil, fmt.Errorf("%s: %w", req.op(), f.Error)
	}
	reply := P(new(R))
	if err := decodeBody(c.wire.codec, f.Body, reply); err != nil {
		c.end(err)
		return nil, fmt.Errorf("%s: %w", req.op(), err)
	}
	return reply, nil
}

func (c *Client) roundTrip(ctx context.Context, req Request, files []*os.File) (*frame, error) {
	select {
	case c.slots <- struct{}{}:
	case <-c.done:
		return nil, c.Err()
	case <-ctx.Done():
		return nil, ctx.Err()
	}
	ch := make(chan *frame, 1)
	c.mu.Lock()
	c.next++
	id := c.next
	c.pending[id] = ch
	c.mu.Unlock()
	if err := c.wire.write(ctx, frame{Kind: kindRequest, ID: id, Op: req.op()}, req, files); err != nil {
		c.forget(id)
		if errors.Is(err, syscall.EPIPE) || errors.Is(err, net.ErrClosed) {
			err = ErrClosed
		}
		return nil, err
	}
	select {
	case f := <-ch:
		return f, nil
	case <-c.done:
		select {
		case f := <-ch: // the answer came before the end
			return f, nil
		default:
			return nil, c.Err()
		}
	case <-ctx.Done():
		c.abandon(id)
		return nil, ctx.Err()
	}
}

// forget takes back a request that was never sent.
func (c *Client) forget(id uint64) {
	c.mu.Lock()
	delete(c.pending, id)
	c.mu.Unlock()
	<-c.slots
}

// abandon gives up waiting. The request keeps its slot until vcard answers, so
// that a vcard that never answers cannot make this side store more and more.
func (c *Client) abandon(id uint64) {
	c.mu.Lock()
	_, waiting := c.pending[id]
	if waiting {
		c.pending[id] = nil
	}
	c.mu.Unlock()
	if !waiting {
		return
	}
	ctx, cancel := context.WithTimeout(context.Background(), time.Second)
	defer cancel()
	if err := c.wire.write(ctx, frame{Kind: kindCancel, ID: id}, nil, nil); err != nil {
		c.end(fmt.Errorf("cancel request: %w", err))
	}
}

// peerPID asks the kernel who listens: vcard calls listen(2) itself, which
// makes it the peer of everybody who connects.
func peerPID(conn *net.UnixConn) int {
	raw, err := conn.SyscallConn()
	if err != nil {
		return 0
	}
	pid := 0
	_ = raw.Control(func(fd uintptr) {
		if cred, err := unix.GetsockoptUcred(int(fd), unix.SOL_SOCKET, unix.SO_PEERCRED); err == nil {
			pid = int(cred.Pid)
		}
	})
	return pid
}
