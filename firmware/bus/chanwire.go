// SPDX-License-Identifier: Apache-2.0

package bus

import (
	"encoding/binary"
	"fmt"
	"math/bits"
)

// collectSignals appends the frames that are due. A channel both ends have
// closed is forgotten. Called with mu held.
func (c *Channel) collectSignals(b []byte) []byte {
	le := binary.LittleEndian
	if c.due.open {
		c.due.open = false
		p, err := marshal(c.open)
		if err != nil { // an Open is three strings: cannot happen, and must not look like a channel
			c.failLocked(err)
			delete(c.s.channels, c.id)
			return b
		}
		b = c.s.add(b, frame{kind: frameOpen, channel: c.id, payload: p})
	}
	if c.due.accept {
		c.due.accept = false
		b = c.s.add(b, frame{kind: frameAccept, channel: c.id})
	}
	if c.state == chanOpen && c.rxOwed > 0 {
		b = c.s.add(b, frame{kind: frameCredit, channel: c.id, payload: le.AppendUint32(nil, uint32(c.rxOwed))})
		c.rxCredit += c.rxOwed
		c.rxOwed = 0
	}
	if c.state == chanOpen && c.ringsOut != 0 {
		b = c.s.add(b, frame{kind: frameRing, channel: c.id, payload: le.AppendUint64(nil, c.ringsOut)})
		c.ringsOut = 0
	}
	if c.due.close {
		c.due.close = false
		b = c.s.add(b, frame{kind: frameClose, channel: c.id, payload: []byte(c.due.reason)})
		c.due.reason = ""
		c.state = chanClosed
		if c.peerClosed {
			delete(c.s.channels, c.id)
		}
	}
	return b
}

// collectData appends one frame of data and lists the channel again if it has
// more. Called with mu held.
func (c *Channel) collectData(b []byte) []byte {
	n := min(len(c.tx), c.txCredit, MaxPayload)
	if n == 0 || c.state != chanOpen {
		return b
	}
	b = c.s.add(b, frame{kind: frameData, channel: c.id, payload: c.tx[:n]})
	c.tx = c.tx[n:]
	c.txCredit -= n
	if len(c.tx) == 0 {
		c.kick()
	}
	c.pushLocked()
	return b
}

// pushLocked lists the channel for sending if it has data, credit and leave.
func (c *Channel) pushLocked() {
	if len(c.tx) > 0 && c.txCredit > 0 && c.state == chanOpen {
		c.s.send(c)
	}
}

func (c *Channel) onAccept() {
	c.established = true
	if c.state == chanOpening {
		c.state = chanOpen
		c.kick()
	}
}

func (c *Channel) onClose(reason string) {
	c.peerClosed = true
	if c.state == chanClosed {
		if !c.due.close { // ours is out already
			delete(c.s.channels, c.id)
		}
		return
	}
	c.due.close = true
	c.s.signal(c)
	c.failLocked(&RefusedError{Open: c.open, Reason: reason})
}

func (c *Channel) onData(p []byte) {
	c.rxCredit -= len(p)
	if c.state != chanOpen {
		return
	}
	c.rx = append(c.rx, p...)
	select {
	case c.readable <- struct{}{}:
	default:
	}
}

// dispatch acts on a frame of one channel. Called with the session's mu held.
func (c *Channel) dispatch(f frame) (func(), error) {
	bad := func(what string) error {
		return fmt.Errorf("%w: %s on %s channel %d", ErrProtocol, what, c.open.Kind, c.id)
	}
	if c.peerClosed {
		return nil, bad("frame after CLOSE")
	}
	if f.kind != frameClose && f.kind != frameAccept && !c.established {
		return nil, bad("frame before ACCEPT")
	}
	switch f.kind {
	case frameAccept:
		if c.established || c.state == chanOffered || len(f.payload) != 0 {
			return nil, bad("unexpected ACCEPT")
		}
		c.onAccept()
	case frameClose:
		if c.id == 0 {
			return nil, bad("CLOSE")
		}
		c.onClose(clean(string(f.payload), MaxReason))
	case frameData:
		if len(f.payload) == 0 || len(f.payload) > c.rxCredit {
			return nil, bad(fmt.Sprintf("%d bytes of data against %d of credit", len(f.payload), c.rxCredit))
		}
		c.onData(f.payload)
	case frameCredit:
		if !c.onCredit(f.payload) {
			return nil, bad("credit that was never used")
		}
	case frameRing:
		if len(f.payload) != 8 || binary.LittleEndian.Uint64(f.payload) == 0 {
			return nil, bad("doorbell of no queue")
		}
		return c.onRings(binary.LittleEndian.Uint64(f.payload)), nil
	default:
		return nil, bad(fmt.Sprintf("unknown frame type %d", f.kind))
	}
	return nil, nil
}

// onCredit takes back what the peer has consumed; false if it never was sent.
func (c *Channel) onCredit(p []byte) bool {
	if len(p) != 4 {
		return false
	}
	n := binary.LittleEndian.Uint32(p)
	if n == 0 || n > CreditBytes || c.txCredit+int(n) > CreditBytes {
		return false
	}
	c.txCredit += int(n)
	c.pushLocked()
	return true
}

func (c *Channel) onRings(mask uint64) func() {
	if c.state != chanOpen {
		return nil
	}
	fn := c.onRing // under the lock: Close takes it away
	if fn == nil {
		c.ringsIn |= mask
		return nil
	}
	return func() { ringEach(fn, mask) }
}

func ringEach(fn func(int), mask uint64) {
	for ; mask != 0; mask &= mask - 1 {
		fn(bits.TrailingZeros64(mask))
	}
}
