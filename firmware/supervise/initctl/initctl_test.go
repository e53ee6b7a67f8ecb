// SPDX-License-Identifier: Apache-2.0

package initctl

import (
	"context"
	"errors"
	"io"
	"log/slog"
	"net"
	"os"
	"path/filepath"
	"reflect"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/davit-dpu/davit/firmware/spec"
)

// pid1 answers as pid 1 does.
type pid1 struct {
	socket string

	mu    sync.Mutex
	words []Word // guarded by mu
}

func newPID1(t *testing.T) *pid1 {
	t.Helper()
	p := &pid1{socket: filepath.Join(t.TempDir(), "init.sock")}
	l, err := Listen(p.socket)
	if err != nil {
		t.Fatal(err)
	}
	s := &Server{
		Act: func(w Word) bool {
			p.mu.Lock()
			defer p.mu.Unlock()
			p.words = append(p.words, w)
			return len(p.words) == 1
		},
		State: func() State { return Cooling },
		Log:   slog.New(slog.NewTextHandler(io.Discard, nil)),
	}
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error, 1)
	go func() { done <- s.Serve(ctx, l) }()
	t.Cleanup(func() {
		cancel()
		if err := <-done; err != nil {
			t.Errorf("Serve: %v", err)
		}
	})
	return p
}

func needRoot(t *testing.T) {
	t.Helper()
	if os.Getuid() != 0 {
		t.Skip("only user 0 is answered, and this test is not run by it")
	}
}

func TestControl(t *testing.T) {
	t.Parallel()
	needRoot(t)
	p := newPID1(t)
	if got, err := AskState(t.Context(), p.socket); err != nil || got != Cooling {
		t.Errorf("state %q, %v", got, err)
	}
	if err := Ask(t.Context(), p.socket, Reboot); err != nil {
		t.Errorf("reboot: %v", err)
	}
	if err := Ask(t.Context(), p.socket, PowerOff); !errors.Is(err, ErrRefused) {
		t.Errorf("a second request: %v, want %v", err, ErrRefused)
	}
	if err := Ask(t.Context(), p.socket, Query); err == nil {
		t.Error("a query was taken for a request for action")
	}
	if want := []Word{Reboot, PowerOff}; !reflect.DeepEqual(p.words, want) {
		t.Errorf("words %v, want %v", p.words, want)
	}
	if info, err := os.Stat(p.socket); err != nil || info.Mode().Perm() != 0o600 {
		t.Errorf("socket %v, %v", info.Mode(), err)
	}
}

func TestOtherUsersAreNotAnswered(t *testing.T) {
	t.Parallel()
	if os.Getuid() == 0 {
		t.Skip("this test is run by user 0")
	}
	p := newPID1(t)
	if err := Ask(t.Context(), p.socket, Reboot); err == nil || len(p.words) != 0 {
		t.Errorf("user %d: %v, words %v", os.Getuid(), err, p.words)
	}
}

func TestControlTakesNothingElse(t *testing.T) {
	t.Parallel()
	needRoot(t)
	p := newPID1(t)
	for name, msg := range map[string][]byte{
		"empty word":    make([]byte, wordSize),
		"short":         []byte("reboot"),
		"long":          append(encodeWord("reboot"), 0),
		"huge":          make([]byte, 1<<16),
		"after the NUL": []byte("reboot\x00\x00\x00\x00\x00\x00\x00\x00\x00x"),
		"upper case":    encodeWord("Reboot"),
	} {
		c, err := net.Dial("unixpacket", p.socket)
		if err != nil {
			t.Fatal(err)
		}
		if _, err := c.Write(msg); err != nil {
			t.Fatal(err)
		}
		if n, err := c.Read(make([]byte, 64)); err == nil && n > 0 {
			t.Errorf("%s: was answered", name)
		}
		c.Close()
	}
	// A word of the right form that is not in the list.
	if answer, err := exchange(t.Context(), p.socket, "halt"); err != nil || answer != unknown {
		t.Errorf("halt: %q, %v", answer, err)
	}
	// Somebody who connects and says nothing holds up the next one for a
	// bounded time only.
	silent, err := net.Dial("unixpacket", p.socket)
	if err != nil {
		t.Fatal(err)
	}
	defer silent.Close()
	began := time.Now()
	for {
		if _, err := AskState(t.Context(), p.socket); err == nil {
			break
		}
		if time.Since(began) > 5*answerWithin {
			t.Fatal("one silent connection blocks the control socket")
		}
	}
	if len(p.words) != 0 {
		t.Errorf("words %v", p.words)
	}
}

// signalled is closed by the first line that is logged.
type signalled struct {
	once sync.Once
	c    chan struct{}
}

func (s *signalled) Write(p []byte) (int, error) {
	s.once.Do(func() { close(s.c) })
	return len(p), nil
}

