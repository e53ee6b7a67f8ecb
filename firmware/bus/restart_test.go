// SPDX-License-Identifier: Apache-2.0

package bus

import (
	"context"
	"io"
	"math/rand/v2"
	"net"
	"sync"
	"testing"
	"testing/synctest"
	"time"
)

// TestRestartsInAnyOrder kills either end at random points, over a stream that
// keeps what the dead end wrote, and expects the ends to find each other again.
func TestRestartsInAnyOrder(t *testing.T) {
	for seed := range uint64(8) {
		synctest.Test(t, func(t *testing.T) {
			rng := rand.New(rand.NewPCG(seed, 3))
			link := newLink()
			ends := [2]*end{startEnd(t, link, Card), startEnd(t, link, Host)}
			for range 10 {
				time.Sleep(time.Duration(rng.IntN(3000)) * time.Millisecond)
				i := rng.IntN(2)
				ends[i].kill()
				time.Sleep(time.Duration(rng.IntN(500)) * time.Millisecond)
				ends[i] = startEnd(t, link, ends[i].role)
			}
			before := [2]int{ends[0].exchanged(), ends[1].exchanged()}
			time.Sleep(20 * time.Second)
			for i, e := range ends {
				if e.exchanged() <= before[i] {
					t.Errorf("seed %d: the %s exchanges nothing any more", seed, e.role)
				}
				e.kill()
			}
		})
	}
}

// link is a stream like a virtio-serial port: its ends come and go, its bytes stay.
type link struct{ toCard, toHost *stream }

func newLink() *link { return &link{toCard: newStream(), toHost: newStream()} }

type stream struct {
	mu   sync.Mutex
	buf  []byte
	wake chan struct{}
}

func newStream() *stream { return &stream{wake: make(chan struct{})} }

func (s *stream) change(fn func()) {
	s.mu.Lock()
	defer s.mu.Unlock()
	fn()
	close(s.wake)
	s.wake = make(chan struct{})
}

// linkEnd is one process's hold on a link. Killed, it stops in the middle of
// whatever it was writing.
type linkEnd struct {
	in, out *stream
	gone    chan struct{}
	once    sync.Once
}

func (e *linkEnd) Read(p []byte) (int, error) {
	for {
		e.in.mu.Lock()
		n := copy(p, e.in.buf)
		e.in.buf = e.in.buf[n:]
		wake := e.in.wake
		e.in.mu.Unlock()
		if n > 0 {
			e.in.change(func() {})
			return n, nil
		}
		select {
		case <-wake:
		case <-e.gone:
			return 0, net.ErrClosed
		}
	}
}

func (e *linkEnd) Write(p []byte) (int, error) {
	for n := 0; n < len(p); {
		e.out.mu.Lock()
		room, wake := 20_000-len(e.out.buf), e.out.wake
		e.out.mu.Unlock()
		select {
		case <-e.gone:
			return n, net.ErrClosed
		default:
		}
		if room > 0 {
			k := min(room, len(p)-n, 777)
			e.out.change(func() { e.out.buf = append(e.out.buf, p[n:n+k]...) })
			n += k
			continue
		}
		select {
		case <-wake:
		case <-e.gone:
			return n, net.ErrClosed
		}
	}
	return len(p), nil
}

func (e *linkEnd) Close() error {
	e.once.Do(func() { close(e.gone) })
	return nil
}

// end is one program: it opens a door or console channel every second and
// echoes what the peer's channels say.
type end struct {
	role   Role
	kill   func()
	mu     sync.Mutex
	rounds int
}

func (e *end) exchanged() int {
	e.mu.Lock()
	defer e.mu.Unlock()
	return e.rounds
}

func startEnd(t *testing.T, l *link, role Role) *end {
	ctx, cancel := context.WithCancel(t.Context())
	e := &end{role: role}
	var hold *linkEnd
	var mu sync.Mutex
	dial := func(context.Context) (io.ReadWriteCloser, error) {
		mu.Lock()
		defer mu.Unlock()
		hold = &linkEnd{in: l.toCard, out: l.toHost, gone: make(chan struct{})}
		if role == Host {
			hold.in, hold.out = l.toHost, l.toCard
		}
		return hold, nil
	}
	done := make(chan struct{})
	go func() {
		defer close(done)
		_ = Run(ctx, Config{Role: role}, dial, e.serve)
	}()
	e.kill = func() {
		mu.Lock()
		if hold != nil {
			_ = hold.Close() // before anything can be said
		}
		mu.Unlock()
		cancel()
		<-done
	}
	return e
}

func (e *end) serve(ctx context.Context, s *Session) error {
	var wg sync.WaitGroup
	defer wg.Wait()
	wg.Go(func() {
		for {
			o, err := s.Accept(ctx)
			if err != nil {
				return
			}
			c := o.Accept()
			wg.Go(func() { _, _ = io.Copy(c, onlyReader{c}); c.Close() })
		}
	})
	open := Open{Kind: KindDoor}
	if e.role == Card {
		open = Open{Kind: KindConsole, Instance: "a", Generation: testGeneration}
	}
	for sleep(ctx, 500*time.Millisecond) {
		c, err := s.Open(ctx, open)
		if err != nil {
			return err
		}
		if err := c.roundTrip(20_000); err != nil {
			return err
		}
		e.mu.Lock()
		e.rounds++
		e.mu.Unlock()
	}
	return nil
}

type onlyReader struct{ io.Reader }

func (c *Channel) roundTrip(n int) error {
	defer c.Close()
	go func() { _, _ = c.Write(make([]byte, n)) }()
	_, err := io.ReadFull(c, make([]byte, n))
	return err
}
