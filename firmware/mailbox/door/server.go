// SPDX-License-Identifier: Apache-2.0

package door

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"sync"
	"time"

	"github.com/davit-dpu/davit/firmware/mailbox"
)

// Defaults of Config.
const (
	DefaultConnections = 64
	DefaultPerPeer     = 8
	DefaultRate        = 20
	DefaultIdle        = 2 * time.Minute
	DefaultFrame       = 15 * time.Second
)

// badCost is how many commands' worth of rate a command costs that was refused
// and not authenticated, see mailbox.Link.
const badCost = 5

// Handler answers commands; *mailbox.Mailbox is one.
type Handler interface {
	Serve(ctx context.Context, door mailbox.Door, message []byte, link mailbox.Link) (mailbox.Code, error)
}

// Config describes a door. Zero limits take the defaults.
type Config struct {
	Door    mailbox.Door
	Mailbox Handler
	TLS     *tls.Config // speak TLS on connections of Serve; see Identity
	Log     *slog.Logger
	Now     func() time.Time // nil: time.Now

	Connections int           // open at the same time
	PerPeer     int           // of these, for one peer
	Rate        float64       // commands a second for one peer; twice as many at once
	Idle        time.Duration // how long a peer may be silent between commands
	Frame       time.Duration // how long one frame, or the TLS handshake, may take either way
}

// Server is the card's side of a door.
type Server struct {
	cfg   Config
	peers peers
}

// NewServer makes a server.
func NewServer(cfg Config) (*Server, error) {
	if cfg.Mailbox == nil || cfg.Log == nil || cfg.Door.Name == "" {
		return nil, errors.New("door: mailbox, logger or name is missing")
	}
	if cfg.TLS != nil && len(cfg.Door.Binding) == 0 {
		return nil, errors.New("door: TLS without a binding for the receipts")
	}
	if cfg.Now == nil {
		cfg.Now = time.Now
	}
	if cfg.Connections <= 0 {
		cfg.Connections = DefaultConnections
	}
	if cfg.PerPeer <= 0 {
		cfg.PerPeer = DefaultPerPeer
	}
	if cfg.Rate <= 0 {
		cfg.Rate = DefaultRate
	}
	if cfg.Idle <= 0 {
		cfg.Idle = DefaultIdle
	}
	if cfg.Frame <= 0 {
		cfg.Frame = DefaultFrame
	}
	return &Server{cfg: cfg, peers: peers{
		total: cfg.Connections, each: cfg.PerPeer, rate: cfg.Rate, burst: 2 * cfg.Rate, now: cfg.Now,
		known: map[string]*peer{},
	}}, nil
}

// Serve accepts connections until ctx ends or the listener breaks, and closes
// the listener. It returns when all its connections have ended; nil if ctx
// ended it.
func (s *Server) Serve(ctx context.Context, l net.Listener) error {
	stop := context.AfterFunc(ctx, func() { _ = l.Close() }) // Accept reports it
	defer stop()
	defer l.Close()
	var conns sync.WaitGroup
	defer conns.Wait()
	for {
		conn, err := l.Accept()
		if ctx.Err() != nil {
			if err == nil {
				_ = conn.Close() // came too late
			}
			return nil
		}
		if errors.Is(err, net.ErrClosed) {
			return fmt.Errorf("door %s: %w", s.cfg.Door.Name, err)
		}
		if err != nil {
			// Out of descriptors, or a peer that left early: the next may work.
			s.cfg.Log.Warn("door: accept", "door", s.cfg.Door.Name, "err", err)
			if !pause(ctx, 100*time.Millisecond) {
				return nil
			}
			continue
		}
		conns.Go(func() { s.serveConn(ctx, conn, peerName(conn.RemoteAddr()), s.cfg.TLS) })
	}
}

// ServeConn serves one connection, of the peer with the given name, until it
// or ctx ends, and closes it. It is for doors that have no listener, such as
// the bus; TLS is not spoken.
func (s *Server) ServeConn(ctx context.Context, conn io.ReadWriteCloser, peer string) {
	s.serveConn(ctx, conn, peer, nil)
}

func (s *Server) serveConn(ctx context.Context, raw io.ReadWriteCloser, peer string, config *tls.Config) {
	defer raw.Close()
	place := s.peers.admit(peer, raw)
	if place == nil {
		s.cfg.Log.Debug("door: no room for a connection", "door", s.cfg.Door.Name, "peer", peer)
		return
	}
	defer s.peers.leave(place)
	stop := context.AfterFunc(ctx, func() { _ = raw.Close() }) // ends the read or write that is waiting
	defer stop()
	c := &conn{server: s, place: place, raw: raw, rw: raw}
	if config != nil {
		if err := c.handshake(ctx, config); err != nil {
			s.cfg.Log.Debug("door: TLS handshake", "door", s.cfg.Door.Name, "peer", peer, "err", err)
			return
		}
	}
	if err := c.run(ctx); err != nil && ctx.Err() == nil {
		s.cfg.Log.Debug("door: connection ended", "door", s.cfg.Door.Name, "peer", peer, "err", err)
	}
}

// pause waits and reports whether ctx is still alive.
func pause(ctx context.Context, d time.Duration) bool {
	t := time.NewTimer(d)
	defer t.Stop()
	select {
	case <-t.C:
		return true
	case <-ctx.Done():
		return false
	}
}
