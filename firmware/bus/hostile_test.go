// SPDX-License-Identifier: Apache-2.0

package bus

import (
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"net"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/davit-dpu/davit/firmware/spec"
)

// peerOf opens a card's session against a peer that the test plays by hand: it
// returns the session and a function that sends a frame of it.
func peerOf(t *testing.T) (*Session, func(frame)) {
	t.Helper()
	a, b := net.Pipe()
	t.Cleanup(func() { b.Close() })
	toPeer := make(chan frame, 1024)
	go func() {
		d := newDecoder(b)
		for {
			f, _, err := d.next()
			if err != nil {
				return
			}
			select {
			case toPeer <- f:
			default:
			}
		}
	}()
	const nonce = 0xfeed
	go func() {
		h, err := parseHello((<-toPeer).payload)
		if err != nil {
			t.Error(err)
		}
		answer := hello{min: 1, current: 1, role: Host, nonce: nonce, echo: h.nonce}
		_, _ = b.Write(appendFrame(nil, frame{kind: frameHello, payload: answer.append(nil)}))
	}()
	s, err := Start(t.Context(), a, Config{Role: Card})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { s.Close("") })
	seq := uint32(0)
	id := sessionID(s.nonce, nonce)
	return s, func(f frame) {
		f.session, f.seq = id, seq
		seq++
		_, _ = b.Write(appendFrame(nil, f))
	}
}

func openPayload(t *testing.T, o Open) []byte {
	t.Helper()
	b, err := marshal(o)
	if err != nil {
		t.Fatal(err)
	}
	return b
}

// TestRulesEndTheSession sends one frame against the rules, after legal ones.
func TestRulesEndTheSession(t *testing.T) {
	le := binary.LittleEndian
	open := frame{kind: frameOpen, channel: 1, payload: openPayload(t, testDisk)}
	data := func(n int) frame { return frame{kind: frameData, channel: 1, payload: make([]byte, n)} }
	full := []frame{open, data(MaxPayload), data(MaxPayload), data(MaxPayload), data(MaxPayload)}
	for _, c := range []struct {
		name   string
		frames []frame
		want   error
	}{
		{"legal", full, nil},
		{"window exceeded", append(full[:5:5], data(1)), ErrProtocol},
		{"empty data", []frame{open, data(0)}, ErrProtocol},
		{"unknown channel", []frame{{kind: frameData, channel: 77, payload: []byte{1}}}, ErrProtocol},
		{"channel of the wrong parity", []frame{{kind: frameOpen, channel: 2, payload: open.payload}}, ErrProtocol},
		{"channel opened twice", []frame{open, open}, ErrProtocol},
		{"control opened", []frame{{kind: frameOpen, channel: 0, payload: open.payload}}, ErrProtocol},
		{"control closed", []frame{{kind: frameClose, channel: 0}}, ErrProtocol},
		{"open of garbage", []frame{{kind: frameOpen, channel: 1, payload: []byte{0xff}}}, ErrProtocol},
		{"open of the card's kind", []frame{{kind: frameOpen, channel: 1, payload: openPayload(t, Open{Kind: KindQMP, Instance: "a", Generation: testGeneration})}}, ErrProtocol},
		{"accept of nothing", []frame{open, {kind: frameAccept, channel: 1}}, ErrProtocol},
		{"frame after close", []frame{open, {kind: frameClose, channel: 1}, data(1)}, ErrProtocol},
		{"credit from nowhere", []frame{{kind: frameCredit, channel: 0, payload: le.AppendUint32(nil, 1)}}, ErrProtocol},
		{"credit of nothing", []frame{{kind: frameCredit, channel: 0, payload: le.AppendUint32(nil, 0)}}, ErrProtocol},
		{"ring of no queue", []frame{{kind: frameRing, channel: 0, payload: make([]byte, 8)}}, ErrProtocol},
		{"unknown frame type", []frame{{kind: 99, channel: 0}}, ErrProtocol},
		{"unknown flags", []frame{{kind: framePing, flags: 2, payload: make([]byte, 8)}}, ErrProtocol},
		{"short ping", []frame{{kind: framePing, payload: make([]byte, 7)}}, ErrProtocol},
		{"bye", []frame{{kind: frameBye, payload: []byte("x")}}, ErrPeerBye},
		{"record too long for control", []frame{{kind: frameData, channel: 0, payload: le.AppendUint32(nil, MaxRecord+1)}}, ErrProtocol},
	} {
		t.Run(c.name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				s, send := peerOf(t)
				orders := NewOrders(s, func(spec.VMMStatus) {})
				go func() {
					if err := orders.Run(t.Context()); err != nil && s.Err() == nil {
						s.end(fmt.Errorf("%w: %w", ErrProtocol, err))
					}
				}()
				for i, f := range c.frames {
					send(f)
					if i == 0 && f.kind == frameOpen && f.channel == 1 && c.name != "frame after close" {
						acceptIfOffered(s)
					}
				}
				synctest.Wait()
				if err := s.Err(); !errors.Is(err, c.want) || (c.want == nil) != (err == nil) {
					t.Errorf("session: %v, want %v", err, c.want)
				}
			})
		})
	}
}

func acceptIfOffered(s *Session) {
	synctest.Wait()
	select {
	case o := <-s.offers:
		o.Accept()
	default:
	}
	synctest.Wait()
}

func TestDoorbellFloodIsBounded(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s, send := peerOf(t)
		send(frame{kind: frameOpen, channel: 1, payload: openPayload(t, testDisk)})
		acceptIfOffered(s)
		for range 5000 {
			send(frame{kind: frameRing, channel: 1, payload: binary.LittleEndian.AppendUint64(nil, ^uint64(0))})
			send(frame{kind: framePing, payload: make([]byte, 8)})
		}
		synctest.Wait()
		s.mu.Lock()
		defer s.mu.Unlock()
		if s.err != nil || len(s.out.signals) > 1 {
			t.Errorf("%v, %d signals queued", s.err, len(s.out.signals))
		}
	})
}

