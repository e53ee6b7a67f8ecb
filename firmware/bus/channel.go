// SPDX-License-Identifier: Apache-2.0

package bus

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"time"
)

// CreditBytes is how many bytes of data a channel may have under way in each
// direction: sent and not yet taken by the reader at the other end.
const CreditBytes = 64 << 10

// MaxQueues bounds the queues a doorbell can name: 0 to MaxQueues-1.
const MaxQueues = 64

// RefusedError is the peer's answer to an Open it did not accept, and what a
// reader or writer sees of a channel that the peer closed with a reason.
type RefusedError struct {
	Open   Open
	Reason string // the peer's words: printable, at most MaxReason bytes
}

// Error implements error.
func (e *RefusedError) Error() string {
	return fmt.Sprintf("%s channel closed by the peer: %s", e.Open.Kind, e.Reason)
}

type chanState uint8

const (
	chanOpening chanState = iota // OPEN sent or due
	chanOffered                  // OPEN received, nobody accepted yet
	chanOpen
	chanClosed // this end is done with it
)

// Channel is one of the conversations of a session: a reliable byte stream in
// each direction plus doorbells. It is a net.Conn; Read and Write may be
// called at the same time, each by one goroutine at a time.
type Channel struct {
	s    *Session
	id   uint32
	open Open

	readable, writable chan struct{} // cap 1: look again
	reading, writing   chan struct{} // cap 1: held by the one reader, the one writer
	rdl, wdl           deadline

	// All below guarded by s.mu.
	state       chanState
	established bool // ACCEPT sent or received
	peerClosed  bool
	err         error // what Read and Write answer once the channel is over
	rx          []byte
	rxCredit    int // what the peer may still send
	rxOwed      int // consumed and not yet credited
	tx          []byte
	txCredit    int // what we may still send
	ringsIn     uint64
	ringsOut    uint64
	onRing      func(queue int)
	due         struct {
		open, accept, close bool
		reason              string
	}
	signalling, sending bool // listed in the outbox
}

var _ net.Conn = (*Channel)(nil)

func newChannel(s *Session, id uint32, o Open, st chanState) *Channel {
	return &Channel{
		s: s, id: id, open: o, state: st, established: st == chanOpen,
		readable: make(chan struct{}, 1), writable: make(chan struct{}, 1),
		reading: make(chan struct{}, 1), writing: make(chan struct{}, 1),
		rxCredit: CreditBytes, txCredit: CreditBytes,
	}
}

// Offer is a channel that the peer wants to open.
type Offer struct {
	Open Open
	ch   *Channel
}

// Accept opens the channel. If the peer has withdrawn it or the session has
// ended, the channel's Read says so.
func (o *Offer) Accept() *Channel {
	c := o.ch
	c.s.mu.Lock()
	defer c.s.mu.Unlock()
	if c.state == chanOffered {
		c.state, c.established, c.due.accept = chanOpen, true, true
		c.s.signal(c)
	}
	return c
}

// Refuse tells the peer why there will be no channel.
func (o *Offer) Refuse(reason string) { o.ch.closeWith(reason) }

// Accept waits for the next channel that the peer wants to open.
func (s *Session) Accept(ctx context.Context) (*Offer, error) {
	select {
	case o := <-s.offers:
		return o, nil
	case <-s.done:
		return nil, s.Err()
	case <-ctx.Done():
		return nil, ctx.Err()
	}
}

// Open asks the peer for a channel and waits for its answer: a *RefusedError
// when it says no. Only the role that the Kind's comment names may open it.
func (s *Session) Open(ctx context.Context, o Open) (*Channel, error) {
	fail := func(err error) (*Channel, error) {
		return nil, fmt.Errorf("open %s channel: %w", o.Kind, err)
	}
	if err := o.Validate(); err != nil {
		return fail(err)
	}
	if openerOf(o.Kind) != s.cfg.Role {
		return fail(fmt.Errorf("the %s may not", s.cfg.Role))
	}
	s.mu.Lock()
	if s.err != nil || len(s.channels) >= s.cfg.MaxChannels {
		err := s.err
		s.mu.Unlock()
		if err == nil {
			err = fmt.Errorf("%d channels are open", s.cfg.MaxChannels)
		}
		return fail(err)
	}
	c := newChannel(s, s.nextID, o, chanOpening)
	s.nextID += 2
	s.channels[c.id] = c
	c.due.open = true
	s.signal(c)
	s.mu.Unlock()
	if err := c.waitOpen(ctx); err != nil {
		return fail(err)
	}
	return c, nil
}

// waitOpen waits for the answer to an OPEN.
func (c *Channel) waitOpen(ctx context.Context) error {
	for {
		c.s.mu.Lock()
		st, err := c.state, c.err
		c.s.mu.Unlock()
		if err != nil || st == chanOpen {
			return err
		}
		select {
		case <-c.writable:
		case <-ctx.Done():
			c.closeWith("")
			return ctx.Err()
		}
	}
}

// Opening says what the channel was opened for.
func (c *Channel) Opening() Open { return c.open }

// Read implements io.Reader. After the peer's close it returns what had
// arrived before, then io.EOF or a *RefusedError with the peer's reason.
func (c *Channel) Read(p []byte) (int, error) {
	if err := acquire(c.reading, &c.rdl); err != nil {
		return 0, err
	}
	defer release(c.reading)
	if len(p) == 0 {
		return 0, nil
	}
	for {
		c.s.mu.Lock()
		if len(c.rx) > 0 {
			n := copy(p, c.rx)
			c.consume(n)
			c.s.mu.Unlock()
			return n, nil
		}
		err := c.readErr()
		c.s.mu.Unlock()
		if err != nil {
			return 0, err
		}
		if err := c.rdl.wait(c.readable); err != nil {
			return 0, err
		}
	}
}

