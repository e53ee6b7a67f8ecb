// SPDX-License-Identifier: Apache-2.0

package nbd

import (
	"bytes"
	"context"
	"encoding/binary"
	"errors"
	"io"
	"net"
	"slices"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/davit-dpu/davit/firmware/disk"
)

// script is a server that says what it is told to, whatever it hears.
type script struct {
	io.Reader
	heard bytes.Buffer
}

func (s *script) Write(b []byte) (int, error) { return s.heard.Write(b) }

func hello(flags uint16) []byte {
	b := binary.BigEndian.AppendUint64(nil, magicServer)
	b = binary.BigEndian.AppendUint64(b, magicOption)
	return binary.BigEndian.AppendUint16(b, flags)
}

func join(parts ...[]byte) []byte { return slices.Concat(parts...) }

func TestNegotiate(t *testing.T) {
	t.Parallel()
	good := offer(testSize, allFlags, 1, 1<<20)
	export := func(size uint64, flags uint16) []byte {
		b := binary.BigEndian.AppendUint64([]byte{0, infoExport}, size)
		return join(hello(3), optionAnswer(replyInfo, binary.BigEndian.AppendUint16(b, flags)), optionAnswer(replyAck, nil))
	}
	blocks := func(b ...byte) []byte {
		return join(hello(3), optionAnswer(replyInfo, append([]byte{0, infoBlockSize}, b...)))
	}
	for _, tt := range []struct {
		name  string
		says  []byte
		want  Export
		error string
	}{
		{"good", join(hello(3), good), Export{testSize, allFlags, 1, 1 << 20}, ""},
		{"unknown flags and information", join(hello(0xffff), optionAnswer(replyInfo, []byte{0, 2, 'x'}), offer(testSize, 0xffff, 512, 1<<31)), Export{testSize, knownFlags, 512, maxPayload}, ""},
		{"no block sizes", export(testSize, hasFlags), Export{testSize, hasFlags, defaultMinBlock, maxPayload}, ""},
		{"nothing", nil, Export{}, "EOF"},
		{"ssh", []byte("SSH-2.0-OpenSSH_9.2p1 Debian"), Export{}, "does not speak NBD"},
		{"old handshake", join(hello(3)[:8], make([]byte, 10)), Export{}, "old handshake"},
		{"not fixed", hello(2), Export{}, "fixed newstyle"},
		{"cut", join(hello(3), good[:30]), Export{}, "EOF"},
		{"no size", join(hello(3), optionAnswer(replyAck, nil)), Export{}, "does not say how large"},
		{"size 0", export(0, hasFlags), Export{}, "multiple of 512"},
		{"odd size", export(1000, hasFlags), Export{}, "multiple of 512"},
		{"huge", export(1<<63, hasFlags), Export{}, "multiple of 512"},
		{"no flags", export(testSize, sendFUA), Export{}, "say that they are none"},
		{"large blocks", blocks(0, 0, 16, 0, 0, 0, 16, 0, 1, 0, 0, 0), Export{}, "blocks of at least 4096"},
		{"odd blocks", blocks(0, 0, 0, 3, 0, 0, 16, 0, 1, 0, 0, 0), Export{}, "blocks of at least 3"},
		{"tiny requests", blocks(0, 0, 0, 1, 0, 0, 16, 0, 0, 0, 1, 0), Export{}, "at most 256"},
		{"short block sizes", blocks(0, 0, 0, 1), Export{}, "of 4 bytes"},
		{"short information", join(hello(3), optionAnswer(replyInfo, []byte{0})), Export{}, "information of 1"},
		{"unknown export", join(hello(3), optionAnswer(replyError|6, []byte("no \x1b[31mdisk"))), Export{}, `no such export: "no \x1b[31mdisk"`},
		{"TLS", join(hello(3), optionAnswer(replyError|5, nil)), Export{}, "TLS is required"},
		{"unknown refusal", join(hello(3), optionAnswer(replyError|77, nil)), Export{}, "error 77"},
		{"unknown reply", join(hello(3), optionAnswer(2, nil)), Export{}, "option reply of type 2"},
		{"endless", join(hello(3), bytes.Repeat(optionAnswer(replyInfo, []byte{0, 9}), maxReplies+1)), Export{}, "more than 64 replies"},
		{"long reply", join(hello(3), optionAnswer(replyInfo, make([]byte, maxOptionReply+1))), Export{}, "at most 16384"},
		{"other option", join(hello(3), func() []byte { b := optionAnswer(replyAck, nil); b[11] = 1; return b }()), Export{}, "was not asked for"},
	} {
		got, err := negotiate(&script{Reader: bytes.NewReader(tt.says)}, "disk")
		if got != tt.want || (err == nil) != (tt.error == "") || err != nil && !strings.Contains(err.Error(), tt.error) {
			t.Errorf("%s: got %v, %v, want %q", tt.name, got, err, tt.error)
		}
	}
	s := &script{Reader: bytes.NewReader(join(hello(3), good))}
	if _, err := negotiate(s, "disk"); err != nil {
		t.Fatal(err)
	}
	if want := "\x00\x00\x00\x03IHAVEOPT\x00\x00\x00\x07\x00\x00\x00\x0c\x00\x00\x00\x04disk\x00\x01\x00\x03"; s.heard.String() != want {
		t.Errorf("client says %q, want %q", s.heard.String(), want)
	}
}

