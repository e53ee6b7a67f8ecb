// SPDX-License-Identifier: Apache-2.0

package door

import (
	"context"
	"crypto/sha256"
	"encoding/binary"
	"errors"
	"io"
	"net"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/davit-dpu/davit/firmware/mailbox"
)

// join connects a pipe to the server as the named peer.
func join(t *testing.T, s *Server, peer string) net.Conn {
	t.Helper()
	near, far := net.Pipe()
	var served sync.WaitGroup
	served.Go(func() { s.ServeConn(t.Context(), far, peer) })
	t.Cleanup(func() {
		_ = near.Close() // often closed before
		served.Wait()
	})
	return near
}

// ask sends a public request and waits for the receipt.
func ask(t *testing.T, conn net.Conn) error {
	t.Helper()
	request, err := mailbox.PublicRequest("", "status", nil, nil)
	if err != nil {
		t.Fatal(err)
	}
	if err := WriteFrame(conn, Envelope, request); err != nil {
		return err
	}
	_, _, err = ReadFrame(conn, Receipt)
	return err
}

// ended reports whether the server has closed the connection.
func ended(conn net.Conn) bool {
	if err := conn.SetReadDeadline(time.Now().Add(time.Millisecond)); err != nil {
		return true
	}
	_, err := conn.Read(make([]byte, 1))
	return err != nil && !isTimeout(err) || conn.SetReadDeadline(time.Time{}) != nil
}

func isTimeout(err error) bool {
	var n net.Error
	return errors.As(err, &n) && n.Timeout()
}

func TestSilentAndSlowPeersLoseTheConnection(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		s := newCard(t).server(nil)
		quiet, slow, deaf, honest := join(t, s, "quiet"), join(t, s, "slow"), join(t, s, "deaf"), join(t, s, "honest")
		if _, err := slow.Write([]byte{0, 0, 0, 200, byte(Envelope), 0xa0}); err != nil {
			t.Fatal(err)
		}
		request, err := mailbox.PublicRequest("", "status", nil, nil)
		if err != nil {
			t.Fatal(err)
		}
		if err := WriteFrame(deaf, Envelope, request); err != nil { // and never reads the receipt
			t.Fatal(err)
		}
		if err := ask(t, honest); err != nil {
			t.Errorf("an honest peer beside slow ones: %v", err)
		}
		time.Sleep(DefaultFrame + time.Second)
		synctest.Wait()
		if !ended(slow) {
			t.Error("the peer that sends half a frame is still there")
		}
		if !ended(deaf) {
			t.Error("the peer that does not read is still there")
		}
		if ended(quiet) {
			t.Error("the silent peer is gone too early")
		}
		time.Sleep(DefaultIdle)
		synctest.Wait()
		if !ended(quiet) || !ended(honest) {
			t.Error("a silent peer is still there")
		}
	})
}

func TestConnectionsAreBounded(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		s := newCard(t).server(func(c *Config) { c.Connections, c.PerPeer = 4, 3 })
		var hostile []net.Conn
		for range 3 {
			hostile = append(hostile, join(t, s, "hostile"))
			time.Sleep(time.Second)
		}
		if err := ask(t, hostile[0]); err != nil { // the second is the longest idle one now
			t.Fatal(err)
		}
		synctest.Wait() // the receipt is out before the server counts the connection as idle
		fourth := join(t, s, "hostile")
		synctest.Wait()
		if !ended(hostile[1]) || ended(hostile[0]) || ended(fourth) {
			t.Error("the peer's fourth connection did not replace its longest idle one")
		}
		first := join(t, s, "honest")
		synctest.Wait()
		time.Sleep(time.Second)
		second := join(t, s, "honest too")
		synctest.Wait()
		if ended(first) || ended(second) || !ended(hostile[2]) {
			t.Error("a newcomer did not get the place of the peer with most connections")
		}
		if err := errors.Join(ask(t, first), ask(t, second)); err != nil {
			t.Error(err)
		}
	})
}

// blocking is a mailbox whose commands are signed and take until they are released.
type blocking struct{ release chan struct{} }

func (b blocking) Serve(_ context.Context, _ mailbox.Door, _ []byte, l mailbox.Link) (mailbox.Code, error) {
	l.Authenticated()
	<-b.release
	return mailbox.OK, l.Receipt([]byte("done"))
}

