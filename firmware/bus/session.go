// SPDX-License-Identifier: Apache-2.0

package bus

import (
	"context"
	"crypto/rand"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"math/bits"
	"sync"
	"time"
)

// Why a session ended. Session.Err wraps one of these, or the stream's error.
var (
	ErrClosed        = errors.New("closed")
	ErrPeerRestarted = errors.New("the peer began a new session")
	ErrPeerSilent    = errors.New("the peer is silent")
	ErrPeerBye       = errors.New("the peer ended the session")
	ErrProtocol      = errors.New("the peer broke the bus protocol")
	ErrGarbled       = errors.New("the stream is garbled")
	ErrVersion       = errors.New("no common bus version")
)

// DefaultMaxChannels is how many channels a session may have at a time. Both ends
// use it: a VMM needs two and one for each disk.
const DefaultMaxChannels = 1024

// Config is what one end of the bus brings into a session. The zero durations
// and counts mean the defaults.
type Config struct {
	Role        Role
	Build       string // the program's version, at most MaxBuild printable characters; cut when longer
	PoolSize    uint64 // bytes of the host's memory pool; 0 when this end does not know
	Log         *slog.Logger
	HelloEvery  time.Duration // first interval of the HELLOs, doubled up to ten times as much; default 100 ms
	PingEvery   time.Duration // default 2 s
	DeadAfter   time.Duration // silence after which the peer is given up; default 20 s: an emulated card can stall for seconds
	MaxChannels int           // default DefaultMaxChannels; with CreditBytes each, the bound on a session's memory
}

func (c Config) withDefaults() Config {
	def := func(d *time.Duration, v time.Duration) {
		if *d <= 0 {
			*d = v
		}
	}
	def(&c.HelloEvery, 100*time.Millisecond)
	def(&c.PingEvery, 2*time.Second)
	def(&c.DeadAfter, 20*time.Second)
	if c.MaxChannels <= 0 {
		c.MaxChannels = DefaultMaxChannels
	}
	if c.Log == nil {
		c.Log = slog.New(slog.DiscardHandler)
	}
	c.Build = clean(c.Build, MaxBuild)
	return c
}

// Peer is what the other end said of itself. Nothing of it is proved.
type Peer struct {
	Role     Role
	Version  uint16 // agreed for this session
	Build    string
	PoolSize uint64
}

// offerBacklog bounds channels that the peer opened and nobody accepted yet.
const offerBacklog = 64

// Session is one established conversation over one stream. All methods may be
// called from any goroutine.
type Session struct {
	cfg   Config
	rw    io.ReadWriteCloser
	nonce uint64

	offers  chan *Offer
	wake    chan struct{} // cap 1: the writer has something to do
	done    chan struct{} // closed when the session has ended
	up      chan struct{} // closed when the session is established
	drained chan struct{} // closed when the writer has stopped and the stream is closed
	control *Channel

	mu       sync.Mutex
	err      error               // guarded by mu; why the session ended
	heard    time.Time           // guarded by mu; last intact frame
	peer     Peer                // guarded by mu; valid once up is closed
	peerHas  uint64              // guarded by mu; the peer's nonce, 0 before its first HELLO
	id       uint64              // guarded by mu; session field of all frames but HELLO
	sendSeq  uint32              // guarded by mu
	recvSeq  uint32              // guarded by mu
	channels map[uint32]*Channel // guarded by mu
	nextID   uint32              // guarded by mu; of the next channel opened here
	lastPeer uint32              // guarded by mu; highest channel the peer opened
	out      outbox              // guarded by mu
	killer   *time.Timer         // guarded by mu; closes the stream of an ended session
}

// newSession starts the goroutines of a session over rw, which it owns.
func newSession(rw io.ReadWriteCloser, cfg Config) (*Session, error) {
	cfg = cfg.withDefaults()
	if cfg.Role != Card && cfg.Role != Host {
		return nil, fmt.Errorf("start bus session: %s", cfg.Role)
	}
	var b [8]byte
	if _, err := rand.Read(b[:]); err != nil {
		return nil, fmt.Errorf("start bus session: %w", err)
	}
	s := &Session{
		cfg: cfg, rw: rw,
		nonce:    binary.LittleEndian.Uint64(b[:]) | 1, // never 0
		offers:   make(chan *Offer, offerBacklog),
		wake:     make(chan struct{}, 1),
		done:     make(chan struct{}),
		up:       make(chan struct{}),
		drained:  make(chan struct{}),
		channels: map[uint32]*Channel{},
		nextID:   firstID(cfg.Role),
		heard:    time.Now(),
	}
	s.control = newChannel(s, 0, Open{Kind: KindControl}, chanOpen)
	s.channels[0] = s.control
	s.out.preamble, s.out.hello, s.out.helloFlags = true, true, flagRequest
	s.wakeWriter()
	go s.readLoop()
	go s.writeLoop()
	go s.keep()
	return s, nil
}

// firstID gives odd numbers to the host and even numbers to the card.
func firstID(r Role) uint32 {
	if r == Host {
		return 1
	}
	return 2
}

