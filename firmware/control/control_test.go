// SPDX-License-Identifier: Apache-2.0

package control

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"os"
	"path/filepath"
	"reflect"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/davit-dpu/davit/firmware/spec"
)

const testGen = "00112233445566778899aabbccddeeff"

// fakeCard is a Handler whose answers a test chooses.
type fakeCard struct {
	handle func(ctx context.Context, req Request, files *Files) (Reply, error)

	mu   sync.Mutex
	gone int // guarded by mu
}

func (f *fakeCard) Welcome() HelloReply {
	return HelloReply{Build: "test", Started: time.Unix(1700000000, 5).UTC(), Sandbox: []spec.Check{{Name: "seccomp", Result: "passed"}}}
}

func (f *fakeCard) Handle(ctx context.Context, req Request, files *Files) (Reply, error) {
	if f.handle == nil {
		return &Done{}, nil
	}
	return f.handle(ctx, req, files)
}

func (f *fakeCard) Gone() {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.gone++
}

// serve starts a Server with its own socket and returns both.
func serve(t *testing.T, h Handler) (*Server, string) {
	t.Helper()
	path := filepath.Join(t.TempDir(), "vcard.sock")
	f, err := Bind(path)
	if err != nil {
		t.Fatal(err)
	}
	fd, err := dupFD(f)
	if err != nil {
		t.Fatal(err)
	}
	_ = f.Close()
	ln, err := Listen(fd)
	if err != nil {
		t.Fatal(err)
	}
	srv := NewServer(h, slog.New(slog.DiscardHandler))
	ctx, cancel := context.WithCancel(context.Background())
	served := make(chan error, 1)
	go func() { served <- srv.Serve(ctx, ln) }()
	t.Cleanup(func() {
		cancel()
		if err := <-served; err != nil {
			t.Errorf("Serve: %v", err)
		}
	})
	return srv, path
}

func testContext(t *testing.T) context.Context {
	ctx, cancel := context.WithTimeout(context.Background(), 20*time.Second)
	t.Cleanup(cancel)
	return ctx
}

func dial(t *testing.T, path string, on func(Event)) *Client {
	t.Helper()
	c, err := Dial(testContext(t), path, Options{Build: "davitd test", OnEvent: on, Log: slog.New(slog.DiscardHandler)})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = c.Close() })
	return c
}

func tempFile(t *testing.T, content string) *os.File {
	t.Helper()
	path := filepath.Join(t.TempDir(), "file")
	if err := os.WriteFile(path, []byte(content), 0o600); err != nil {
		t.Fatal(err)
	}
	f, err := os.OpenFile(path, os.O_RDWR, 0)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = f.Close() })
	return f
}

func testOrder() spec.VMMOrder {
	return spec.VMMOrder{
		Instance: "web", Generation: testGen, VCPUs: 1, Memory: 64 * spec.MiB, PoolOffset: 2 * spec.MiB,
		Cmdline: "console=ttyS0", Disks: []spec.VMMDisk{{Device: "root", Queues: 1}},
	}
}

func TestHello(t *testing.T) {
	_, path := serve(t, &fakeCard{})
	c := dial(t, path, nil)
	want := HelloReply{Version: VersionCurrent, Build: "test", Started: time.Unix(1700000000, 5).UTC(), Sandbox: []spec.Check{{Name: "seccomp", Result: "passed"}}}
	if got := c.Peer(); !reflect.DeepEqual(got, want) {
		t.Errorf("Peer() = %+v, want %+v", got, want)
	}
	if got := c.PID(); got != os.Getpid() {
		t.Errorf("PID() = %d, want %d: the process that listens", got, os.Getpid())
	}
}

