// SPDX-License-Identifier: Apache-2.0

package control

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"sync"
	"time"
)

// Times of the server.
const (
	helloTimeout = 5 * time.Second // for a new connection's first frame
	pongTimeout  = 2 * time.Second // for an old one to show that it lives
	writeTimeout = 5 * time.Second // for a controller that does not read
)

// Handler carries out requests: it is vcard.
type Handler interface {
	// Welcome fills in HelloReply, but for Version.
	Welcome() HelloReply
	// Handle carries out one request other than Hello. Several run at the
	// same time; ctx ends when the request is cancelled or its controller has
	// gone. Exactly one of reply and error is nil.
	Handle(ctx context.Context, req Request, files *Files) (Reply, error)
	// Gone is called after a controller's connection has ended, before the next
	// one is admitted. Requests whose context has ended may still be returning.
	Gone()
}

// Server is vcard's end: it accepts controllers, one at a time.
type Server struct {
	handler Handler
	log     *slog.Logger

	mu      sync.Mutex
	current *session           // guarded by mu; nil without a controller
	finish  context.CancelFunc // guarded by mu; ends Serve
}

// NewServer builds a Server around h.
func NewServer(h Handler, log *slog.Logger) *Server {
	return &Server{handler: h, log: log}
}

// Publish tells the controller, if there is one, of a new state. It never
// blocks; a controller that comes later asks for Status.
func (s *Server) Publish(e Event) {
	s.mu.Lock()
	cur := s.current
	s.mu.Unlock()
	if cur == nil {
		return
	}
	if !cur.events.put(e) {
		cur.end(errors.New("too many events wait for the controller"))
	}
}

// Connected reports whether a controller is there.
func (s *Server) Connected() bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.current != nil
}

// Serve accepts connections on ln, a SOCK_SEQPACKET listener, until ctx ends or
// a Shutdown was answered; it closes ln and returns when every request has.
func (s *Server) Serve(ctx context.Context, ln *net.UnixListener) error {
	ctx, finish := context.WithCancel(ctx)
	defer finish()
	s.mu.Lock()
	s.finish = finish
	s.mu.Unlock()
	stop := context.AfterFunc(ctx, func() { _ = ln.Close() })
	defer stop()
	var wg sync.WaitGroup
	defer wg.Wait()
	for {
		conn, err := ln.AcceptUnix()
		if ctx.Err() != nil {
			if err == nil {
				_ = conn.Close()
			}
			return nil
		}
		if errors.Is(err, net.ErrClosed) {
			return fmt.Errorf("accept controller: %w", err)
		}
		if err != nil {
			s.log.Warn("accept controller", "err", err)
			if !pause(ctx, 100*time.Millisecond) {
				return nil
			}
			continue
		}
		wg.Go(func() { s.serveConn(ctx, conn) })
	}
}

// pause waits d; false when ctx ended first.
func pause(ctx context.Context, d time.Duration) bool {
	t := time.NewTimer(d)
	defer t.Stop()
	select {
	case <-ctx.Done():
		return false
	case <-t.C:
		return true
	}
}

// serveConn runs one connection to its end.
func (s *Server) serveConn(ctx context.Context, conn *net.UnixConn) {
	w, err := newWire(conn, true)
	if err != nil {
		_ = conn.Close()
		s.log.Error("controller connection", "err", err)
		return
	}
	ses := newSession(ctx, s, w)
	defer ses.end(nil)
	if err := ses.greet(); err != nil {
		s.log.Warn("controller refused", "err", err)
		return
	}
	s.log.Info("controller connected", "build", Text(ses.build, maxBuild))
	err = ses.run()
	s.log.Info("controller gone", "reason", err)
}

// admit makes ses the one controller, if there is none or the present one is
// dead.
func (s *Server) admit(ses *session) error {
	for {
		s.mu.Lock()
		old := s.current
		if old == nil {
			s.current = ses
			s.mu.Unlock()
			return nil
		}
		s.mu.Unlock()
		if old.alive() {
			return ErrBusy
		}
		old.end(errors.New("it does not answer and another controller connected"))
		select {
		case <-old.gone:
		case <-ses.ctx.Done():
			return ses.ctx.Err()
		}
	}
}

// shutDown ends Serve after a Shutdown was answered.
func (s *Server) shutDown() {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.finish()
}

// leave is called when an admitted session has ended.
func (s *Server) leave(ses *session) {
	s.handler.Gone()
	s.mu.Lock()
	s.current = nil
	s.mu.Unlock()
	close(ses.gone)
}
