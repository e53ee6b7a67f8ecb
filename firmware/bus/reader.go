// SPDX-License-Identifier: Apache-2.0

package bus

import (
	"fmt"
	"time"
)

// readLoop decodes and dispatches until the stream or the session ends.
func (s *Session) readLoop() {
	d := newDecoder(s.rw)
	for {
		f, dropped, err := d.next()
		if err != nil {
			s.end(fmt.Errorf("read from the bus: %w", err))
			return
		}
		if err := s.receive(f, dropped); err != nil {
			s.end(err)
			return
		}
	}
}

// receive handles one intact frame. Before the session is up everything but
// HELLO is left over from earlier sessions and dropped. Afterwards the stream
// must be perfect.
func (s *Session) receive(f frame, dropped int) error {
	s.mu.Lock()
	if s.err != nil {
		s.mu.Unlock()
		return s.err
	}
	if f.kind == frameHello {
		defer s.mu.Unlock()
		defer s.wakeWriter()
		s.heard = time.Now()
		wasUp := s.isUp()
		if err := s.onHello(f); err != nil {
			return err
		}
		if wasUp && dropped > 0 {
			return fmt.Errorf("%w: %d bytes before a HELLO", ErrGarbled, dropped)
		}
		return nil
	}
	if !s.isUp() {
		s.mu.Unlock()
		return nil
	}
	if err := s.checkFrame(f, dropped); err != nil {
		s.mu.Unlock()
		return err
	}
	s.recvSeq++
	s.heard = time.Now()
	ring, err := s.dispatch(f)
	s.mu.Unlock()
	if ring != nil { // called without the lock: it may write an eventfd or open a channel
		ring()
	}
	return err
}

func (s *Session) checkFrame(f frame, dropped int) error {
	if dropped > 0 {
		return fmt.Errorf("%w: %d bytes before a frame", ErrGarbled, dropped)
	}
	if f.session != s.id {
		return fmt.Errorf("%w: frame of session %x in session %x", ErrProtocol, f.session, s.id)
	}
	if f.seq != s.recvSeq {
		return fmt.Errorf("%w: frame %d where %d was due", ErrGarbled, f.seq, s.recvSeq)
	}
	if f.flags != 0 {
		return fmt.Errorf("%w: frame type %d with flags %#x", ErrProtocol, f.kind, f.flags)
	}
	return nil
}

// dispatch acts on a frame of the session. The returned function, if any, is
// the doorbell to ring. Called with mu held.
func (s *Session) dispatch(f frame) (func(), error) {
	switch f.kind {
	case framePing, framePong:
		if f.channel != 0 || len(f.payload) != 8 {
			return nil, fmt.Errorf("%w: ping of %d bytes on channel %d", ErrProtocol, len(f.payload), f.channel)
		}
		if f.kind == framePing {
			s.out.pong, s.out.pongToken = true, append([]byte(nil), f.payload...)
			s.wakeWriter()
		}
		return nil, nil
	case frameBye:
		return nil, fmt.Errorf("%w: %s", ErrPeerBye, clean(string(f.payload), MaxReason))
	case frameOpen:
		return nil, s.onOpen(f)
	}
	c := s.channels[f.channel]
	if c == nil {
		return nil, fmt.Errorf("%w: frame type %d on channel %d, which does not exist", ErrProtocol, f.kind, f.channel)
	}
	return c.dispatch(f)
}

// onOpen makes a channel of the peer's wish, or refuses it.
func (s *Session) onOpen(f frame) error {
	peer := Card + Host - s.cfg.Role
	if f.channel == 0 || f.channel%2 != firstID(peer)%2 || f.channel <= s.lastPeer {
		return fmt.Errorf("%w: the %s opened channel %d after %d", ErrProtocol, peer, f.channel, s.lastPeer)
	}
	o, err := parseOpen(f.payload, peer)
	if err != nil {
		return fmt.Errorf("%w: %w", ErrProtocol, err)
	}
	s.lastPeer = f.channel
	c := newChannel(s, f.channel, o, chanOffered)
	if len(s.channels) >= 2*s.cfg.MaxChannels {
		return fmt.Errorf("%w: more than %d channels", ErrProtocol, 2*s.cfg.MaxChannels)
	}
	s.channels[f.channel] = c
	if len(s.channels) > s.cfg.MaxChannels {
		c.closeLocked("too many channels")
		return nil
	}
	select {
	case s.offers <- &Offer{Open: o, ch: c}:
	default:
		c.closeLocked("busy: nobody accepts channels")
	}
	return nil
}
