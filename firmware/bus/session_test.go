// SPDX-License-Identifier: Apache-2.0

package bus

import (
	"bytes"
	"context"
	"errors"
	"io"
	"math/rand/v2"
	"net"
	"os"
	"runtime"
	"slices"
	"strings"
	"testing"
	"testing/synctest"
	"time"
)

const testGeneration = "00112233445566778899aabbccddeeff"

var testDisk = Open{Kind: KindVhostUser, Instance: "web", Generation: testGeneration, Device: "root"}

// pair opens a session over an in-memory stream.
func pair(t *testing.T) (card, host *Session) {
	t.Helper()
	a, b := net.Pipe()
	return pairOver(t, a, b, Config{})
}

func pairOver(t *testing.T, a, b io.ReadWriteCloser, cfg Config) (card, host *Session) {
	t.Helper()
	up := make(chan *Session, 1)
	go func() {
		c := cfg
		c.Role, c.Build, c.PoolSize = Host, "test-host", 1<<30
		s, err := Start(t.Context(), b, c)
		if err != nil {
			t.Error(err)
		}
		up <- s
	}()
	c := cfg
	c.Role = Card
	card, err := Start(t.Context(), a, c)
	if err != nil {
		t.Fatal(err)
	}
	host = <-up
	t.Cleanup(func() {
		card.Close("test over")
		host.Close("test over")
	})
	return card, host
}

// openDisk opens a vhost-user channel.
func openDisk(t *testing.T, card, host *Session) (atCard, atHost *Channel) {
	t.Helper()
	got := make(chan *Channel, 1)
	go func() {
		o, err := card.Accept(t.Context())
		if err != nil {
			t.Error(err)
			close(got)
			return
		}
		if o.Open != testDisk {
			t.Errorf("offered %+v", o.Open)
		}
		got <- o.Accept()
	}()
	atHost, err := host.Open(t.Context(), testDisk)
	if err != nil {
		t.Fatal(err)
	}
	return <-got, atHost
}

func TestHandshake(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		card, host := pair(t)
		if p := card.Peer(); p != (Peer{Role: Host, Version: 1, Build: "test-host", PoolSize: 1 << 30}) {
			t.Errorf("the card sees %+v", p)
		}
		if p := host.Peer(); p.Role != Card {
			t.Errorf("the host sees %+v", p)
		}
		time.Sleep(time.Minute) // pings keep it alive
		if card.Err() != nil || host.Err() != nil {
			t.Errorf("ended: %v, %v", card.Err(), host.Err())
		}
	})
}

func TestDataIntegrityAndFairness(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		card, host := pair(t)
		c1, h1 := openDisk(t, card, host)
		c2, h2 := openDisk(t, card, host)
		// The first channel is never read: its window fills up and must not stop
		// the second.
		stuck := make(chan error, 1)
		go func() {
			_, err := h1.Write(make([]byte, 3*CreditBytes))
			stuck <- err
		}()
		data := make([]byte, 1<<20+17)
		rng := rand.New(rand.NewPCG(1, 2))
		for i := range data {
			data[i] = byte(rng.Uint32())
		}
		go func() {
			if n, err := h2.Write(data); n != len(data) || err != nil {
				t.Errorf("wrote %d, %v", n, err)
			}
			h2.Close()
		}()
		got, err := io.ReadAll(c2)
		if err != nil || !bytes.Equal(got, data) {
			t.Errorf("read %d bytes, %v", len(got), err)
		}
		c1.CloseReason("not interested")
		var refused *RefusedError
		if err := <-stuck; !errors.As(err, &refused) || refused.Reason != "not interested" {
			t.Errorf("stuck writer got %v", err)
		}
	})
}

func TestRecords(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		card, host := pair(t)
		c, h := openDisk(t, card, host)
		sizes := []int{0, 1, MaxRecord, 3, MaxRecord - 1, MaxRecord, 10_000}
		go func() {
			for _, n := range sizes {
				if err := h.WriteRecord(t.Context(), bytes.Repeat([]byte{byte(n)}, n)); err != nil {
					t.Error(err)
				}
			}
			h.Close()
		}()
		for _, n := range sizes {
			p, err := c.ReadRecord(t.Context(), MaxRecord)
			if err != nil || len(p) != n {
				t.Fatalf("record of %d bytes, %v; want %d", len(p), err, n)
			}
		}
		if _, err := c.ReadRecord(t.Context(), MaxRecord); err != io.EOF {
			t.Errorf("after the last record: %v", err)
		}
		if err := h.WriteRecord(t.Context(), make([]byte, MaxRecord+1)); err == nil {
			t.Error("a record longer than MaxRecord was written")
		}
	})
}