func TestRunningCommandsKeepTheirPlace(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		b := blocking{release: make(chan struct{})}
		s, err := NewServer(Config{Door: mailbox.Door{Name: "test"}, Mailbox: b, Log: silent, Connections: 1})
		if err != nil {
			t.Fatal(err)
		}
		busy := join(t, s, "a")
		if err := WriteFrame(busy, Envelope, nil); err != nil {
			t.Fatal(err)
		}
		synctest.Wait()
		late := join(t, s, "b")
		synctest.Wait()
		if !ended(late) {
			t.Error("a newcomer was admitted beyond the limit")
		}
		close(b.release)
		if _, body, err := ReadFrame(busy, Receipt); err != nil || string(body) != "done" {
			t.Errorf("the running command's receipt: %q, %v", body, err)
		}
	})
}

// Who signs nothing and does not read its receipt has no place to keep.
func TestDeafPeersDoNotKeepTheirPlace(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		s := newCard(t).server(func(c *Config) { c.Connections = 1 })
		deaf := join(t, s, "hostile")
		request, err := mailbox.PublicRequest("", "status", nil, nil)
		if err != nil {
			t.Fatal(err)
		}
		if err := WriteFrame(deaf, Envelope, request); err != nil {
			t.Fatal(err)
		}
		synctest.Wait() // the receipt is being written
		honest := join(t, s, "honest")
		if err := ask(t, honest); err != nil {
			t.Errorf("a peer that does not read kept a newcomer out: %v", err)
		}
		if !ended(deaf) {
			t.Error("the peer that does not read is still there")
		}
	})
}

// refusing is a mailbox that refuses all before it looks at a signature.
type refusing struct{}

func (refusing) Serve(_ context.Context, _ mailbox.Door, _ []byte, l mailbox.Link) (mailbox.Code, error) {
	return mailbox.BadSignature, l.Receipt([]byte("no"))
}

func TestThrottledPeersDoNotKeepTheirPlace(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		s, err := NewServer(Config{Door: mailbox.Door{Name: "test"}, Mailbox: refusing{}, Log: silent, Connections: 1, Rate: 1})
		if err != nil {
			t.Fatal(err)
		}
		hostile := join(t, s, "hostile")
		if err := WriteFrame(hostile, Envelope, nil); err != nil {
			t.Fatal(err)
		}
		if _, _, err := ReadFrame(hostile, Receipt); err != nil {
			t.Fatal(err)
		}
		synctest.Wait() // overdrawn: it waits
		honest := join(t, s, "honest")
		synctest.Wait()
		if ended(honest) || !ended(hostile) {
			t.Error("a peer that is made to wait kept a newcomer out")
		}
	})
}

func TestOversizedCommandGetsASignedRefusal(t *testing.T) {
	t.Parallel()
	for _, size := range []uint32{mailbox.MaxCommand + 1, 1<<32 - 1} {
		c := newCard(t)
		conn := join(t, c.server(nil), "hostile")
		header := append(binary.BigEndian.AppendUint32(nil, size), byte(Envelope))
		message := make([]byte, mailbox.MaxCommand+1)
		if _, err := conn.Write(append(header, message...)); err != nil {
			t.Fatal(err)
		}
		_, body, err := ReadFrame(conn, Receipt)
		if err != nil {
			t.Fatal(err)
		}
		u, err := mailbox.ParseReceipt(body)
		if err != nil {
			t.Fatal(err)
		}
		r, err := u.Verify(c.receipt.Public(), sha256.Sum256(message))
		if err != nil || r.Code != mailbox.TooLarge {
			t.Errorf("%d bytes announced: %+v, %v", size, r, err)
		}
		// What is still announced is dropped up to a bound, then the end.
		_, err = io.Copy(conn, io.LimitReader(zeros{}, 2*lingerBytes))
		if err == nil {
			t.Error("an oversized command is read without end")
		}
	}
}

type zeros struct{}

func (zeros) Read(p []byte) (int, error) { return len(p), nil }

func TestForeignFramesEndTheConnection(t *testing.T) {
	t.Parallel()
	for name, frame := range map[string]string{
		"receipt": "\x00\x00\x00\x00\x02", "data outside a stream": "\x00\x00\x00\x01\x03x",
		"end outside a stream": "\x00\x00\x00\x00\x04", "unknown kind": "\x00\x00\x00\x00\xff", "HTTP": "GET / HTTP/1.1\r\n\r\n",
	} {
		conn := join(t, newCard(t).server(nil), "hostile")
		if _, err := conn.Write([]byte(frame)); err != nil && !errors.Is(err, io.ErrClosedPipe) {
			t.Fatal(err)
		}
		if b, err := io.ReadAll(conn); err != nil || len(b) != 0 {
			t.Errorf("%s: answered with %x, %v", name, b, err)
		}
	}
}

