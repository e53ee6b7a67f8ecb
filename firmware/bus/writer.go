// SPDX-License-Identifier: Apache-2.0

package bus

import (
	"encoding/binary"
	"fmt"
)

// maxBatch bounds one write to the stream: the Linux virtio console driver
// takes at most 32 KiB at a time.
const maxBatch = 32 << 10

// outbox is what waits to be written. Everything in it is a bit, a number or a
// channel that is listed at most once, so it cannot grow beyond the channels.
type outbox struct {
	preamble   bool
	hello      bool
	helloFlags uint16
	ping, pong bool
	pongToken  []byte
	bye        bool
	byeReason  string
	signals    []*Channel // have an OPEN, ACCEPT, CREDIT, RING or CLOSE to send
	bulk       []*Channel // have data and credit
}

// writeLoop writes batches until the session has ended and its last words are
// out, then closes the stream.
func (s *Session) writeLoop() {
	defer s.closeStream()
	batch := make([]byte, 0, MaxFrame+maxBatch+MaxFrame)
	for {
		s.mu.Lock()
		over := s.err != nil
		batch = s.collect(batch[:0])
		s.mu.Unlock()
		if len(batch) > 0 {
			if _, err := s.rw.Write(batch); err != nil {
				s.end(fmt.Errorf("write to the bus: %w", err))
				return
			}
			continue
		}
		if over {
			return
		}
		<-s.wake
	}
}

func (s *Session) closeStream() {
	_ = s.rw.Close() // whatever it says, nothing more is expected of this stream
	s.mu.Lock()
	s.killer.Stop()
	s.mu.Unlock()
	close(s.drained)
}

// collect appends the next batch: handshake first, then signals of all
// channels, then data, one frame per channel in turn. Called with mu held.
func (s *Session) collect(b []byte) []byte {
	o := &s.out
	if s.err != nil {
		return s.lastWords(b)
	}
	if o.preamble {
		o.preamble = false
		b = append(b, make([]byte, MaxFrame)...)
	}
	b = s.collectHello(b)
	if !s.isUp() {
		return b
	}
	if o.ping {
		o.ping = false
		b = s.add(b, frame{kind: framePing, payload: binary.LittleEndian.AppendUint64(nil, s.nonce)})
	}
	if o.pong {
		o.pong = false
		b = s.add(b, frame{kind: framePong, payload: o.pongToken})
	}
	for len(o.signals) > 0 && len(b) < maxBatch {
		c := o.signals[0]
		o.signals = o.signals[1:]
		c.signalling = false
		b = c.collectSignals(b)
	}
	for len(o.bulk) > 0 && len(o.signals) == 0 && len(b) < maxBatch {
		c := o.bulk[0]
		o.bulk = o.bulk[1:]
		c.sending = false
		b = c.collectData(b)
	}
	return b
}

// collectHello appends a HELLO that is due. Called with mu held.
func (s *Session) collectHello(b []byte) []byte {
	if !s.out.hello {
		return b
	}
	s.out.hello = false
	return appendFrame(b, frame{kind: frameHello, flags: s.out.helloFlags, payload: s.helloPayload()})
}

// lastWords is all that an ended session still writes: BYE, behind the HELLO
// without which the peer would not know the session.
func (s *Session) lastWords(b []byte) []byte {
	if !s.out.bye || !s.isUp() {
		return b
	}
	s.out.bye = false
	b = s.collectHello(b)
	return s.add(b, frame{kind: frameBye, payload: []byte(s.out.byeReason)})
}

// add appends a frame of this session with the next sequence number.
func (s *Session) add(b []byte, f frame) []byte {
	f.session, f.seq = s.id, s.sendSeq
	s.sendSeq++
	return appendFrame(b, f)
}

// signal lists a channel for its pending signals. Called with mu held.
func (s *Session) signal(c *Channel) {
	if !c.signalling && s.err == nil {
		c.signalling = true
		s.out.signals = append(s.out.signals, c)
		s.wakeWriter()
	}
}

// send lists a channel for its pending data. Called with mu held.
func (s *Session) send(c *Channel) {
	if !c.sending && s.err == nil {
		c.sending = true
		s.out.bulk = append(s.out.bulk, c)
		s.wakeWriter()
	}
}
