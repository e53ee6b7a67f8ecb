// SPDX-License-Identifier: Apache-2.0

package door

import (
	"io"
	"net"
	"net/netip"
	"sync"
	"time"
)

// maxPeers bounds how many peers without a connection are remembered.
const maxPeers = 1024

// peers holds who is connected and how much each may still send. One peer,
// however many connections it opens, neither keeps others out nor uses up
// their rate.
type peers struct {
	total, each int     // limits of connections
	rate, burst float64 // commands a second, and at once
	now         func() time.Time

	mu    sync.Mutex
	known map[string]*peer // guarded by mu
	open  int              // connections of all peers; guarded by mu
}

type peer struct {
	tokens   float64
	refilled time.Time
	sessions map[*session]struct{}
}

// session is one connection's place. Idle ones may lose it to newcomers.
type session struct {
	name   string
	conn   io.Closer
	idle   time.Time // since when it waits for its peer
	active bool      // executes an authenticated command: is never closed for another's sake
}

// admit gives a connection a place, if need be that of an idle one: of the same
// peer when that peer has enough, else of the peer with most connections. It
// returns nil if there is none.
func (p *peers) admit(name string, conn io.Closer) *session {
	p.mu.Lock()
	defer p.mu.Unlock()
	who := p.get(name)
	if len(who.sessions) >= p.each && !p.evict(who) {
		return nil
	}
	if p.open >= p.total && !p.evict(p.largest()) {
		return nil
	}
	s := &session{name: name, conn: conn, idle: p.now()}
	who.sessions[s] = struct{}{}
	p.open++
	return s
}

// leave gives the place free.
func (p *peers) leave(s *session) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.remove(s)
}

func (p *peers) remove(s *session) {
	who, ok := p.known[s.name]
	if !ok {
		return
	}
	if _, there := who.sessions[s]; there {
		delete(who.sessions, s)
		p.open--
	}
}

// setActive says whether the session executes an authenticated command.
func (p *peers) setActive(s *session, active bool) {
	p.mu.Lock()
	defer p.mu.Unlock()
	s.active, s.idle = active, p.now()
}

// evict closes the peer's longest idle connection. Needs mu.
func (p *peers) evict(who *peer) bool {
	var oldest *session
	for s := range who.sessions {
		if !s.active && (oldest == nil || s.idle.Before(oldest.idle)) {
			oldest = s
		}
	}
	if oldest == nil {
		return false
	}
	p.remove(oldest)
	_ = oldest.conn.Close() // its own goroutine sees the end and reports it
	return true
}

// largest finds the peer with most connections. Needs mu.
func (p *peers) largest() *peer {
	var most *peer
	for _, who := range p.known {
		if most == nil || len(who.sessions) > len(most.sessions) {
			most = who
		}
	}
	return most
}

// spend takes tokens from the peer's bucket, beyond empty if need be, and
// returns how long the peer has to wait until it is no longer overdrawn.
func (p *peers) spend(name string, tokens float64) time.Duration {
	p.mu.Lock()
	defer p.mu.Unlock()
	who := p.get(name)
	who.tokens = max(who.tokens-tokens, -p.burst)
	if who.tokens >= 0 {
		return 0
	}
	return time.Duration(-who.tokens / p.rate * float64(time.Second))
}

// get finds or begins a peer, with its bucket refilled up to now. Needs mu.
func (p *peers) get(name string) *peer {
	now := p.now()
	who, ok := p.known[name]
	if !ok {
		p.forget(now)
		who = &peer{tokens: p.burst, refilled: now, sessions: map[*session]struct{}{}}
		p.known[name] = who
		return who
	}
	who.refill(now, p.rate, p.burst)
	return who
}

func (w *peer) refill(now time.Time, rate, burst float64) {
	if gone := now.Sub(w.refilled).Seconds(); gone > 0 {
		w.tokens = min(burst, w.tokens+gone*rate)
	}
	w.refilled = now
}

// forget makes room for another peer: those whose bucket is full go first, as
// forgetting them changes nothing, then the fullest. Needs mu.
func (p *peers) forget(now time.Time) {
	if len(p.known) < maxPeers {
		return
	}
	fullest, tokens := "", 0.0
	for name, who := range p.known {
		if len(who.sessions) > 0 {
			continue
		}
		who.refill(now, p.rate, p.burst)
		if who.tokens >= p.burst {
			delete(p.known, name)
		} else if fullest == "" || who.tokens > tokens {
			fullest, tokens = name, who.tokens
		}
	}
	if len(p.known) >= maxPeers {
		delete(p.known, fullest)
	}
}

// peerName gives those one name who share a machine: an IPv4 address, or an
// IPv6 /64, in which one machine has as many addresses as it likes.
func peerName(addr net.Addr) string {
	parsed, err := netip.ParseAddrPort(addr.String())
	if err != nil {
		return addr.Network()
	}
	ip := parsed.Addr().Unmap().WithZone("")
	if ip.Is4() {
		return ip.String()
	}
	prefix, err := ip.Prefix(64)
	if err != nil {
		return ip.String()
	}
	return prefix.String()
}