func TestOpLearnsThatTheRequesterIsGone(t *testing.T) {
	t.Parallel()
	c := newCard(t)
	conn := join(t, c.server(nil), "peer")
	client, err := NewClient(conn, c.client())
	if err != nil {
		t.Fatal(err)
	}
	s, err := client.Stream(t.Context(), "wait.lost", nil, "")
	if err != nil {
		t.Fatal(err)
	}
	if _, err := io.ReadFull(s, make([]byte, 1)); err != nil {
		t.Fatal(err)
	}
	if err := client.Close(); err != nil {
		t.Fatal(err)
	}
	<-c.gone
}

func TestServeEndsWithItsContext(t *testing.T) {
	t.Parallel()
	c := newCard(t)
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan error, 1)
	go func() { done <- c.server(nil).Serve(ctx, l) }()
	conn, err := net.Dial("tcp", l.Addr().String())
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	if err := ask(t, conn); err != nil {
		t.Fatal(err)
	}
	cancel()
	if err := <-done; err != nil {
		t.Errorf("Serve: %v", err)
	}
	if _, err := conn.Read(make([]byte, 1)); err == nil {
		t.Error("the connection outlives the server")
	}
	broken, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	if err := broken.Close(); err != nil {
		t.Fatal(err)
	}
	if err := c.server(nil).Serve(t.Context(), broken); !errors.Is(err, net.ErrClosed) {
		t.Errorf("Serve on a broken listener: %v", err)
	}
}

func TestServerConfigIsChecked(t *testing.T) {
	t.Parallel()
	config, binding, err := Identity()
	if err != nil {
		t.Fatal(err)
	}
	good := Config{Door: mailbox.Door{Name: "tls", Binding: binding}, Mailbox: newCard(t).box, Log: silent, TLS: config}
	for name, change := range map[string]func(*Config){
		"no name":    func(c *Config) { c.Door.Name = "" },
		"no mailbox": func(c *Config) { c.Mailbox = nil },
		"no log":     func(c *Config) { c.Log = nil },
		"no binding": func(c *Config) { c.Door.Binding = nil },
	} {
		cfg := good
		change(&cfg)
		if s, err := NewServer(cfg); err == nil || s != nil {
			t.Errorf("%s: accepted", name)
		}
	}
}

func TestPeersAreForgottenWithinBounds(t *testing.T) {
	t.Parallel()
	now := time.Now()
	p := peers{total: 10, each: 10, rate: 1, burst: 2, now: func() time.Time { return now }, known: map[string]*peer{}}
	place := p.admit("stays", io.NopCloser(nil))
	p.spend("in debt", 100)
	for i := range 10 * maxPeers {
		p.spend(string(binary.BigEndian.AppendUint32(nil, uint32(i))), 1)
	}
	if len(p.known) > maxPeers {
		t.Errorf("%d peers are remembered, more than %d", len(p.known), maxPeers)
	}
	if p.known["stays"] == nil || p.known["in debt"] == nil {
		t.Error("a connected or overdrawn peer was forgotten before others")
	}
	p.leave(place)
	if p.open != 0 {
		t.Errorf("%d connections after the last one left", p.open)
	}
}

func TestPeerName(t *testing.T) {
	t.Parallel()
	for address, want := range map[string]string{
		"192.0.2.1:99": "192.0.2.1", "[::ffff:192.0.2.1]:99": "192.0.2.1",
		"[2001:db8:1:2:3:4:5:6]:99": "2001:db8:1:2::/64", "[fe80::1%eth0]:99": "fe80::/64",
	} {
		addr := fakeAddr(address)
		if got := peerName(addr); got != want {
			t.Errorf("%s: %q, want %q", address, got, want)
		}
	}
	if got := peerName(&net.UnixAddr{Net: "unix"}); got != "unix" {
		t.Errorf("unix: %q", got)
	}
}

type fakeAddr string

func (fakeAddr) Network() string  { return "tcp" }
func (a fakeAddr) String() string { return string(a) }
