// SPDX-License-Identifier: Apache-2.0

package nbd

import (
	"bytes"
	"context"
	"errors"
	"io"
	"math/rand/v2"
	"net"
	"strings"
	"sync"
	"sync/atomic"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/davit-dpu/davit/firmware/disk"
)

// plainConn hides that a connection is a syscall.Conn.
type plainConn struct{ net.Conn }

// vector cuts b into random buffers, some of them empty.
func vector(rng *rand.Rand, b []byte) [][]byte {
	var bufs [][]byte
	for len(b) > 0 {
		n := rng.IntN(min(len(b), 3000) + 1)
		bufs = append(bufs, b[:n:n])
		b = b[n:]
	}
	return bufs
}

// exercise does random operations on a part of a volume, and on plain bytes.
func exercise(t *testing.T, v *Volume, seed uint64, start, size, steps int) {
	t.Helper()
	rng := rand.New(rand.NewPCG(seed, 3))
	model := make([]byte, size)
	for step := range steps {
		n := rng.IntN(min(size, 200000))
		rel := rng.IntN(size - n)
		off := int64(start + rel)
		var err error
		switch rng.IntN(6) {
		case 0, 1, 2:
			for i := range n {
				model[rel+i] = byte(rng.Uint32())
			}
			err = v.WriteAt(vector(rng, model[rel:rel+n]), off)
		case 3:
			clear(model[rel : rel+n])
			err = v.WriteZeroes(off, int64(n), rng.IntN(2) == 0)
		case 4:
			if err = v.Discard(off, int64(n)); errors.Is(err, disk.ErrNotSupported) {
				err = nil
			} else {
				clear(model[rel : rel+n]) // what the server of these tests does
			}
		case 5:
			err = v.Flush()
		}
		if err != nil {
			t.Errorf("step %d: %v", step, err)
			return
		}
		got := make([]byte, n)
		if err := v.ReadAt(vector(rng, got), off); err != nil || !bytes.Equal(got, model[rel:rel+n]) {
			t.Errorf("step %d: read of %d at %d differs, %v", step, n, off, err)
			return
		}
	}
}

// Random operations on a volume, several at a time, and on plain bytes give the same.
func TestModel(t *testing.T) {
	t.Parallel()
	for _, tt := range []struct {
		name  string
		flags uint16
		plain bool
	}{
		{"all flags", allFlags, false},
		{"no system calls", allFlags, true},
		{"nothing but reads and writes", hasFlags, false},
	} {
		t.Run(tt.name, func(t *testing.T) {
			t.Parallel()
			s := newServer(t, tt.flags)
			dial := s.dial
			if tt.plain {
				dial = func(ctx context.Context) (net.Conn, error) {
					c, err := s.dial(ctx)
					return plainConn{c}, err
				}
			}
			v := s.open(Config{Dial: dial})
			const workers = 4
			var wg sync.WaitGroup
			for w := range workers {
				wg.Go(func() { exercise(t, v, uint64(w), w*testSize/workers, testSize/workers, 80) })
			}
			wg.Wait()
		})
	}
}

// Whatever a server does to its connections, requests survive it.
func TestConnectionsBreak(t *testing.T) {
	t.Parallel()
	s := newServer(t, allFlags)
	var count atomic.Int64
	s.reply = func(uint16, uint16) (uint32, error) {
		switch n := count.Add(1); {
		case n%41 == 0:
			return uint32(unix.ESHUTDOWN), nil
		case n%23 == 0:
			return 0, io.ErrClosedPipe // not executed, or executed by one beside it; no reply
		}
		return 0, nil
	}
	v := s.open(Config{})
	const workers = 4
	var wg sync.WaitGroup
	for w := range workers {
		wg.Go(func() { exercise(t, v, uint64(w), w*testSize/workers, testSize/workers, 60) })
	}
	wg.Wait()
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.dials < 5 {
		t.Errorf("%d connections: nothing was tested", s.dials)
	}
}