// garbler damages the stream at one point.
type garbler struct {
	net.Conn
	mu    sync.Mutex
	at    int    // guarded by mu; bytes left until the damage
	cut   int    // bytes to leave out there
	extra []byte // bytes to put there
}

func (g *garbler) Write(p []byte) (int, error) {
	g.mu.Lock()
	defer g.mu.Unlock()
	q := p
	if g.at >= 0 && g.at < len(p) {
		end := min(len(p), g.at+g.cut)
		q = append(append(append([]byte(nil), p[:g.at]...), g.extra...), p[end:]...)
		g.at = -1
	} else if g.at >= 0 {
		g.at -= len(p)
	}
	if len(q) > 0 {
		if _, err := g.Conn.Write(q); err != nil {
			return 0, err
		}
	}
	return len(p), nil
}

// TestGarbledStreamEndsWithAReason: a stream that lost, gained or changed bytes
// never delivers wrong data; the session notices, by the next frame or the
// next ping.
func TestGarbledStreamEndsWithAReason(t *testing.T) {
	for seed := range uint64(60) {
		synctest.Test(t, func(t *testing.T) {
			rng := rand.New(rand.NewPCG(seed, 2))
			a, b := net.Pipe()
			g := &garbler{Conn: b, at: -1, cut: rng.IntN(2 * MaxFrame)}
			for range rng.IntN(50) {
				g.extra = append(g.extra, byte(rng.Uint32()))
			}
			if g.cut == 0 && len(g.extra) == 0 {
				g.cut = 1
			}
			card, host := pairOver(t, a, g, Config{})
			c, h := openDisk(t, card, host)
			g.mu.Lock()
			g.at = rng.IntN(300_000)
			g.mu.Unlock()
			written := make(chan struct{})
			go func() {
				defer close(written)
				p := make([]byte, 10_000)
				for n := 0; ; n += len(p) {
					for i := range p {
						p[i] = byte((n + i) % 251)
					}
					if _, err := h.Write(p); err != nil {
						return
					}
					time.Sleep(100 * time.Millisecond)
				}
			}()
			buf := make([]byte, 4096)
			for total := 0; ; {
				n, err := c.Read(buf)
				for i := range n {
					if buf[i] != byte((total+i)%251) {
						t.Fatalf("seed %d: wrong byte at %d", seed, total+i)
					}
				}
				total += n
				if err != nil {
					break
				}
			}
			if err := card.Err(); !errors.Is(err, ErrGarbled) && !errors.Is(err, ErrPeerSilent) && !errors.Is(err, ErrProtocol) {
				t.Errorf("seed %d: the session ended with %v", seed, err)
			}
			host.Close("")
			<-written
		})
	}
}

// FuzzSession feeds an established session with legal framing and arbitrary
// content, and checks what a host can make a card hold.
func FuzzSession(f *testing.F) {
	f.Add([]byte{4, 1, 30, 7, 1, 100, 9, 1, 8})
	f.Add([]byte{8, 0, 4, 6, 0, 0, 10, 0, 3})
	valid, err := marshal(testDisk)
	if err != nil {
		f.Fatal(err)
	}
	f.Fuzz(func(t *testing.T, in []byte) {
		s, err := newFuzzSession()
		if err != nil {
			t.Fatal(err)
		}
		defer s.Close("")
		frames := 0
		for seq := uint32(0); len(in) >= 3 && frames < 4096; frames++ {
			fr := frame{kind: frameType(in[0] % 12), flags: uint16(in[0] >> 7), session: s.id, channel: uint32(in[1] % 16), seq: seq}
			n := min(int(in[2]), len(in)-3)
			fr.payload, in = in[3:3+n], in[3+n:]
			switch {
			case fr.kind == frameOpen && n%2 == 0:
				fr.payload = valid
			case fr.kind == frameData && n == 255:
				fr.payload = make([]byte, MaxPayload)
			}
			if err := s.receive(fr, 0); err != nil {
				break
			}
			if fr.kind != frameHello {
				seq++
			}
			select {
			case o := <-s.offers:
				o.Accept()
			default:
			}
		}
		s.mu.Lock()
		defer s.mu.Unlock()
		for id, c := range s.channels {
			if len(c.rx) > CreditBytes || c.rxCredit < 0 || c.txCredit > CreditBytes {
				t.Fatalf("channel %d holds %d bytes, credit %d and %d", id, len(c.rx), c.rxCredit, c.txCredit)
			}
		}
		if len(s.channels) > 2*s.cfg.MaxChannels || len(s.out.signals) > len(s.channels) {
			t.Fatalf("%d channels, %d signals", len(s.channels), len(s.out.signals))
		}
	})
}

// newFuzzSession makes an established card's session whose stream takes
// everything and gives nothing.
func newFuzzSession() (*Session, error) {
	r, w := io.Pipe()
	s, err := newSession(sink{r, w}, Config{Role: Card, HelloEvery: time.Hour})
	if err != nil {
		return nil, err
	}
	h := hello{min: 1, current: 1, role: Host, nonce: 9, echo: s.nonce}
	return s, s.receive(frame{kind: frameHello, payload: h.append(nil)}, 0)
}

type sink struct {
	*io.PipeReader
	w *io.PipeWriter
}

func (s sink) Write(p []byte) (int, error) { return len(p), nil }
func (s sink) Close() error                { return errors.Join(s.PipeReader.Close(), s.w.Close()) }
