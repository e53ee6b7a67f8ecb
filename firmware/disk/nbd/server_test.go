// SPDX-License-Identifier: Apache-2.0

package nbd

import (
	"context"
	"encoding/binary"
	"errors"
	"io"
	"log/slog"
	"net"
	"path/filepath"
	"strings"
	"sync"
	"testing"

	"github.com/davit-dpu/davit/firmware/disk"
)

const testSize = 1 << 20

const allFlags = hasFlags | sendFlush | sendFUA | sendTrim | sendWriteZeroes

// server is an NBD server in this process. Its fields are constant while it serves.
type server struct {
	t      *testing.T
	flags  uint16
	block  uint32 // smallest block
	most   uint32 // largest payload
	volume *disk.Memory
	// reply, if not nil, sees each request before it is executed, and may end the connection by an
	// error, or have the request replied with a code other than 0, not executed.
	reply func(cmd, flags uint16) (code uint32, err error)

	listener net.Listener
	mu       sync.Mutex
	conns    map[net.Conn]bool // guarded by mu
	silent   bool              // accepts nobody; guarded by mu
	dials    int               // guarded by mu
}

func newServer(t *testing.T, flags uint16) *server {
	t.Helper()
	v, err := disk.NewMemory(testSize)
	if err != nil {
		t.Fatal(err)
	}
	s := &server{t: t, flags: flags, block: 1, most: 64 << 10, volume: v, conns: map[net.Conn]bool{}}
	s.listener, err = net.Listen("unix", filepath.Join(t.TempDir(), "nbd"))
	if err != nil {
		t.Fatal(err)
	}
	go func() {
		for {
			c, err := s.listener.Accept()
			if err != nil {
				return
			}
			go s.handle(c)
		}
	}()
	t.Cleanup(func() { _ = s.listener.Close() })
	return s
}

var errSilent = errors.New("nobody listens")

func (s *server) dial(ctx context.Context) (net.Conn, error) {
	s.mu.Lock()
	s.dials++
	silent := s.silent
	s.mu.Unlock()
	if silent {
		return nil, errSilent
	}
	return (&net.Dialer{}).DialContext(ctx, "unix", s.listener.Addr().String())
}

// drop ends all connections. With silent, no new one is accepted until the next drop.
func (s *server) drop(silent bool) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.silent = silent
	for c := range s.conns {
		_ = c.Close()
	}
}

func (s *server) handle(c net.Conn) {
	s.mu.Lock()
	s.conns[c] = true
	s.mu.Unlock()
	defer func() {
		s.mu.Lock()
		delete(s.conns, c)
		s.mu.Unlock()
		_ = c.Close()
	}()
	if s.shake(c) != nil {
		return
	}
	var send sync.Mutex
	for s.serveOne(c, &send) == nil {
	}
}

// shake is the server's side of the handshake.
func (s *server) shake(c net.Conn) error {
	hello := binary.BigEndian.AppendUint64(nil, magicServer)
	hello = binary.BigEndian.AppendUint64(hello, magicOption)
	hello = binary.BigEndian.AppendUint16(hello, fixedNewstyle|noZeroes)
	if _, err := c.Write(hello); err != nil {
		return err
	}
	head := make([]byte, 4+8+4+4)
	if _, err := io.ReadFull(c, head); err != nil {
		return err
	}
	if _, err := io.CopyN(io.Discard, c, int64(binary.BigEndian.Uint32(head[16:]))); err != nil {
		return err
	}
	_, err := c.Write(offer(s.volume.Info().Size, s.flags, s.block, s.most))
	return err
}

// offer is the replies to NBD_OPT_GO.
func offer(size int64, flags uint16, block, most uint32) []byte {
	export := binary.BigEndian.AppendUint64([]byte{0, infoExport}, uint64(size))
	export = binary.BigEndian.AppendUint16(export, flags)
	blocks := binary.BigEndian.AppendUint32([]byte{0, infoBlockSize}, block)
	blocks = binary.BigEndian.AppendUint32(blocks, 4096)
	blocks = binary.BigEndian.AppendUint32(blocks, most)
	out := optionAnswer(replyInfo, export)
	out = append(out, optionAnswer(replyInfo, blocks)...)
	return append(out, optionAnswer(replyAck, nil)...)
}

