// SPDX-License-Identifier: Apache-2.0

package qmp

import (
	"bufio"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"sync"
)

// Bounds of what a server can make a client hold.
const (
	MaxLine    = 1 << 20 // bytes; QEMU's longest answer to what we ask is far below
	MaxEvents  = 64      // events nobody has taken yet
	MaxPending = 64      // commands under way
)

// ErrClosed is the reason of a client that was closed by its owner.
var ErrClosed = errors.New("closed")

// Client is one connection to a VMM. Its methods may be called from any
// goroutine.
type Client struct {
	rw     io.ReadWriteCloser
	events chan Event
	done   chan struct{}

	writing chan struct{} // cap 1: held by whoever writes a line

	mu      sync.Mutex
	version Version                 // guarded by mu; set by the greeting
	greeted chan struct{}           // closed after the greeting
	nextID  uint64                  // guarded by mu
	pending map[uint64]chan *answer // guarded by mu
	dropped uint64                  // guarded by mu
	err     error                   // guarded by mu; why the client ended
}

// Open waits for the greeting, negotiates no capabilities, and returns a client
// that is ready for commands. It owns rw from now on, also when it fails.
func Open(ctx context.Context, rw io.ReadWriteCloser) (*Client, error) {
	c := &Client{
		rw: rw, events: make(chan Event, MaxEvents), done: make(chan struct{}),
		writing: make(chan struct{}, 1), greeted: make(chan struct{}), pending: map[uint64]chan *answer{},
	}
	go c.readLoop()
	select {
	case <-c.greeted:
	case <-c.done:
		return nil, fmt.Errorf("open qmp: %w", c.Err())
	case <-ctx.Done():
		c.end(ctx.Err())
		return nil, fmt.Errorf("open qmp: wait for greeting: %w", ctx.Err())
	}
	if err := c.Execute(ctx, "qmp_capabilities", nil, nil); err != nil {
		c.end(err)
		return nil, fmt.Errorf("open qmp: %w", err)
	}
	return c, nil
}

// Version is what the VMM said it is.
func (c *Client) Version() Version {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.version
}

// Events delivers the VM's events until the client ends; then it is closed.
func (c *Client) Events() <-chan Event { return c.events }

// Dropped counts events that were lost because nobody took them in time.
func (c *Client) Dropped() uint64 {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.dropped
}

// Done is closed when the client has ended; Err then says why.
func (c *Client) Done() <-chan struct{} { return c.done }

// Err is nil while the client lives. io.EOF is the VMM's orderly end.
func (c *Client) Err() error {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.err
}

// Close ends the connection; commands under way fail with ErrClosed.
func (c *Client) Close() error {
	c.end(ErrClosed)
	return nil
}

// Execute runs a command and waits for its answer until ctx ends. args is
// marshalled as the arguments object, or nil; result is where the answer is
// unmarshalled to, or nil. A refusal is a *CommandError. A command given up by
// ctx may still be carried out.
func (c *Client) Execute(ctx context.Context, command string, args, result any) error {
	a, err := c.ask(ctx, command, args)
	if err != nil {
		return fmt.Errorf("qmp %s: %w", command, err)
	}
	if a.err != nil {
		return fmt.Errorf("qmp %s: %w", command, a.err)
	}
	if result == nil {
		return nil
	}
	if err := json.Unmarshal(a.result, result); err != nil {
		return fmt.Errorf("qmp %s: decode answer: %w", command, err)
	}
	return nil
}

func (c *Client) ask(ctx context.Context, command string, args any) (*answer, error) {
	ch := make(chan *answer, 1)
	id, err := c.register(ch)
	if err != nil {
		return nil, err
	}
	line, err := json.Marshal(request{Execute: command, Arguments: args, ID: id})
	if err == nil {
		err = c.writeLine(ctx, append(line, '\n'))
	}
	if err != nil {
		c.forget(id)
		return nil, err
	}
	select {
	case a := <-ch:
		return a, nil
	case <-c.done:
		err = c.Err()
	case <-ctx.Done():
		// The id stays known, so that a late answer is still recognised as ours.
		err = ctx.Err()
	}
	select {
	case a := <-ch: // it came first: select takes any of what is ready
		return a, nil
	default:
		return nil, err
	}
}

