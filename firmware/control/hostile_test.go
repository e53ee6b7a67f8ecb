// SPDX-License-Identifier: Apache-2.0

package control

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"os"
	"path/filepath"
	"runtime/debug"
	"strings"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/davit-dpu/davit/firmware/spec"
)

func dupFD(f *os.File) (uintptr, error) {
	raw, err := f.SyscallConn()
	if err != nil {
		return 0, err
	}
	var fd int
	var derr error
	if err := raw.Control(func(old uintptr) { fd, derr = unix.FcntlInt(old, unix.F_DUPFD_CLOEXEC, 0) }); err != nil {
		return 0, err
	}
	return uintptr(fd), derr
}

// openFDs counts this process' descriptors. Tests that use it must not run in
// parallel with others.
func openFDs(t *testing.T) int {
	t.Helper()
	entries, err := os.ReadDir("/proc/self/fd")
	if err != nil {
		t.Skipf("cannot count descriptors: %v", err)
	}
	return len(entries)
}

// waitFDs waits until as many descriptors are open as before.
func waitFDs(t *testing.T, want int) {
	t.Helper()
	deadline := time.Now().Add(10 * time.Second)
	for {
		got := openFDs(t)
		if got <= want {
			return
		}
		if time.Now().After(deadline) {
			t.Fatalf("%d descriptors are open, %d were before", got, want)
		}
		pause(context.Background(), 5*time.Millisecond)
	}
}

// rawClient is a controller that may send anything.
func rawClient(t *testing.T, path string) *net.UnixConn {
	t.Helper()
	conn, err := net.DialUnix("unixpacket", nil, &net.UnixAddr{Name: path, Net: "unixpacket"})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = conn.Close() })
	return conn
}

func packet(t *testing.T, f frame, m message) []byte {
	t.Helper()
	c, err := newCodec()
	if err != nil {
		t.Fatal(err)
	}
	if m != nil {
		if f.Body, err = c.enc.Marshal(m); err != nil {
			t.Fatal(err)
		}
	}
	b, err := c.enc.Marshal(&f)
	if err != nil {
		t.Fatal(err)
	}
	return b
}

func helloRaw(t *testing.T, conn *net.UnixConn) {
	t.Helper()
	if _, err := conn.Write(packet(t, frame{Kind: kindRequest, ID: 1, Op: "hello"}, &Hello{Min: VersionMin, Current: VersionCurrent})); err != nil {
		t.Fatal(err)
	}
	if _, err := conn.Read(make([]byte, MaxPacket)); err != nil {
		t.Fatal(err)
	}
}

// ended reports whether the server closed conn, reading what it says before.
func ended(t *testing.T, conn *net.UnixConn) bool {
	t.Helper()
	if err := conn.SetReadDeadline(time.Now().Add(5 * time.Second)); err != nil {
		t.Fatal(err)
	}
	buf := make([]byte, MaxPacket)
	for {
		if _, err := conn.Read(buf); err != nil {
			return !errors.Is(err, os.ErrDeadlineExceeded)
		}
	}
}

// hostileCard is a vcard that was taken over: it answers Hello and then does as
// the test says.
func hostileCard(t *testing.T, then func(*net.UnixConn), on ...func(Event)) *Client {
	t.Helper()
	path := filepath.Join(t.TempDir(), "vcard.sock")
	ln, err := net.ListenUnix("unixpacket", &net.UnixAddr{Name: path, Net: "unixpacket"})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = ln.Close() })
	go func() {
		conn, err := ln.AcceptUnix()
		if err != nil {
			return
		}
		defer conn.Close()
		if _, err := conn.Read(make([]byte, MaxPacket)); err != nil {
			return
		}
		if _, err := conn.Write(packet(t, frame{Kind: kindReply, ID: 1}, &HelloReply{Version: VersionCurrent})); err != nil {
			return
		}
		then(conn)
	}()
	opts := Options{Log: slog.New(slog.DiscardHandler)}
	if len(on) == 1 {
		opts.OnEvent = on[0]
	}
	c, err := Dial(testContext(t), path, opts)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = c.Close() })
	return c
}