// After a lost connection a flush succeeds exactly when nothing can be lost.
func TestFlushAfterLoss(t *testing.T) {
	t.Parallel()
	write := func(v *Volume) error { return v.WriteAt([][]byte{make([]byte, 512)}, 0) }
	for _, tt := range []struct {
		name      string
		flags     uint16
		writeBack bool
		before    []func(*Volume) error
		want      bool // flush succeeds
	}{
		{"durable writes", allFlags, false, []func(*Volume) error{write}, true},
		{"no cache", hasFlags, false, []func(*Volume) error{write}, true},
		{"no FUA", hasFlags | sendFlush, false, []func(*Volume) error{write}, false},
		{"write back", allFlags, true, []func(*Volume) error{write}, false},
		{"zeroes", allFlags, true, []func(*Volume) error{func(v *Volume) error { return v.WriteZeroes(0, 512, true) }}, false},
		{"discard", allFlags, true, []func(*Volume) error{func(v *Volume) error { return v.Discard(0, 512) }}, false},
		{"flushed", allFlags, true, []func(*Volume) error{write, (*Volume).Flush}, true},
		{"written after the flush", allFlags, true, []func(*Volume) error{write, (*Volume).Flush, write}, false},
		{"only read", allFlags, true, []func(*Volume) error{func(v *Volume) error { return v.ReadAt([][]byte{make([]byte, 512)}, 0) }}, true},
	} {
		t.Run(tt.name, func(t *testing.T) {
			t.Parallel()
			s := newServer(t, tt.flags)
			log, lines := newLog()
			v := s.open(Config{WriteBack: tt.writeBack, Log: log})
			for _, do := range tt.before {
				if err := do(v); err != nil {
					t.Fatal(err)
				}
			}
			s.drop(false)
			lines.wait(t, "connected again")
			for range 2 { // for ever
				if err := v.Flush(); (err == nil) != tt.want {
					t.Errorf("got %v", err)
				}
				if err := write(v); err != nil {
					t.Errorf("write: %v", err)
				}
			}
		})
	}
}

// A flush that is under way when unflushed writes are lost fails too.
func TestFlushUnderWayFails(t *testing.T) {
	t.Parallel()
	s := newServer(t, allFlags)
	arrived, never := make(chan struct{}), make(chan struct{})
	defer close(never)
	s.reply = func(cmd, _ uint16) (uint32, error) {
		if cmd == cmdFlush {
			arrived <- struct{}{}
			<-never
		}
		return 0, nil
	}
	v := s.open(Config{WriteBack: true})
	if err := v.WriteAt([][]byte{{1}}, 0); err != nil {
		t.Fatal(err)
	}
	result := make(chan error)
	go func() { result <- v.Flush() }()
	<-arrived
	s.drop(false)
	if err := <-result; err == nil {
		t.Error("flush succeeded on the connection after")
	}
}

// Close ends what waits for a server, wherever that is.
func TestCloseEndsRequests(t *testing.T) {
	t.Parallel()
	for _, gone := range []bool{false, true} {
		s := newServer(t, allFlags)
		const requests = 10
		arrived, never := make(chan struct{}, requests), make(chan struct{})
		s.reply = func(uint16, uint16) (uint32, error) {
			arrived <- struct{}{}
			<-never
			return 0, nil
		}
		log, lines := newLog()
		v := s.open(Config{Log: log})
		results := make(chan error, requests)
		for i := range requests {
			go func() {
				if i%2 == 0 {
					results <- v.ReadAt([][]byte{make([]byte, 512)}, 0)
				} else {
					results <- v.WriteAt([][]byte{make([]byte, 512)}, 0)
				}
			}()
		}
		for range requests {
			<-arrived
		}
		if gone {
			s.drop(true)
			lines.wait(t, errSilent.Error())
		}
		if err := v.Close(); err != nil {
			t.Error(err)
		}
		for range requests {
			if err := <-results; !errors.Is(err, disk.ErrClosed) {
				t.Errorf("gone %v: got %v", gone, err)
			}
		}
		for what, err := range map[string]error{
			"read": v.ReadAt(nil, 0), "write": v.WriteAt([][]byte{{1}}, 0), "flush": v.Flush(), "close": v.Close(),
			"discard": v.Discard(0, 512), "zero": v.WriteZeroes(0, 512, true),
		} {
			if !errors.Is(err, disk.ErrClosed) {
				t.Errorf("%s after close: got %v", what, err)
			}
		}
		close(never)
	}
}