func TestFailedAcceptDoesNotEndTheServer(t *testing.T) {
	t.Parallel()
	path := filepath.Join(t.TempDir(), "init.sock")
	l, err := Listen(path)
	if err != nil {
		t.Fatal(err)
	}
	if err := l.SetDeadline(time.Unix(1, 0)); err != nil { // each accept fails
		t.Fatal(err)
	}
	failed := &signalled{c: make(chan struct{})}
	s := &Server{State: func() State { return Cooling }, Log: slog.New(slog.NewTextHandler(failed, nil))}
	done := make(chan error, 1)
	go func() { done <- s.Serve(t.Context(), l) }()
	select {
	case err := <-done:
		t.Fatalf("Serve ended with %v", err)
	case <-failed.c:
	}
	if err := l.SetDeadline(time.Time{}); err != nil {
		t.Fatal(err)
	}
	if got, err := AskState(t.Context(), path); os.Getuid() == 0 && (err != nil || got != Cooling) {
		t.Errorf("state %q, %v", got, err)
	}
	if err := l.Close(); err != nil {
		t.Fatal(err)
	}
	if err := <-done; !errors.Is(err, net.ErrClosed) {
		t.Errorf("Serve with a closed listener: %v", err)
	}
}

func FuzzDecodeWord(f *testing.F) {
	f.Add(encodeWord("reboot"))
	f.Add([]byte{})
	f.Fuzz(func(t *testing.T, b []byte) {
		w, err := decodeWord(b)
		if (err == nil) != (w != "") {
			t.Fatalf("word %q with error %v", w, err)
		}
		if err == nil && string(encodeWord(w)) != string(b) {
			t.Fatalf("%q does not come back from %q", b, w)
		}
	})
}

func goodReport() *Report {
	return &Report{
		Version:      1,
		Lifecycle:    spec.Production,
		Kernel:       "6.12.0",
		Steps:        []Step{{Name: "mounts", Required: true, Result: OK, Detail: "10 file systems", Started: 1, Finished: 2}, {Name: "tpm", Result: Pending}},
		Measurements: []Measurement{{Path: "/init", PCR: 8, Digest: "sha256:00"}},
		Persistent:   true,
		Dropped:      3,
	}
}

func TestReportRoundTrip(t *testing.T) {
	t.Parallel()
	path := filepath.Join(t.TempDir(), "boot.json")
	want := goodReport()
	for range 2 { // the second one replaces the first
		if err := WriteReport(path, want); err != nil {
			t.Fatal(err)
		}
	}
	got, err := ReadReport(path)
	if err != nil {
		t.Fatal(err)
	}
	if !reflect.DeepEqual(got, want) {
		t.Errorf("got %+v, want %+v", got, want)
	}
	if s := got.Step("tpm"); s == nil || s.Result != Pending || got.Step("none") != nil {
		t.Errorf("step %+v", s)
	}
	if files, err := os.ReadDir(filepath.Dir(path)); err != nil || len(files) != 1 {
		t.Errorf("left behind: %v, %v", files, err)
	}
}

func TestReportRefused(t *testing.T) {
	t.Parallel()
	for name, text := range map[string]string{
		"empty":     "",
		"version":   `{"version":2,"lifecycle":"production"}`,
		"lifecycle": `{"version":1,"lifecycle":"none"}`,
		"unknown":   `{"version":1,"lifecycle":"production","surprise":1}`,
		"follows":   `{"version":1,"lifecycle":"production"} {}`,
		"result":    `{"version":1,"lifecycle":"production","steps":[{"name":"a","result":"fine"}]}`,
		"no name":   `{"version":1,"lifecycle":"production","steps":[{"result":"ok"}]}`,
	} {
		if r, err := ParseReport([]byte(text)); err == nil || r != nil {
			t.Errorf("%s: %+v, %v", name, r, err)
		}
	}
	path := filepath.Join(t.TempDir(), "boot.json")
	if err := os.WriteFile(path, []byte(strings.Repeat(" ", maxReport+1)), 0o600); err != nil {
		t.Fatal(err)
	}
	if r, err := ReadReport(path); err == nil || r != nil {
		t.Errorf("too long: %+v, %v", r, err)
	}
}

func FuzzParseReport(f *testing.F) {
	f.Add([]byte(`{"version":1,"lifecycle":"production","kernel":"6","steps":[{"name":"a","required":true,"result":"ok","started":1,"finished":2}],"measurements":[],"persistent":false,"clockSet":false,"dropped":0}`))
	f.Fuzz(func(t *testing.T, b []byte) {
		r, err := ParseReport(b)
		if (err == nil) != (r != nil) {
			t.Fatalf("report %+v with error %v", r, err)
		}
	})
}