func (c *Client) register(ch chan *answer) (uint64, error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.err != nil {
		return 0, c.err
	}
	if len(c.pending) >= MaxPending {
		return 0, fmt.Errorf("%d commands are unanswered", MaxPending)
	}
	c.nextID++
	c.pending[c.nextID] = ch
	return c.nextID, nil
}

func (c *Client) forget(id uint64) {
	c.mu.Lock()
	defer c.mu.Unlock()
	delete(c.pending, id)
}

// writeLine writes one line whole. If ctx ends while the stream takes nothing,
// the client ends: half a line can not be taken back.
func (c *Client) writeLine(ctx context.Context, line []byte) error {
	select {
	case c.writing <- struct{}{}:
	case <-c.done:
		return c.Err()
	case <-ctx.Done():
		return ctx.Err()
	}
	defer func() { <-c.writing }()
	stop := context.AfterFunc(ctx, func() { c.end(fmt.Errorf("write: %w", ctx.Err())) })
	defer stop()
	if _, err := c.rw.Write(line); err != nil {
		c.end(fmt.Errorf("write: %w", err))
		return c.Err()
	}
	return nil
}

func (c *Client) end(err error) {
	c.mu.Lock()
	if c.err != nil {
		c.mu.Unlock()
		return
	}
	c.err = err
	close(c.done)
	c.mu.Unlock()
	_ = c.rw.Close() // frees the reader; the reason is already known
}

func (c *Client) readLoop() {
	defer close(c.events)
	r := bufio.NewReaderSize(c.rw, 4096)
	for {
		line, err := readLine(r)
		if err == nil {
			err = c.receive(line)
		}
		if err != nil {
			c.end(err)
			return
		}
	}
}

// readLine reads up to a newline, at most MaxLine bytes.
func readLine(r *bufio.Reader) ([]byte, error) {
	var line []byte
	for {
		part, err := r.ReadSlice('\n')
		if len(line)+len(part) > MaxLine {
			return nil, fmt.Errorf("%w: line longer than %d bytes", ErrProtocol, MaxLine)
		}
		line = append(line, part...)
		switch {
		case err == nil:
			return line, nil
		case errors.Is(err, bufio.ErrBufferFull):
		case errors.Is(err, io.EOF) && len(line) > 0:
			return nil, io.ErrUnexpectedEOF
		default:
			return nil, err
		}
	}
}

func (c *Client) receive(line []byte) error {
	m, err := parseMessage(line)
	if err != nil {
		return err
	}
	select {
	case <-c.greeted:
	default:
		if m.greeting == nil {
			return fmt.Errorf("%w: no greeting", ErrProtocol)
		}
		c.mu.Lock()
		c.version = *m.greeting
		c.mu.Unlock()
		close(c.greeted)
		return nil
	}
	switch {
	case m.greeting != nil:
		return fmt.Errorf("%w: a second greeting", ErrProtocol)
	case m.event != nil:
		c.deliver(*m.event)
		return nil
	}
	return c.resolve(m.answer)
}

// deliver queues an event; a full queue loses its oldest, so that the newest,
// which says how things stand, is never the one that is lost.
func (c *Client) deliver(e Event) {
	for {
		select {
		case c.events <- e:
			return
		default:
		}
		select {
		case <-c.events:
			c.mu.Lock()
			c.dropped++
			c.mu.Unlock()
		default:
		}
	}
}

func (c *Client) resolve(a *answer) error {
	c.mu.Lock()
	defer c.mu.Unlock()
	ch := c.pending[a.id]
	if ch == nil {
		return fmt.Errorf("%w: answer to id %d, which is not under way", ErrProtocol, a.id)
	}
	delete(c.pending, a.id)
	ch <- a
	return nil
}