// A server that breaks the protocol is dropped, with the reason, and the
// requests are served by the next connection.
func TestServerBreaksProtocol(t *testing.T) {
	t.Parallel()
	for _, tt := range []struct {
		name string
		says []byte // for the first request, which has cookie 1 and reads 512 bytes
		want string
	}{
		{"rubbish", bytes.Repeat([]byte("no"), 8), "reply begins with"},
		{"structured reply", join([]byte{0x66, 0x8e, 0x33, 0xef}, make([]byte, 16)), "reply begins with"},
		{"cookie 0", answer(0, 0), "request 0"},
		{"cookie of no request", answer(0, 2), "request 2, which was not sent"},
		{"cut header", answer(0, 1)[:10], "EOF"},
		{"cut data", join(answer(0, 1), make([]byte, 500)), "EOF"},
		{"second reply", join(answer(0, 1), make([]byte, 512), answer(0, 1)), ""},
	} {
		t.Run(tt.name, func(t *testing.T) {
			t.Parallel()
			s := newServer(t, allFlags)
			want := bytes.Repeat([]byte{7}, 512)
			if err := s.volume.WriteAt([][]byte{want}, 0); err != nil {
				t.Fatal(err)
			}
			first := true
			log, lines := newLog()
			v := s.open(Config{Log: log, Dial: func(ctx context.Context) (net.Conn, error) {
				if !first {
					return s.dial(ctx)
				}
				first = false
				here, there := net.Pipe()
				go func() {
					defer there.Close()
					if s.shake(there) == nil {
						_, _ = io.ReadFull(there, make([]byte, requestLen))
						_, _ = there.Write(tt.says)
					}
				}()
				return here, nil
			}})
			got := make([]byte, 512)
			if err := v.ReadAt([][]byte{got[:100], got[100:]}, 0); err != nil {
				t.Fatal(err)
			}
			if tt.want == "" {
				return // the request was done before the server went wrong
			}
			if !bytes.Equal(got, want) {
				t.Error("read something else")
			}
			lines.mu.Lock()
			defer lines.mu.Unlock()
			if !strings.Contains(lines.text.String(), tt.want) {
				t.Errorf("log does not say %q:\n%s", tt.want, lines.text.String())
			}
		})
	}
}

// An export that is another one when the server is back is not touched.
func TestExportChanges(t *testing.T) {
	t.Parallel()
	s := newServer(t, allFlags)
	other := newServer(t, allFlags&^sendFUA)
	other.reply = func(uint16, uint16) (uint32, error) {
		t.Error("the other server was asked for something")
		return 0, nil
	}
	log, lines := newLog()
	use := make(chan *server, 3)
	use <- s
	use <- other
	v := s.open(Config{Log: log, Dial: func(ctx context.Context) (net.Conn, error) {
		select {
		case next := <-use:
			return next.dial(ctx)
		case <-ctx.Done():
			return nil, ctx.Err()
		}
	}})
	s.drop(false)
	lines.wait(t, "it offered")
	use <- s
	if err := v.WriteAt([][]byte{{1}}, 0); err != nil {
		t.Error(err)
	}
}

// A server that accepts and then says nothing is given up, by Open too.
func TestHandshakeLimit(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		var peer net.Conn
		start := time.Now()
		v, err := Open(t.Context(), Config{Dial: func(context.Context) (net.Conn, error) {
			var here net.Conn
			here, peer = net.Pipe()
			return here, nil
		}})
		if !errors.Is(err, context.DeadlineExceeded) || v != nil || time.Since(start) != handshakeLimit {
			t.Errorf("after %v: got %v", time.Since(start), err)
		}
		if _, err := peer.Read(make([]byte, 1)); err != io.EOF {
			t.Errorf("connection was left open: %v", err)
		}
	})
}