func TestClientEndsAtAViolation(t *testing.T) {
	dev := func(change func(*Device)) *Event {
		d := &Device{Instance: "web", DeviceStatus: spec.DeviceStatus{Name: "root", Condition: spec.Condition{Phase: spec.PhaseReady}}}
		change(d)
		return &Event{Device: d}
	}
	event := frame{Kind: kindEvent}
	tests := map[string][]byte{
		"garbage":                    []byte("hello"),
		"reply nobody asked for":     packet(t, frame{Kind: kindReply, ID: 99}, &Done{}),
		"request":                    packet(t, frame{Kind: kindRequest, ID: 1, Op: "shutdown"}, &Shutdown{}),
		"cancel":                     packet(t, frame{Kind: kindCancel, ID: 1}, nil),
		"event about nothing":        packet(t, event, &Event{}),
		"event about two":            packet(t, event, &Event{Door: &DoorStatus{}, Host: &HostStatus{Condition: spec.Condition{Phase: spec.PhaseReady}}}),
		"instance name with a slash": packet(t, event, dev(func(d *Device) { d.Instance = "../../etc" })),
		"escape sequence":            packet(t, event, dev(func(d *Device) { d.Reason = "\x1b[2J" })),
		"made-up phase":              packet(t, event, dev(func(d *Device) { d.Phase = "fine" })),
		"endless reason":             packet(t, event, dev(func(d *Device) { d.Reason = strings.Repeat("x", MaxText+1) })),
		"too many queues":            packet(t, event, dev(func(d *Device) { d.Queues = make([]spec.QueueStats, 17) })),
		"VMM state":                  packet(t, event, &Event{VMM: &spec.VMMStatus{Instance: "web", Generation: testGen, State: "owned"}}),
	}
	for name, data := range tests {
		t.Run(name, func(t *testing.T) {
			c := hostileCard(t, func(conn *net.UnixConn) {
				_, _ = conn.Write(data)
				ended(t, conn)
			})
			select {
			case <-c.Done():
			case <-time.After(10 * time.Second):
				t.Fatal("the connection goes on")
			}
			if err := c.Err(); !errors.Is(err, ErrProtocol) {
				t.Errorf("Err() = %v, want ErrProtocol", err)
			}
		})
	}
}

func TestClientAcceptsNoDescriptors(t *testing.T) {
	defer debug.SetGCPercent(debug.SetGCPercent(-1)) // finalizers would close what was forgotten
	before := openFDs(t)
	c := hostileCard(t, func(conn *net.UnixConn) {
		pong := packet(t, frame{Kind: kindPing}, nil)
		_, _, _ = conn.WriteMsgUnix(pong, unix.UnixRights(0, 0, 0), nil)
		ended(t, conn)
	})
	<-c.Done()
	if err := c.Err(); !errors.Is(err, ErrProtocol) {
		t.Errorf("Err() = %v, want ErrProtocol", err)
	}
	_ = c.Close()
	waitFDs(t, before+1) // the listener of the test
}

// TestClientBoundsEvents: inventing subjects does not make the client store
// without end.
func TestClientBoundsEvents(t *testing.T) {
	block := make(chan struct{})
	sent := make(chan struct{})
	c := hostileCard(t, func(conn *net.UnixConn) {
		defer close(sent)
		for i := range uint64(maxSubjects + 10) {
			if _, err := conn.Write(packet(t, frame{Kind: kindEvent}, &Event{Door: &DoorStatus{Door: i, Open: true}})); err != nil {
				return
			}
		}
		ended(t, conn)
	}, func(Event) { <-block })
	<-c.Done()
	if err := c.Err(); !errors.Is(err, ErrProtocol) {
		t.Errorf("Err() = %v, want ErrProtocol", err)
	}
	close(block)
	<-sent
}

