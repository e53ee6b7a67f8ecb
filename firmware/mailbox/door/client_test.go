// SPDX-License-Identifier: Apache-2.0

package door

import (
	"bytes"
	"context"
	"crypto/tls"
	"errors"
	"io"
	"net"
	"os"
	"path/filepath"
	"testing"
	"time"

	"github.com/davit-dpu/davit/firmware/mailbox"
)

func dialUnix(t testing.TB, path string, cfg ClientConfig) *Client {
	t.Helper()
	client, err := DialUnix(t.Context(), path, cfg)
	if err != nil {
		t.Fatal(err)
	}
	closing(t, client)
	return client
}

func wantCode(t testing.TB, err error, code mailbox.Code) {
	t.Helper()
	var answer *Answer
	if !errors.As(err, &answer) || !errors.Is(err, &mailbox.Refusal{Code: code}) || answer.Receipt.Code != code {
		t.Errorf("error %v, want an answer with code %s", err, code)
	}
}

// exerciseDoor does all that a requester does, on one connection.
func exerciseDoor(t *testing.T, client *Client) {
	t.Helper()
	ctx := t.Context()
	if r, err := client.Request(ctx, "status", nil); err != nil || r.Code != mailbox.OK {
		t.Fatalf("status: %v", err)
	}
	for range 3 {
		r, err := client.Do(ctx, "echo", echoArgs{Text: "hi"}, "test")
		if err != nil {
			t.Fatal(err)
		}
		var got echoArgs
		if err := r.Decode(&got); err != nil || got.Text != "hi" {
			t.Fatalf("echo: %+v, %v", got, err)
		}
	}
	_, err := client.Do(ctx, "fail", nil, "")
	wantCode(t, err, mailbox.Failed)
	_, err = client.Do(ctx, "no.such", nil, "")
	wantCode(t, err, mailbox.UnknownOp)
	_, err = client.Request(ctx, "echo", nil)
	wantCode(t, err, mailbox.Unsigned)
	if _, err := client.Stream(ctx, "echo", echoArgs{}, ""); err == nil {
		t.Error("an op without a stream opens one")
	}
	exerciseStream(t, client)
	if _, err := client.Do(ctx, "echo", echoArgs{}, "after the streams"); err != nil {
		t.Fatal(err)
	}
}

func exerciseStream(t *testing.T, client *Client) {
	t.Helper()
	s, err := client.Stream(t.Context(), "stream.echo", nil, "")
	if err != nil {
		t.Fatal(err)
	}
	want := bytes.Repeat([]byte("0123456789abcdef"), 3*MaxData/16)
	sent := make(chan error, 1)
	go func() {
		_, err := s.Write(want)
		sent <- errors.Join(err, s.CloseWrite())
	}()
	got, err := io.ReadAll(s)
	if err := errors.Join(err, <-sent); err != nil || !bytes.Equal(got, want) {
		t.Fatalf("echo of %d bytes: %d bytes, %v", len(want), len(got), err)
	}
	if r, err := s.Wait(); err != nil || r.Code != mailbox.OK {
		t.Fatalf("Wait: %v", err)
	}
	// An op that does not read what is sent, and a requester that does not
	// read what it gets.
	if s, err = client.Stream(t.Context(), "stream.hello", nil, ""); err != nil {
		t.Fatal(err)
	}
	if _, err := s.Write(want); err != nil {
		t.Fatal(err)
	}
	if r, err := s.Wait(); err != nil || r.Code != mailbox.OK {
		t.Fatalf("Wait: %v", err)
	}
}

func TestUnixDoor(t *testing.T) {
	t.Parallel()
	c := newCard(t)
	path := c.unixDoor(nil)
	if info, err := os.Stat(path); err != nil || info.Mode().Perm() != 0o600 {
		t.Errorf("socket mode %v, %v", info.Mode(), err)
	}
	exerciseDoor(t, dialUnix(t, path, c.client()))
	if l, err := ListenUnix(path); err == nil || l != nil {
		t.Error("a second listener takes the socket away")
	}
}

func TestListenUnixPaths(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	stale := filepath.Join(dir, "stale.sock")
	l, err := net.ListenUnix("unix", &net.UnixAddr{Name: stale, Net: "unix"})
	if err != nil {
		t.Fatal(err)
	}
	l.SetUnlinkOnClose(false)
	if err := l.Close(); err != nil {
		t.Fatal(err)
	}
	l, err = ListenUnix(stale)
	if err != nil {
		t.Fatalf("a socket that nobody listens on: %v", err)
	}
	closing(t, l)
	file := filepath.Join(dir, "file")
	if err := os.WriteFile(file, []byte("precious"), 0o600); err != nil {
		t.Fatal(err)
	}
	if _, err := ListenUnix(file); err == nil {
		t.Error("a file is replaced")
	}
	if _, err := ListenUnix(filepath.Join(dir, "no", "such", "dir")); err == nil {
		t.Error("listens in a folder that is not there")
	}
}