// The server's errors are those of its requests, and nothing else's; a failed
// flush is never forgotten.
func TestServerErrors(t *testing.T) {
	t.Parallel()
	s := newServer(t, allFlags)
	var code atomic.Uint32
	s.reply = func(uint16, uint16) (uint32, error) { return code.Load(), nil }
	v := s.open(Config{})
	for _, tt := range []struct {
		code uint32
		want error
	}{
		{1, unix.EPERM}, {5, unix.EIO}, {12, unix.ENOMEM}, {22, unix.EINVAL}, {28, unix.ENOSPC}, {75, unix.EOVERFLOW}, {95, disk.ErrNotSupported},
	} {
		code.Store(tt.code)
		for what, err := range map[string]error{
			"read": v.ReadAt([][]byte{make([]byte, 512)}, 0), "write": v.WriteAt([][]byte{make([]byte, 512)}, 0),
			"discard": v.Discard(0, 512), "zero": v.WriteZeroes(0, 512, true),
		} {
			if !errors.Is(err, tt.want) {
				t.Errorf("%s with code %d: got %v", what, tt.code, err)
			}
		}
	}
	code.Store(12345)
	if err := v.ReadAt([][]byte{make([]byte, 512)}, 0); err == nil || !strings.Contains(err.Error(), "12345") {
		t.Errorf("unknown code: got %v", err)
	}
	if err := v.Flush(); err == nil {
		t.Error("flush succeeded")
	}
	code.Store(0)
	if err := v.Flush(); err == nil {
		t.Error("flush succeeded after one failed")
	}
	if err := v.ReadAt([][]byte{make([]byte, 512)}, 0); err != nil {
		t.Error(err)
	}
}

func TestRefusesRanges(t *testing.T) {
	t.Parallel()
	s := newServer(t, allFlags)
	s.block = 512
	v := s.open(Config{})
	for _, off := range []int64{-512, testSize - 512, testSize, 1<<63 - 1} {
		for what, err := range map[string]error{
			"read": v.ReadAt([][]byte{make([]byte, 1024)}, off), "write": v.WriteAt([][]byte{make([]byte, 1024)}, off),
			"discard": v.Discard(off, 1024), "zero": v.WriteZeroes(off, 1024, true),
		} {
			if !errors.Is(err, disk.ErrRange) {
				t.Errorf("%s at %d: got %v", what, off, err)
			}
		}
	}
	if err := v.WriteZeroes(0, -512, true); !errors.Is(err, disk.ErrRange) {
		t.Errorf("negative length: got %v", err)
	}
	if err := v.ReadAt([][]byte{make([]byte, 100)}, 512); err == nil {
		t.Error("a part of a block was read")
	}
	if err := v.ReadAt([][]byte{make([]byte, 512)}, 100); err == nil {
		t.Error("a block was read between blocks")
	}
	ro := s.open(Config{ReadOnly: true})
	for what, err := range map[string]error{
		"write": ro.WriteAt([][]byte{{1}}, 0), "discard": ro.Discard(0, 512), "zero": ro.WriteZeroes(0, 512, false),
	} {
		if !errors.Is(err, disk.ErrReadOnly) {
			t.Errorf("%s: got %v", what, err)
		}
	}
	if err := ro.Flush(); err != nil || !ro.Info().ReadOnly || ro.Info().Size != testSize {
		t.Errorf("got %+v, %v", ro.Info(), err)
	}
	if w, err := Open(t.Context(), Config{Dial: newServer(t, allFlags|readOnly).dial}); !errors.Is(err, disk.ErrReadOnly) || w != nil {
		t.Errorf("writable volume of a read-only export: got %v", err)
	}
}

// A request whose buffers are gone fails, and nothing else does.
func TestBadBuffers(t *testing.T) {
	t.Parallel()
	s := newServer(t, allFlags)
	v := s.open(Config{})
	gone, err := unix.Mmap(-1, 0, 4096, unix.PROT_NONE, unix.MAP_PRIVATE|unix.MAP_ANONYMOUS)
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = unix.Munmap(gone) }()
	var wg sync.WaitGroup
	wg.Go(func() { exercise(t, v, 1, 8192, testSize-8192, 40) })
	for range 5 {
		if err := v.WriteAt([][]byte{make([]byte, 512), gone}, 0); !errors.Is(err, unix.EFAULT) {
			t.Errorf("write: got %v", err)
		}
		if err := v.ReadAt([][]byte{make([]byte, 512), gone}, 0); !errors.Is(err, unix.EFAULT) {
			t.Errorf("read: got %v", err)
		}
	}
	wg.Wait()
}