// TestCalls sends every request and compares what arrives, files included.
func TestCalls(t *testing.T) {
	type arrival struct {
		req   Request
		files []string
	}
	arrived := make(chan arrival, 1)
	card := &fakeCard{handle: func(_ context.Context, req Request, files *Files) (Reply, error) {
		var content []string
		for i := range req.files() {
			f := files.Take(i)
			if f == nil {
				return nil, fmt.Errorf("file %d is missing", i)
			}
			b, err := io.ReadAll(f)
			content = append(content, string(b))
			if err := errors.Join(err, f.Close()); err != nil {
				return nil, err
			}
		}
		arrived <- arrival{req, content}
		switch r := req.(type) {
		case *StartVMM:
			o := r.Order
			o.Kernel = &spec.Blob{Offset: o.PoolOffset, Length: 3, SHA256: make([]byte, 32)}
			return &StartVMMReply{Order: o}, nil
		case *ConsoleRead:
			return &ConsoleOutput{Offset: r.From + 1, Data: []byte("login:")}, nil
		}
		return &Done{}, nil
	}}
	_, path := serve(t, card)
	c := dial(t, path, nil)
	ctx := testContext(t)
	attach := AttachBus{Listen: true, WindowBase: 2 * spec.MiB, WindowSize: 64 * spec.MiB, FileOffset: 2 * spec.MiB}
	add := AddDevice{Instance: "web", Name: "root", Serial: "S1", Queues: 2, MemoryOffset: 2 * spec.MiB, MemorySize: 64 * spec.MiB}
	local := AddDevice{Instance: "web", Name: "data", Queues: 1, ReadOnly: true, Listen: true}
	overlay, localOverlay := add, local
	overlay.Base, localOverlay.Base = bytes.Repeat([]byte{7}, 32), bytes.Repeat([]byte{8}, 32)
	tests := []struct {
		name  string
		call  func() error
		want  Request
		files []string
	}{
		{"attach", func() error { return c.AttachBus(ctx, attach, tempFile(t, "bus"), tempFile(t, "win")) }, &attach, []string{"bus", "win"}},
		{"add", func() error { return c.AddDevice(ctx, add, DeviceFiles{Volume: tempFile(t, "vol")}) }, &add, []string{"vol"}},
		{"add local", func() error {
			return c.AddDevice(ctx, local, DeviceFiles{Volume: tempFile(t, "vol"), Listener: tempFile(t, "sock")})
		}, &local, []string{"vol", "sock"}},
		{"add overlay", func() error {
			return c.AddDevice(ctx, overlay, DeviceFiles{Volume: tempFile(t, "store"), Base: tempFile(t, "base")})
		}, &overlay, []string{"store", "base"}},
		{"add local overlay", func() error {
			return c.AddDevice(ctx, localOverlay, DeviceFiles{Volume: tempFile(t, "store"), Base: tempFile(t, "base"), Listener: tempFile(t, "sock")})
		}, &localOverlay, []string{"store", "base", "sock"}},
		{"limit", func() error { return c.LimitDevice(ctx, "web", "root", &spec.Limits{IOPS: 7}) }, &LimitDevice{Instance: "web", Name: "root", Limits: &spec.Limits{IOPS: 7}}, nil},
		{"remove", func() error { return c.RemoveDevice(ctx, "web", "root") }, &RemoveDevice{Instance: "web", Name: "root"}, nil},
		{"start", func() error {
			o, err := c.StartVMM(ctx, testOrder(), tempFile(t, "krn"), tempFile(t, "ird"))
			if err == nil && o.Kernel.Length != 3 {
				t.Errorf("StartVMM: kernel %+v", o.Kernel)
			}
			return err
		}, &StartVMM{Order: testOrder(), Kernel: true, Initrd: true}, []string{"krn", "ird"}},
		{"stop", func() error { return c.StopVMM(ctx, "web", testGen, true) }, &StopVMM{Instance: "web", Generation: testGen, Force: true}, nil},
		{"console read", func() error {
			out, err := c.ConsoleRead(ctx, "web", 7)
			if err == nil && (out.Offset != 8 || string(out.Data) != "login:") {
				t.Errorf("ConsoleRead: %+v", out)
			}
			return err
		}, &ConsoleRead{Instance: "web", From: 7}, nil},
		{"console write", func() error { return c.ConsoleWrite(ctx, "web", []byte("x")) }, &ConsoleWrite{Instance: "web", Data: []byte("x")}, nil},
		{"shutdown", func() error { return c.Shutdown(ctx) }, &Shutdown{}, nil},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			if err := tt.call(); err != nil {
				t.Fatal(err)
			}
			got := <-arrived
			if !reflect.DeepEqual(got.req, tt.want) {
				t.Errorf("vcard got %+v, want %+v", got.req, tt.want)
			}
			if !reflect.DeepEqual(got.files, tt.files) {
				t.Errorf("vcard got files %q, want %q", got.files, tt.files)
			}
		})
	}
}