func TestTLSDoor(t *testing.T) {
	t.Parallel()
	c := newCard(t)
	client, err := DialTLS(t.Context(), c.tlsDoor(), c.client())
	if err != nil {
		t.Fatal(err)
	}
	closing(t, client)
	exerciseDoor(t, client)
}

func TestTLSIsThirteenOnly(t *testing.T) {
	t.Parallel()
	c := newCard(t)
	address := c.tlsDoor()
	for name, config := range map[string]*tls.Config{
		"TLS 1.2":    {InsecureSkipVerify: true, MaxVersion: tls.VersionTLS12, NextProtos: []string{Protocol}},
		"other ALPN": {InsecureSkipVerify: true, NextProtos: []string{"h2"}},
	} {
		if conn, err := tls.Dial("tcp", address, config); err == nil {
			t.Errorf("%s is accepted", name)
			conn.Close()
		}
	}
}

// Somebody in the middle ends the TLS channel, shows a certificate of its own
// and passes all bytes on: the first receipt tells, before a command is sent.
func TestRelayInTheMiddleIsFound(t *testing.T) {
	t.Parallel()
	c := newCard(t)
	behind := c.tlsDoor()
	config, _, err := Identity()
	if err != nil {
		t.Fatal(err)
	}
	l, err := tls.Listen("tcp", "127.0.0.1:0", config)
	if err != nil {
		t.Fatal(err)
	}
	closing(t, l)
	go func() {
		front, err := l.Accept()
		if err != nil {
			return
		}
		defer front.Close()
		back, err := tls.Dial("tcp", behind, &tls.Config{InsecureSkipVerify: true, NextProtos: []string{Protocol}})
		if err != nil {
			return
		}
		defer back.Close()
		go io.Copy(back, front)
		io.Copy(front, back)
	}()
	client, err := DialTLS(t.Context(), l.Addr().String(), c.client())
	if err != nil {
		t.Fatal(err)
	}
	closing(t, client)
	if r, err := client.Do(t.Context(), "echo", echoArgs{}, ""); !errors.Is(err, ErrChannel) || r != nil {
		t.Errorf("through a relay: %v, want ErrChannel", err)
	}
}

func TestClientTrustsOnlyItsCard(t *testing.T) {
	t.Parallel()
	c := newCard(t)
	path := c.unixDoor(nil)
	for name, change := range map[string]func(*ClientConfig){
		"no key":      func(cfg *ClientConfig) { cfg.CardKey = nil },
		"another key": func(cfg *ClientConfig) { cfg.CardKey = mustKey(t, mailbox.ES256).Public() },
	} {
		cfg := c.client()
		change(&cfg)
		client := dialUnix(t, path, cfg)
		if r, err := client.Request(t.Context(), "status", nil); !errors.Is(err, mailbox.ErrReceipt) || r != nil {
			t.Errorf("%s: %v, want ErrReceipt", name, err)
		}
		client.Trust(c.receipt.Public())
		if _, err := client.Request(t.Context(), "status", nil); err != nil {
			t.Errorf("%s: after Trust: %v", name, err)
		}
	}
	cfg := c.client()
	cfg.Card = "card-2"
	_, err := dialUnix(t, path, cfg).Request(t.Context(), "status", nil)
	if !errors.Is(err, mailbox.ErrReceipt) {
		t.Errorf("another card: %v, want ErrReceipt", err)
	}
	cfg = c.client()
	cfg.Key = nil
	if _, err := dialUnix(t, path, cfg).Do(t.Context(), "echo", nil, ""); err == nil {
		t.Error("does a command without a key")
	}
}

// A door that answers with an earlier receipt of the card.
func TestOldReceiptIsFound(t *testing.T) {
	t.Parallel()
	c := newCard(t)
	request, err := mailbox.PublicRequest(testCard, "status", nil, []byte("an older nonce"))
	if err != nil {
		t.Fatal(err)
	}
	old, err := c.box.Submit(t.Context(), mailbox.Door{Name: "test"}, request)
	if err != nil {
		t.Fatal(err)
	}
	near, far := net.Pipe()
	closing(t, far)
	go func() {
		if _, _, err := ReadFrame(far, Envelope); err == nil {
			_ = WriteFrame(far, Receipt, old)
		}
	}()
	client, err := NewClient(near, c.client())
	if err != nil {
		t.Fatal(err)
	}
	closing(t, client)
	if r, err := client.Request(t.Context(), "status", nil); !errors.Is(err, mailbox.ErrReceipt) || r != nil {
		t.Errorf("an old receipt: %v, want ErrReceipt", err)
	}
}

func TestClientGivesUpWithItsContext(t *testing.T) {
	t.Parallel()
	near, far := net.Pipe()
	closing(t, far)
	client, err := NewClient(near, ClientConfig{CardKey: mustKey(t, mailbox.ES256).Public()})
	if err != nil {
		t.Fatal(err)
	}
	closing(t, client)
	ctx, cancel := context.WithTimeout(t.Context(), 10*time.Millisecond)
	defer cancel()
	if _, err := client.Request(ctx, "status", nil); !errors.Is(err, context.DeadlineExceeded) {
		t.Errorf("a card that says nothing: %v, want DeadlineExceeded", err)
	}
}