// Start opens a session over rw, which it owns from now on: rw is closed when
// the session ends, also when Start fails. It returns when the peer has
// answered, or with the reason why it never will.
func Start(ctx context.Context, rw io.ReadWriteCloser, cfg Config) (*Session, error) {
	s, err := newSession(rw, cfg)
	if err != nil {
		return nil, errors.Join(err, rw.Close())
	}
	select {
	case <-s.up:
		return s, nil
	case <-s.done:
	case <-ctx.Done():
		s.end(ctx.Err())
	}
	<-s.drained
	return nil, fmt.Errorf("open bus session: %w", s.Err())
}

// Peer returns what the other end said of itself.
func (s *Session) Peer() Peer {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.peer
}

// Control is channel 0. It lives as long as the session; use it through Orders
// or ServeOrders.
func (s *Session) Control() *Channel { return s.control }

// Done is closed when the session has ended; Err then says why.
func (s *Session) Done() <-chan struct{} { return s.done }

// Err is nil while the session lives and the reason of its end afterwards.
func (s *Session) Err() error {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.err
}

// Close ends the session, tells the peer why as far as that is possible within
// a second, and closes the stream. The reason is cut to MaxReason printable
// characters. Close of an ended session does nothing.
func (s *Session) Close(reason string) {
	s.mu.Lock()
	if s.err == nil {
		s.out.bye, s.out.byeReason = true, clean(reason, MaxReason)
	}
	s.endLocked(fmt.Errorf("%w: %s", ErrClosed, clean(reason, MaxReason)))
	s.mu.Unlock()
	<-s.drained
}

// end ends the session; the first reason counts.
func (s *Session) end(err error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.endLocked(err)
}

func (s *Session) endLocked(err error) {
	if s.err != nil {
		return
	}
	s.err = err
	close(s.done)
	for _, c := range s.channels {
		c.failLocked(err)
	}
	s.wakeWriter()
	// The writer may be stuck in a stream that takes nothing, and the reader in
	// one that gives nothing: closing the stream is what frees both.
	s.killer = time.AfterFunc(time.Second, func() { _ = s.rw.Close() })
}

func (s *Session) wakeWriter() {
	select {
	case s.wake <- struct{}{}:
	default:
	}
}

// keep repeats HELLO until the session is up, then pings, and ends the session
// when the peer has been silent for too long.
func (s *Session) keep() {
	every := s.cfg.HelloEvery
	timer := time.NewTimer(every)
	defer timer.Stop()
	for {
		select {
		case <-s.done:
			return
		case <-timer.C:
		}
		s.mu.Lock()
		if s.isUp() {
			every = s.cfg.PingEvery
			if silent := time.Since(s.heard); silent >= s.cfg.DeadAfter {
				s.endLocked(fmt.Errorf("%w for %s", ErrPeerSilent, silent.Round(time.Millisecond)))
			}
			s.out.ping = true
		} else {
			every = min(2*every, 10*s.cfg.HelloEvery)
			s.out.hello, s.out.helloFlags = true, flagRequest
		}
		s.mu.Unlock()
		s.wakeWriter()
		timer.Reset(every)
	}
}

func (s *Session) isUp() bool {
	select {
	case <-s.up:
		return true
	default:
		return false
	}
}

// sessionID is derived from both nonces, so that frames of an earlier session,
// or made up by somebody who only writes payloads, are never taken for ours.
func sessionID(card, host uint64) uint64 { return card ^ bits.RotateLeft64(host, 32) }

// onHello advances the handshake. Called with mu held.
func (s *Session) onHello(f frame) error {
	h, err := parseHello(f.payload)
	if err != nil {
		return fmt.Errorf("%w: %w", ErrProtocol, err)
	}
	if h.role == s.cfg.Role {
		return fmt.Errorf("%w: both ends are the %s", ErrProtocol, h.role)
	}
	if s.isUp() {
		if h.nonce != s.peerHas {
			return ErrPeerRestarted
		}
		if f.flags&flagRequest != 0 {
			s.out.hello, s.out.helloFlags = true, 0
		}
		return nil
	}
	version, err := h.agree()
	if err != nil {
		return err
	}
	s.peerHas = h.nonce
	// The answer goes out before anything else of this session, so the peer
	// knows our nonce before it sees a frame that depends on it.
	s.out.hello, s.out.helloFlags = true, 0
	if h.echo != s.nonce {
		s.out.helloFlags = flagRequest
		return nil
	}
	card, host := s.nonce, h.nonce
	if s.cfg.Role == Host {
		card, host = host, card
	}
	s.id = sessionID(card, host)
	s.peer = Peer{Role: h.role, Version: version, Build: h.build, PoolSize: h.pool}
	close(s.up)
	return nil
}

func (s *Session) helloPayload() []byte {
	h := hello{min: VersionMin, current: VersionCurrent, role: s.cfg.Role, nonce: s.nonce, echo: s.peerHas, pool: s.cfg.PoolSize, build: s.cfg.Build}
	return h.append(nil)
}