func TestErrorsArriveAsDecisions(t *testing.T) {
	answers := make(chan error, 1)
	card := &fakeCard{handle: func(context.Context, Request, *Files) (Reply, error) { return nil, <-answers }}
	_, path := serve(t, card)
	c := dial(t, path, nil)
	for _, code := range codes {
		answers <- fmt.Errorf("device \x1b[31m%s: %w", strings.Repeat("ü", 600), code.err)
		err := c.RemoveDevice(testContext(t), "web", "root")
		if !errors.Is(err, code.err) {
			t.Errorf("%s: got %v", code.code, err)
		}
		if strings.ContainsAny(err.Error(), "\x1bü") {
			t.Errorf("%s: the text is not cleaned: %q", code.code, err)
		}
	}
	answers <- errors.New("something else")
	if err := c.RemoveDevice(testContext(t), "web", "root"); !errors.Is(err, ErrInternal) {
		t.Errorf("unknown error: got %v, want ErrInternal", err)
	}
}

func TestInvalidRequestsAreRefusedBeforeSending(t *testing.T) {
	_, path := serve(t, &fakeCard{handle: func(_ context.Context, req Request, _ *Files) (Reply, error) {
		t.Errorf("vcard got %+v", req)
		return &Done{}, nil
	}})
	c := dial(t, path, nil)
	ctx := testContext(t)
	vol := tempFile(t, "")
	bad := map[string]func() error{
		"name":       func() error { return c.RemoveDevice(ctx, "../etc", "root") },
		"generation": func() error { return c.StopVMM(ctx, "web", "xyz", false) },
		"data":       func() error { return c.ConsoleWrite(ctx, "web", make([]byte, MaxData+1)) },
		"queues": func() error {
			return c.AddDevice(ctx, AddDevice{Instance: "a", Name: "b", MemorySize: 2 * spec.MiB}, DeviceFiles{Volume: vol})
		},
		"range": func() error {
			return c.AddDevice(ctx, AddDevice{Instance: "a", Name: "b", Queues: 1, MemorySize: 4096}, DeviceFiles{Volume: vol})
		},
		"listener": func() error {
			return c.AddDevice(ctx, AddDevice{Instance: "a", Name: "b", Queues: 1, Listen: true}, DeviceFiles{Volume: vol})
		},
		"base without a file": func() error {
			return c.AddDevice(ctx, AddDevice{Instance: "a", Name: "b", Queues: 1, MemorySize: 2 * spec.MiB, Base: make([]byte, 32)}, DeviceFiles{Volume: vol})
		},
		"file without a base": func() error {
			return c.AddDevice(ctx, AddDevice{Instance: "a", Name: "b", Queues: 1, MemorySize: 2 * spec.MiB}, DeviceFiles{Volume: vol, Base: vol})
		},
		"short base": func() error {
			return c.AddDevice(ctx, AddDevice{Instance: "a", Name: "b", Queues: 1, MemorySize: 2 * spec.MiB, Base: make([]byte, 31)}, DeviceFiles{Volume: vol, Base: vol})
		},
		"empty base": func() error {
			return c.AddDevice(ctx, AddDevice{Instance: "a", Name: "b", Queues: 1, MemorySize: 2 * spec.MiB, Base: []byte{}}, DeviceFiles{Volume: vol, Base: vol})
		},
		"window": func() error { return c.AttachBus(ctx, AttachBus{WindowSize: 5}, vol, vol) },
		"initrd": func() error { _, err := c.StartVMM(ctx, testOrder(), nil, vol); return err },
	}
	for name, call := range bad {
		if err := call(); !errors.Is(err, ErrInvalid) {
			t.Errorf("%s: got %v, want ErrInvalid", name, err)
		}
	}
	if err := c.Err(); err != nil {
		t.Errorf("the connection ended: %v", err)
	}
}