// A server that can not be reached, or does no good, is not asked without a pause.
func TestPauses(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		var at []time.Duration
		start := time.Now()
		memory, err := disk.NewMemory(testSize)
		if err != nil {
			t.Fatal(err)
		}
		s := &server{t: t, flags: allFlags, block: 1, most: 1 << 20, volume: memory}
		v := s.open(Config{Dial: func(context.Context) (net.Conn, error) {
			at = append(at, time.Since(start))
			if len(at)%2 == 0 {
				return nil, errSilent
			}
			here, there := net.Pipe()
			go func() {
				_ = s.shake(there)
				_ = there.Close()
			}()
			return here, nil
		}})
		time.Sleep(time.Minute) // of the bubble
		if err := v.Close(); err != nil {
			t.Error(err)
		}
		var want []time.Duration
		for sum, pause := time.Duration(0), minPause; sum < time.Minute; pause = min(2*pause, maxPause) {
			want = append(want, sum)
			sum += pause
		}
		if !slices.Equal(at, want) {
			t.Errorf("connected at %v, want %v", at, want)
		}
	})
}

func FuzzNegotiate(f *testing.F) {
	f.Add(join(hello(3), offer(testSize, allFlags, 1, 1<<20)))
	f.Add(join(hello(1), optionAnswer(replyError|6, []byte("none"))))
	f.Fuzz(func(t *testing.T, says []byte) {
		e, err := negotiate(&script{Reader: bytes.NewReader(says)}, "disk")
		if (err == nil) == (e == Export{}) {
			t.Fatalf("got %v, %v", e, err)
		}
		if err == nil && (e.Size <= 0 || e.Size%512 != 0 || e.minBlock == 0 || 512%e.minBlock != 0 || e.maxPayload < 512 || e.maxPayload > maxPayload || e.maxPayload%512 != 0) {
			t.Errorf("got %v", e)
		}
	})
}

// feed is a connection whose server says what it is told to and takes everything.
type feed struct {
	net.Conn
	io.Reader
}

func (f feed) Read(b []byte) (int, error)  { return f.Reader.Read(b) }
func (f feed) Write(b []byte) (int, error) { return len(b), nil }
func (f feed) Close() error                { return nil }

// Whatever a server replies: requests end at most once, only those that were sent, and
// nothing but the buffers of reads that succeed is written.
func FuzzReplies(f *testing.F) {
	f.Add(join(answer(0, 1), make([]byte, 600), answer(5, 2), answer(0, 4)))
	f.Add(join(answer(0, 3), answer(108, 1)))
	f.Fuzz(func(t *testing.T, says []byte) {
		v := &Volume{volatile: true, pending: map[uint64]*request{}}
		c := &conn{Conn: feed{Reader: bytes.NewReader(says)}}
		room := bytes.Repeat([]byte{0xee}, 1000)
		var all []*request
		for i, cmd := range []uint16{cmdRead, cmdWrite, cmdRead, cmdFlush} {
			r := &request{cmd: cmd, done: make(chan error, 1), bufs: [][]byte{room[i*200 : i*200+100], room[i*200+100 : i*200+150]}}
			if cmd == cmdFlush {
				r.bufs = nil
			}
			if _, err := v.register(r, 0, 0, 150); err != nil {
				t.Fatal(err)
			}
			if i != 2 {
				c.send(r)
			}
			all = append(all, r)
		}
		if _, err := v.receive(c); err == nil {
			t.Fatal("the connection ended without a reason")
		}
		for i, r := range all {
			ended := len(r.done) == 1
			if ended == (v.pending[r.cookie] == r) {
				t.Errorf("request %d is ended and under way, or neither", r.cookie)
			}
			if ended && r.phase.Load() != sent {
				t.Errorf("request %d ended without being sent", r.cookie)
			}
			end := i*200 + 150
			if r.cmd != cmdRead || r.phase.Load() != sent {
				end = i * 200
			}
			if part := room[end : i*200+200]; len(bytes.Trim(part, "\xee")) != 0 {
				t.Errorf("request %d: bytes that are not its own were written", r.cookie)
			}
		}
	})
}