func TestRecordLimitClosesChannel(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		card, host := pair(t)
		c, h := openDisk(t, card, host)
		if err := h.WriteRecord(t.Context(), make([]byte, 100)); err != nil {
			t.Fatal(err)
		}
		if p, err := c.ReadRecord(t.Context(), 99); err == nil || p != nil {
			t.Errorf("got %d bytes, %v", len(p), err)
		}
		if _, err := h.Read(make([]byte, 1)); err == nil || !strings.Contains(err.Error(), "too long") {
			t.Errorf("the writer's end: %v", err)
		}
	})
}

func TestDeadlines(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		card, host := pair(t)
		c, h := openDisk(t, card, host)
		if err := c.SetReadDeadline(time.Now().Add(time.Second)); err != nil {
			t.Fatal(err)
		}
		if _, err := c.Read(make([]byte, 1)); !errors.Is(err, os.ErrDeadlineExceeded) {
			t.Errorf("read: %v", err)
		}
		if err := h.SetWriteDeadline(time.Now().Add(time.Second)); err != nil {
			t.Fatal(err)
		}
		n, err := h.Write(make([]byte, 2*CreditBytes))
		if n != CreditBytes || !errors.Is(err, os.ErrDeadlineExceeded) {
			t.Errorf("write: %d, %v; want one window", n, err)
		}
		ctx, cancel := context.WithTimeout(t.Context(), time.Second)
		defer cancel()
		c2, _ := openDisk(t, card, host)
		if _, err := c2.ReadRecord(ctx, 10); !errors.Is(err, context.DeadlineExceeded) {
			t.Errorf("read record: %v", err)
		}
	})
}

func TestDoorbells(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		card, host := pair(t)
		c, h := openDisk(t, card, host)
		h.Ring(3) // before anybody listens
		h.Ring(-1)
		h.Ring(MaxQueues)
		synctest.Wait()
		rung := map[int]int{}
		c.OnRing(func(q int) { rung[q]++ })
		if rung[3] != 1 || len(rung) != 1 {
			t.Errorf("latched doorbells: %v", rung)
		}
		for range 1000 {
			h.Ring(0)
			h.Ring(63)
		}
		synctest.Wait()
		if rung[0] == 0 || rung[63] == 0 || rung[0] > 1000 {
			t.Errorf("doorbells: %v", rung)
		}
		c.Close()
		h.Ring(1)
		synctest.Wait()
		if rung[1] != 0 {
			t.Error("a closed channel was rung")
		}
	})
}

// TestDoorbellsWhileClosing is for the race detector.
func TestDoorbellsWhileClosing(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		card, host := pair(t)
		for range 50 {
			c, h := openDisk(t, card, host)
			c.OnRing(func(int) {})
			done := make(chan struct{})
			go func() {
				defer close(done)
				for range 20 {
					h.Ring(1)
					runtime.Gosched()
				}
			}()
			c.Close()
			<-done
		}
	})
}

func TestOpenRefusals(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		card, host := pair(t)
		go func() {
			o, err := card.Accept(t.Context())
			if err == nil {
				o.Refuse("no such\ndevice")
			}
		}()
		var refused *RefusedError
		if _, err := host.Open(t.Context(), testDisk); !errors.As(err, &refused) || refused.Reason != "no such?device" {
			t.Errorf("refused open: %v", err)
		}
		if _, err := card.Open(t.Context(), testDisk); err == nil {
			t.Error("the card opened a vhost-user channel")
		}
		if _, err := host.Open(t.Context(), Open{Kind: KindVhostUser, Instance: "../x"}); err == nil {
			t.Error("a bad instance name was sent")
		}
		ctx, cancel := context.WithTimeout(t.Context(), time.Second)
		defer cancel()
		if _, err := host.Open(ctx, testDisk); !errors.Is(err, context.DeadlineExceeded) {
			t.Errorf("open that nobody answers: %v", err)
		}
		o, err := card.Accept(t.Context()) // withdrawn meanwhile
		if err != nil {
			t.Fatal(err)
		}
		if _, err := o.Accept().Read(make([]byte, 1)); err != io.EOF {
			t.Errorf("read of a withdrawn channel: %v", err)
		}
		synctest.Wait()
		for _, s := range []*Session{card, host} {
			s.mu.Lock()
			if len(s.channels) != 1 || s.err != nil {
				t.Errorf("%s keeps %d channels, %v", s.cfg.Role, len(s.channels), s.err)
			}
			s.mu.Unlock()
		}
	})
}