func TestCancelReachesTheHandler(t *testing.T) {
	entered, left := make(chan struct{}), make(chan error, 1)
	card := &fakeCard{handle: func(ctx context.Context, req Request, _ *Files) (Reply, error) {
		if _, ok := req.(*ConsoleWrite); ok {
			return &Done{}, nil
		}
		close(entered)
		<-ctx.Done()
		left <- ctx.Err()
		return nil, ctx.Err()
	}}
	_, path := serve(t, card)
	c := dial(t, path, nil)
	ctx, cancel := context.WithCancel(testContext(t))
	go func() { <-entered; cancel() }()
	if _, err := c.ConsoleRead(ctx, "web", 0); !errors.Is(err, context.Canceled) {
		t.Errorf("got %v, want context.Canceled", err)
	}
	if err := <-left; !errors.Is(err, context.Canceled) {
		t.Errorf("handler saw %v", err)
	}
	if err := c.ConsoleWrite(testContext(t), "web", nil); err != nil {
		t.Errorf("after a cancelled request: %v", err)
	}
}

func TestPendingEndsWithTheConnection(t *testing.T) {
	for name, end := range map[string]func(*Client, *Server){
		"client closes": func(c *Client, _ *Server) { _ = c.Close() },
		"server ends": func(_ *Client, s *Server) {
			s.mu.Lock()
			cur := s.current
			s.mu.Unlock()
			cur.end(errors.New("test"))
		},
	} {
		t.Run(name, func(t *testing.T) {
			entered := make(chan struct{})
			card := &fakeCard{handle: func(ctx context.Context, _ Request, _ *Files) (Reply, error) {
				close(entered)
				<-ctx.Done()
				return nil, ctx.Err()
			}}
			srv, path := serve(t, card)
			c := dial(t, path, nil)
			go func() { <-entered; end(c, srv) }()
			if _, err := c.ConsoleRead(testContext(t), "web", 0); !errors.Is(err, ErrClosed) {
				t.Errorf("pending request: got %v, want ErrClosed", err)
			}
			<-c.Done()
			if err := c.RemoveDevice(testContext(t), "web", "root"); !errors.Is(err, ErrClosed) {
				t.Errorf("later request: got %v, want ErrClosed", err)
			}
		})
	}
}

func TestOneControllerAtATime(t *testing.T) {
	card := &fakeCard{}
	srv, path := serve(t, card)
	first := dial(t, path, nil)
	if _, err := Dial(testContext(t), path, Options{}); !errors.Is(err, ErrBusy) {
		t.Fatalf("second controller: got %v, want ErrBusy", err)
	}
	if err := first.RemoveDevice(testContext(t), "web", "root"); err != nil {
		t.Errorf("first controller afterwards: %v", err)
	}
	_ = first.Close()
	dial(t, path, nil)
	// A controller that is connected but does not answer is replaced.
	srv.mu.Lock()
	cur := srv.current
	srv.mu.Unlock()
	cur.end(errors.New("test"))
	<-cur.gone
	mute := rawClient(t, path)
	helloRaw(t, mute)
	dial(t, path, nil)
	card.mu.Lock()
	defer card.mu.Unlock()
	if card.gone != 3 {
		t.Errorf("Gone was called %d times, want 3", card.gone)
	}
}

// TestHangingRequestKeepsNobodyOut: I/O that does not end when it is told to
// belongs to the controller that has gone.
func TestHangingRequestKeepsNobodyOut(t *testing.T) {
	entered, hang := make(chan struct{}), make(chan struct{})
	card := &fakeCard{handle: func(_ context.Context, req Request, _ *Files) (Reply, error) {
		if _, ok := req.(*RemoveDevice); ok {
			close(entered)
			<-hang
		}
		return &Done{}, nil
	}}
	_, path := serve(t, card)
	t.Cleanup(func() { close(hang) }) // before the server is waited for
	first := dial(t, path, nil)
	gone := make(chan error, 1)
	go func() { gone <- first.RemoveDevice(testContext(t), "web", "root") }()
	<-entered
	_ = first.Close()
	if err := <-gone; !errors.Is(err, ErrClosed) {
		t.Errorf("got %v, want ErrClosed", err)
	}
	if err := dial(t, path, nil).ConsoleWrite(testContext(t), "web", nil); err != nil {
		t.Errorf("the next controller: %v", err)
	}
}