// TestClientBoundsUnanswered: a vcard that never answers costs at most
// MaxPending requests, and every caller gets its own deadline.
func TestClientBoundsUnanswered(t *testing.T) {
	c := hostileCard(t, func(conn *net.UnixConn) {
		buf := make([]byte, MaxPacket)
		for {
			if _, err := conn.Read(buf); err != nil {
				return
			}
		}
	})
	for range MaxPending + 20 {
		ctx, cancel := context.WithTimeout(context.Background(), time.Millisecond)
		if err := c.ConsoleWrite(ctx, "web", nil); !errors.Is(err, context.DeadlineExceeded) {
			t.Errorf("got %v, want a deadline", err)
		}
		cancel()
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	if len(c.pending) > MaxPending {
		t.Errorf("%d requests are stored", len(c.pending))
	}
}

func TestClientDoesNotWaitForAVcardThatDoesNotRead(t *testing.T) {
	hold := make(chan struct{})
	defer close(hold)
	c := hostileCard(t, func(*net.UnixConn) { <-hold })
	ctx, cancel := context.WithTimeout(context.Background(), 300*time.Millisecond)
	defer cancel()
	for ctx.Err() == nil {
		_ = c.ConsoleWrite(ctx, "web", make([]byte, MaxData))
	}
	if err := c.Close(); err != nil {
		t.Fatal(err)
	}
}

func TestStatusPagesOfAHostileCard(t *testing.T) {
	page := func(names ...string) *StatusReply {
		r := &StatusReply{More: true, Snapshot: 1}
		r.Host.Phase = spec.PhasePending
		for _, n := range names {
			r.Devices = append(r.Devices, Device{Instance: "web", DeviceStatus: spec.DeviceStatus{Name: n, Condition: spec.Condition{Phase: spec.PhaseReady}}})
		}
		return r
	}
	for name, answer := range map[string]func(i int) *StatusReply{
		"the same page":    func(int) *StatusReply { return page("a", "b") },
		"empty pages":      func(int) *StatusReply { return page() },
		"backwards":        func(i int) *StatusReply { return page(fmt.Sprintf("d%05d", 50000-i)) },
		"another snapshot": func(i int) *StatusReply { p := page(fmt.Sprintf("d%05d", i)); p.Snapshot = uint64(i); return p },
		"no end":           func(i int) *StatusReply { return page(fmt.Sprintf("d%05d", i)) },
	} {
		t.Run(name, func(t *testing.T) {
			i := 0
			_, path := serve(t, &fakeCard{handle: func(context.Context, Request, *Files) (Reply, error) { i++; return answer(i), nil }})
			if _, err := dial(t, path, nil).Status(testContext(t)); !errors.Is(err, ErrProtocol) {
				t.Errorf("got %v, want ErrProtocol", err)
			}
		})
	}
}

func TestDialWaitsForTheListener(t *testing.T) {
	path := filepath.Join(t.TempDir(), "vcard.sock")
	short, cancel := context.WithTimeout(context.Background(), 30*time.Millisecond)
	defer cancel()
	if _, err := Dial(short, path, Options{}); !errors.Is(err, context.DeadlineExceeded) || !errors.Is(err, syscall.ENOENT) {
		t.Errorf("no socket: got %v, want a deadline with the reason", err)
	}
	f, err := Bind(path)
	if err != nil {
		t.Fatal(err)
	}
	if st, err := os.Stat(path); err != nil || st.Mode().Perm() != 0o600 {
		t.Errorf("socket mode %v, %v, want 0600", st.Mode(), err)
	}
	got := make(chan error, 1)
	go func() {
		c, err := Dial(testContext(t), path, Options{})
		if err == nil {
			_ = c.Close()
		}
		got <- err
	}()
	fd, err := dupFD(f)
	if err != nil {
		t.Fatal(err)
	}
	_ = f.Close()
	ln, err := Listen(fd)
	if err != nil {
		t.Fatal(err)
	}
	ctx, stop := context.WithCancel(context.Background())
	served := make(chan error, 1)
	go func() { served <- NewServer(&fakeCard{}, slog.New(slog.DiscardHandler)).Serve(ctx, ln) }()
	if err := <-got; err != nil {
		t.Error(err)
	}
	if _, err := Bind(path); err == nil {
		t.Error("Bind took a path at which a vcard listens")
	}
	stop()
	if err := <-served; err != nil {
		t.Error(err)
	}
	again, err := Bind(path)
	if err != nil {
		t.Fatalf("Bind over the socket of a vcard that is gone: %v", err)
	}
	_ = again.Close()
}