func optionAnswer(kind uint32, data []byte) []byte {
	b := binary.BigEndian.AppendUint64(nil, magicOptionReply)
	b = binary.BigEndian.AppendUint32(b, optGo)
	b = binary.BigEndian.AppendUint32(b, kind)
	b = binary.BigEndian.AppendUint32(b, uint32(len(data)))
	return append(b, data...)
}

// serveOne takes one request and executes it beside those that follow.
func (s *server) serveOne(c net.Conn, send *sync.Mutex) error {
	var head [requestLen]byte
	if _, err := io.ReadFull(c, head[:]); err != nil {
		return err
	}
	flags, cmd := binary.BigEndian.Uint16(head[4:]), binary.BigEndian.Uint16(head[6:])
	off, n := int64(binary.BigEndian.Uint64(head[16:])), binary.BigEndian.Uint32(head[24:])
	if cmd == cmdDisconnect {
		return io.EOF
	}
	if (cmd == cmdRead || cmd == cmdWrite) && n > s.most {
		s.t.Errorf("request for %d bytes", n)
		return io.EOF
	}
	data := make([]byte, n)
	if cmd == cmdWrite {
		if _, err := io.ReadFull(c, data); err != nil {
			return err
		}
	}
	if flags&flagFUA != 0 && s.flags&sendFUA == 0 || cmd == cmdFlush && s.flags&sendFlush == 0 || cmd == cmdTrim && s.flags&sendTrim == 0 {
		s.t.Errorf("command %d with flags %#x, offered %#x", cmd, flags, s.flags)
	}
	go func() {
		var code uint32
		var err error
		if s.reply != nil {
			code, err = s.reply(cmd, flags)
		}
		if err == nil && code == 0 {
			err = s.execute(cmd, off, int64(n), data)
		}
		if err != nil {
			_ = c.Close()
			return
		}
		out := answer(code, binary.BigEndian.Uint64(head[8:]))
		if cmd == cmdRead && code == 0 {
			out = append(out, data...)
		}
		send.Lock()
		defer send.Unlock()
		_, _ = c.Write(out)
	}()
	return nil
}

func (s *server) execute(cmd uint16, off, n int64, data []byte) error {
	switch cmd {
	case cmdRead:
		return s.volume.ReadAt([][]byte{data}, off)
	case cmdWrite:
		return s.volume.WriteAt([][]byte{data}, off)
	case cmdTrim, cmdWriteZeroes:
		return s.volume.WriteZeroes(off, n, true)
	case cmdFlush:
		return nil
	}
	return errors.New("unknown command")
}

// answer is the header of a simple reply.
func answer(code uint32, cookie uint64) []byte {
	b := binary.BigEndian.AppendUint32(nil, magicReply)
	b = binary.BigEndian.AppendUint32(b, code)
	return binary.BigEndian.AppendUint64(b, cookie)
}

func (s *server) open(cfg Config) *Volume {
	s.t.Helper()
	if cfg.Dial == nil {
		cfg.Dial = s.dial
	}
	v, err := Open(s.t.Context(), cfg)
	if err != nil {
		s.t.Fatal(err)
	}
	s.t.Cleanup(func() { _ = v.Close() })
	return v
}

// lines collects a volume's log and tells of each line.
type lines struct {
	mu   sync.Mutex
	text strings.Builder // guarded by mu
	news chan string
}

func newLog() (*slog.Logger, *lines) {
	l := &lines{news: make(chan string, 1000)}
	return slog.New(slog.NewTextHandler(l, nil)), l
}

func (l *lines) Write(b []byte) (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	select {
	case l.news <- string(b):
	default: // nobody reads any more
	}
	return l.text.Write(b)
}

// wait returns when the log has a line with text.
func (l *lines) wait(t *testing.T, text string) {
	t.Helper()
	for {
		select {
		case line := <-l.news:
			if strings.Contains(line, text) {
				return
			}
		case <-t.Context().Done():
			t.Fatalf("no line with %q", text)
		}
	}
}