func TestBacklogIsBounded(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		card, host := pair(t)
		results := make(chan error, offerBacklog+10)
		for range cap(results) {
			go func() {
				_, err := host.Open(t.Context(), testDisk)
				results <- err
			}()
		}
		synctest.Wait()
		if len(results) != 10 || card.Err() != nil {
			t.Errorf("%d were refused at once, want 10; card: %v", len(results), card.Err())
		}
	})
}

func TestSilentPeer(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		a, b := net.Pipe()
		card, _ := pairOver(t, a, &mute{Conn: b, after: time.Now().Add(time.Minute)}, Config{})
		c, err := card.Accept(contextOf(t, 3*time.Minute))
		if c != nil || !errors.Is(err, ErrPeerSilent) {
			t.Errorf("got %v, want the peer to be silent", err)
		}
	})
}

func contextOf(t *testing.T, d time.Duration) context.Context {
	ctx, cancel := context.WithTimeout(t.Context(), d)
	t.Cleanup(cancel)
	return ctx
}

// mute is a stream whose writes vanish from some time on.
type mute struct {
	net.Conn
	after time.Time
}

func (m *mute) Write(p []byte) (int, error) {
	if time.Now().After(m.after) {
		return len(p), nil
	}
	return m.Conn.Write(p)
}

func TestPeerBye(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		card, host := pair(t)
		c, _ := openDisk(t, card, host)
		host.Close("upgrade")
		<-card.Done()
		if !errors.Is(card.Err(), ErrPeerBye) || !strings.Contains(card.Err().Error(), "upgrade") {
			t.Errorf("the card's session ended with %v", card.Err())
		}
		if _, err := c.Read(make([]byte, 1)); !errors.Is(err, ErrPeerBye) {
			t.Errorf("its channel: %v", err)
		}
	})
}

// TestByeBehindAnAnswer: an end that goes as soon as it is up has still to answer
// the HELLO that made it so, or its peer takes the BYE for that of another session.
func TestByeBehindAnAnswer(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		a, b := net.Pipe()
		s, err := newSession(a, Config{Role: Host})
		if err != nil {
			t.Fatal(err)
		}
		synctest.Wait() // the first HELLO is on its way until somebody reads it
		h := hello{min: 1, current: 1, role: Card, nonce: 9, echo: s.nonce}
		if err := s.receive(frame{kind: frameHello, payload: h.append(nil)}, 0); err != nil {
			t.Fatal(err)
		}
		go s.Close("going")
		synctest.Wait()
		d := newDecoder(b)
		var got []frameType
		for {
			f, _, err := d.next()
			if err != nil {
				break
			}
			got = append(got, f.kind)
			if h, err := parseHello(f.payload); len(got) == 2 && (err != nil || h.echo != 9) {
				t.Errorf("the answer is %+v, %v", h, err)
			}
		}
		if want := []frameType{frameHello, frameHello, frameBye}; !slices.Equal(got, want) {
			t.Errorf("sent %v, want %v", got, want)
		}
	})
}

func TestSameRole(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		a, b := net.Pipe()
		go Start(t.Context(), b, Config{Role: Card})
		s, err := Start(t.Context(), a, Config{Role: Card})
		if s != nil || !errors.Is(err, ErrProtocol) && !errors.Is(err, io.EOF) && !errors.Is(err, io.ErrClosedPipe) {
			t.Errorf("got %v, %v", s, err)
		}
		synctest.Wait()
		time.Sleep(2 * time.Second)
	})
}
