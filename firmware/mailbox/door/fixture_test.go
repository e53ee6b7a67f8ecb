// SPDX-License-Identifier: Apache-2.0

package door

import (
	"context"
	"crypto"
	"errors"
	"io"
	"log/slog"
	"net"
	"path/filepath"
	"sync"
	"testing"

	"github.com/davit-dpu/davit/firmware/audit"
	"github.com/davit-dpu/davit/firmware/mailbox"
	"github.com/davit-dpu/davit/firmware/spec"
)

var silent = slog.New(slog.NewTextHandler(io.Discard, nil))

const testCard = "card-1"

type memoryAudit struct {
	mu    sync.Mutex
	count uint64
}

func (m *memoryAudit) Append(audit.Entry) (uint64, error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.count++
	return m.count, nil
}

// card is a mailbox with ops for tests, and the keys around it.
type card struct {
	t       testing.TB
	box     *mailbox.Mailbox
	receipt crypto.Signer
	key     crypto.Signer
	gone    chan struct{} // closed when the context of wait.lost ended
}

type echoArgs struct {
	Text string `cbor:"text"`
}

func newCard(t testing.TB) *card {
	t.Helper()
	c := &card{t: t, receipt: mustKey(t, mailbox.ES256), key: mustKey(t, mailbox.EdDSA), gone: make(chan struct{})}
	public, err := mailbox.MarshalPublicKey(c.key.Public())
	if err != nil {
		t.Fatal(err)
	}
	ring, err := mailbox.NewKeyring(
		[]spec.Key{{ID: "operator", Algorithm: "EdDSA", Public: string(public), Roles: []string{"all"}}},
		spec.Policy{Roles: map[string]spec.Role{"all": {Ops: []string{"*"}}}})
	if err != nil {
		t.Fatal(err)
	}
	c.box, err = mailbox.New(mailbox.Config{
		Card: testCard, Lifecycle: spec.Development, Keyring: ring, Ops: c.ops(), Receipt: c.receipt,
		Audit: &memoryAudit{}, Log: silent,
	})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(c.box.Close)
	return c
}

func (c *card) ops() []mailbox.Op {
	return []mailbox.Op{
		mailbox.Handle("status", func(context.Context, *mailbox.Command, struct{}) (any, error) {
			return map[string]string{"phase": "ready"}, nil
		}).AsPublic(),
		mailbox.Handle("echo", func(_ context.Context, _ *mailbox.Command, a echoArgs) (any, error) { return a, nil }),
		mailbox.Handle("fail", func(context.Context, *mailbox.Command, struct{}) (any, error) {
			return nil, errors.New("no such thing")
		}),
		mailbox.HandleStream("stream.echo", func(_ context.Context, _ *mailbox.Command, _ struct{}, s mailbox.Stream) error {
			_, err := io.Copy(s, s)
			return err
		}),
		mailbox.HandleStream("stream.hello", func(_ context.Context, _ *mailbox.Command, _ struct{}, s mailbox.Stream) error {
			_, err := io.WriteString(s, "hello")
			return err // without reading what the requester sends
		}),
		mailbox.HandleStream("wait.lost", func(ctx context.Context, _ *mailbox.Command, _ struct{}, s mailbox.Stream) error {
			if _, err := io.WriteString(s, "x"); err != nil {
				return err
			}
			<-ctx.Done()
			close(c.gone)
			return ctx.Err()
		}),
	}
}

func mustKey(t testing.TB, alg mailbox.Algorithm) crypto.Signer {
	t.Helper()
	key, err := mailbox.GenerateKey(alg)
	if err != nil {
		t.Fatal(err)
	}
	return key
}

func (c *card) client() ClientConfig {
	return ClientConfig{Card: testCard, CardKey: c.receipt.Public(), Key: c.key, KeyID: "operator", Requester: "test"}
}

func (c *card) server(change func(*Config)) *Server {
	c.t.Helper()
	cfg := Config{Door: mailbox.Door{Name: "test"}, Mailbox: c.box, Log: silent}
	if change != nil {
		change(&cfg)
	}
	s, err := NewServer(cfg)
	if err != nil {
		c.t.Fatal(err)
	}
	return s
}

// serve runs the server on a listener until the test ends.
func serve(t testing.TB, s *Server, l net.Listener) {
	t.Helper()
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error, 1)
	go func() { done <- s.Serve(ctx, l) }()
	t.Cleanup(func() {
		cancel()
		if err := <-done; err != nil {
			t.Errorf("Serve: %v", err)
		}
	})
}

// unixDoor gives the path of a door on a Unix socket.
func (c *card) unixDoor(change func(*Config)) string {
	c.t.Helper()
	path := filepath.Join(c.t.TempDir(), "mailbox.sock")
	l, err := ListenUnix(path)
	if err != nil {
		c.t.Fatal(err)
	}
	serve(c.t, c.server(change), l)
	return path
}

// tlsDoor gives the address of a TLS door.
func (c *card) tlsDoor() string {
	c.t.Helper()
	config, binding, err := Identity()
	if err != nil {
		c.t.Fatal(err)
	}
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		c.t.Fatal(err)
	}
	serve(c.t, c.server(func(cfg *Config) { cfg.TLS, cfg.Door.Binding = config, binding }), l)
	return l.Addr().String()
}

func closing(t testing.TB, c io.Closer) {
	t.Cleanup(func() { _ = c.Close() }) // often closed before
}