// readErr is why no more bytes will come, or nil. Called with mu held.
func (c *Channel) readErr() error {
	var refused *RefusedError
	if errors.As(c.err, &refused) && refused.Reason == "" {
		return io.EOF
	}
	return c.err
}

// consume drops n bytes of rx and owes the peer their credit. Credit is given
// back in quarters of a window, or at once when nothing else is buffered.
func (c *Channel) consume(n int) {
	c.rx = c.rx[:copy(c.rx, c.rx[n:])]
	if len(c.rx) == 0 && cap(c.rx) > MaxPayload {
		c.rx = nil // an idle channel keeps little
	}
	c.rxOwed += n
	if c.rxOwed >= CreditBytes/4 || len(c.rx) == 0 {
		c.s.signal(c)
	}
}

// Write implements io.Writer. It returns when the session's writer has taken
// all of p, or with the number of bytes that it took before the error.
func (c *Channel) Write(p []byte) (int, error) {
	if err := acquire(c.writing, &c.wdl); err != nil {
		return 0, err
	}
	defer release(c.writing)
	return c.writeAll(p)
}

// writeAll offers p to the session's writer until it has taken all of it. What
// was taken counts as written, whatever becomes of the channel afterwards.
func (c *Channel) writeAll(p []byte) (int, error) {
	c.s.mu.Lock()
	defer c.s.mu.Unlock()
	if c.err != nil {
		return 0, c.err
	}
	c.tx = p
	defer func() { c.tx = nil }()
	c.pushLocked()
	for {
		left := len(c.tx)
		if left == 0 || c.err != nil {
			if left > 0 {
				return len(p) - left, c.err
			}
			return len(p), nil
		}
		c.s.mu.Unlock()
		err := c.wdl.wait(c.writable)
		c.s.mu.Lock()
		if err != nil && len(c.tx) > 0 {
			return len(p) - len(c.tx), err
		}
	}
}

// Ring rings the doorbell of a queue at the other end. It never blocks; rings
// that were not sent yet merge. Queues outside 0..MaxQueues-1 and rings of a
// closed channel are ignored: there is nobody to hear them.
func (c *Channel) Ring(queue int) {
	if queue < 0 || queue >= MaxQueues {
		return
	}
	c.s.mu.Lock()
	defer c.s.mu.Unlock()
	if c.state == chanOpen {
		c.ringsOut |= 1 << queue
		c.s.signal(c)
	}
}

// OnRing sets what is called when the peer rings. It is called on the
// session's reading goroutine and must not block; doorbells that came before
// OnRing are delivered by OnRing itself. A call that is under way when the
// channel is closed may end later than Close.
func (c *Channel) OnRing(fn func(queue int)) {
	c.s.mu.Lock()
	c.onRing = fn
	pending := c.ringsIn
	c.ringsIn = 0
	c.s.mu.Unlock()
	if fn != nil {
		ringEach(fn, pending)
	}
}

// Close closes the channel at both ends. Bytes that Write took are delivered
// first; bytes not read yet are dropped.
func (c *Channel) Close() error {
	c.closeWith("")
	return nil
}

// CloseReason is Close with words for the peer's log, at most MaxReason
// printable characters.
func (c *Channel) CloseReason(reason string) { c.closeWith(reason) }

func (c *Channel) closeWith(reason string) {
	c.s.mu.Lock()
	defer c.s.mu.Unlock()
	c.closeLocked(reason)
}

func (c *Channel) closeLocked(reason string) {
	if c.state == chanClosed || c.id == 0 {
		return
	}
	c.due.close, c.due.reason = true, clean(reason, MaxReason)
	c.s.signal(c)
	c.failLocked(net.ErrClosed)
	c.rx = nil
}

// failLocked ends the channel for its users. Called with mu held.
func (c *Channel) failLocked(err error) {
	if c.err == nil {
		c.err = err
	}
	c.state = chanClosed
	c.onRing = nil
	c.kick()
}

// kick makes the reader and the writer look again.
func (c *Channel) kick() {
	for _, ch := range []chan struct{}{c.readable, c.writable} {
		select {
		case ch <- struct{}{}:
		default:
		}
	}
}

// LocalAddr implements net.Conn.
func (c *Channel) LocalAddr() net.Addr { return busAddr{c.s.cfg.Role, c.open.Kind} }

// RemoteAddr implements net.Conn.
func (c *Channel) RemoteAddr() net.Addr { return busAddr{Card + Host - c.s.cfg.Role, c.open.Kind} }

// SetDeadline implements net.Conn.
func (c *Channel) SetDeadline(t time.Time) error {
	c.rdl.set(t)
	c.wdl.set(t)
	return nil
}

// SetReadDeadline implements net.Conn.
func (c *Channel) SetReadDeadline(t time.Time) error { c.rdl.set(t); return nil }

// SetWriteDeadline implements net.Conn.
func (c *Channel) SetWriteDeadline(t time.Time) error { c.wdl.set(t); return nil }

type busAddr struct {
	role Role
	kind Kind
}

func (busAddr) Network() string  { return "davit-bus" }
func (a busAddr) String() string { return a.role.String() + "/" + string(a.kind) }

func acquire(sem chan struct{}, d *deadline) error {
	if d.expired() {
		return os.ErrDeadlineExceeded
	}
	select {
	case sem <- struct{}{}:
		return nil
	case <-d.done():
		return os.ErrDeadlineExceeded
	}
}

func release(sem chan struct{}) { <-sem }
