// SPDX-License-Identifier: Apache-2.0

package mailbox

import (
	"context"
	"crypto"
	"crypto/sha256"
	"errors"
	"io"
	"log/slog"
	"path/filepath"
	"slices"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/davit-dpu/davit/firmware/audit"
	"github.com/davit-dpu/davit/firmware/spec"
)

var noon = time.Date(2026, 3, 1, 12, 0, 0, 0, time.UTC)

const testCard = "card-1"

// memoryAudit is an Auditor that can fail.
type memoryAudit struct {
	mu      sync.Mutex
	records []audit.Entry
	err     error
}

func (m *memoryAudit) Append(e audit.Entry) (uint64, error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.err != nil {
		return 0, m.err
	}
	m.records = append(m.records, e)
	return uint64(len(m.records)), nil
}

func (m *memoryAudit) fail(err error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.err = err
}

func (m *memoryAudit) all() []audit.Entry {
	m.mu.Lock()
	defer m.mu.Unlock()
	return slices.Clone(m.records)
}

// clock is a settable time.
type clock struct{ at atomic.Pointer[time.Time] }

func newClock() *clock {
	c := &clock{}
	c.set(noon)
	return c
}

func (c *clock) set(t time.Time)         { c.at.Store(&t) }
func (c *clock) now() time.Time          { return *c.at.Load() }
func (c *clock) advance(d time.Duration) { c.set(c.now().Add(d)) }

// stopArgs are the arguments of the ops in tests.
type stopArgs struct {
	Name  string `cbor:"name"`
	Force bool   `cbor:"force,omitempty"`
}

func (a stopArgs) Validate() error {
	if a.Name == "" {
		return errors.New("name is missing")
	}
	return nil
}

// fixture is a mailbox with its surroundings.
type fixture struct {
	t        testing.TB
	box      *Mailbox
	clock    *clock
	audit    *memoryAudit
	receipt  crypto.Signer
	operator crypto.Signer // may do instance.*
	viewer   crypto.Signer // may do nothing but log.tail
	executed atomic.Int64  // handlers of ops that are not public, run
}

func mustKey(t testing.TB, alg Algorithm) crypto.Signer {
	t.Helper()
	key, err := GenerateKey(alg)
	if err != nil {
		t.Fatal(err)
	}
	return key
}

func ringEntry(t testing.TB, id string, key crypto.Signer, roles ...string) spec.Key {
	t.Helper()
	alg, err := AlgorithmOf(key.Public())
	if err != nil {
		t.Fatal(err)
	}
	text, err := MarshalPublicKey(key.Public())
	if err != nil {
		t.Fatal(err)
	}
	return spec.Key{ID: id, Algorithm: string(alg), Public: string(text), Roles: roles}
}

var testPolicy = spec.Policy{Roles: map[string]spec.Role{
	"operator": {Ops: []string{"instance.*", "gone"}},
	"viewer":   {Ops: []string{"log.tail"}},
}}

func newFixture(t testing.TB, change func(*Config)) *fixture {
	t.Helper()
	f := &fixture{
		t: t, clock: newClock(), audit: &memoryAudit{}, receipt: mustKey(t, ES256),
		operator: mustKey(t, EdDSA), viewer: mustKey(t, ES384),
	}
	ring, err := NewKeyring([]spec.Key{
		ringEntry(t, "operator", f.operator, "operator"), ringEntry(t, "viewer", f.viewer, "viewer"),
	}, testPolicy)
	if err != nil {
		t.Fatal(err)
	}
	cfg := Config{
		Card: testCard, Lifecycle: spec.Production, Keyring: ring, Ops: f.ops(), Receipt: f.receipt, Audit: f.audit,
		Log: slog.New(slog.NewTextHandler(io.Discard, nil)), Now: f.clock.now,
	}
	if change != nil {
		change(&cfg)
	}
	if f.box, err = New(cfg); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(f.box.Close)
	return f
}

func (f *fixture) ops() []Op {
	return []Op{
		Handle("status", func(_ context.Context, c *Command, _ struct{}) (any, error) {
			return map[string]any{"phase": "ready"}, nil
		}).AsPublic(),
		Handle("instance.stop", func(_ context.Context, c *Command, args stopArgs) (any, error) {
			f.executed.Add(1)
			return map[string]any{"stopped": args.Name, "by": c.Key()}, nil
		}),
		Handle("instance.fail", func(context.Context, *Command, struct{}) (any, error) {
			f.executed.Add(1)
			return nil, errors.New("no such instance")
		}),
		Handle("instance.panic", func(context.Context, *Command, struct{}) (any, error) {
			f.executed.Add(1)
			panic("bug")
		}),
		HandleStream("log.tail", func(_ context.Context, _ *Command, _ struct{}, s Stream) error {
			f.executed.Add(1)
			_, err := io.Copy(s, s)
			return err
		}),
		{Name: "instance.bare", Handle: func(context.Context, *Command) (any, error) { f.executed.Add(1); return nil, nil }},
	}
}

// request is a good one for instance.stop; change makes it different.
func (f *fixture) request(change func(*Request)) Request {
	r := Request{
		Card: testCard, Op: "instance.stop", Args: stopArgs{Name: "web"}, Nonce: f.nonce(),
		NotBefore: f.clock.now().Add(-time.Minute), NotAfter: f.clock.now().Add(time.Minute),
		Requester: "alice", Reason: "maintenance", Lifecycle: spec.Production,
	}
	if change != nil {
		change(&r)
	}
	return r
}

func (f *fixture) sign(r Request) []byte { return f.signAs(f.operator, "operator", r) }

func (f *fixture) signAs(key crypto.Signer, id string, r Request) []byte {
	f.t.Helper()
	command, err := Sign(key, id, r)
	if err != nil {
		f.t.Fatal(err)
	}
	return command
}

// submit gives the verified receipt.
func (f *fixture) submit(message []byte) *Receipt {
	f.t.Helper()
	receipt, err := f.box.Submit(context.Background(), Door{Name: "test"}, message)
	if err != nil {
		f.t.Fatalf("Submit: %v", err)
	}
	return f.verify(receipt, message)
}

func (f *fixture) verify(receipt, message []byte) *Receipt {
	f.t.Helper()
	u, err := ParseReceipt(receipt)
	if err != nil {
		f.t.Fatal(err)
	}
	r, err := u.Verify(f.receipt.Public(), sha256.Sum256(message))
	if err != nil {
		f.t.Fatal(err)
	}
	if r.Card != testCard {
		f.t.Fatalf("receipt of card %q", r.Card)
	}
	return r
}

func (f *fixture) public(op string, args any) []byte {
	f.t.Helper()
	b, err := PublicRequest("", op, args, []byte("fresh"))
	if err != nil {
		f.t.Fatal(err)
	}
	return b
}

// nonce gets one from the card, as a requester does.
func (f *fixture) nonce() []byte {
	f.t.Helper()
	r := f.submit(f.public(ChallengeOp, nil))
	var ch Challenge
	if err := r.Decode(&ch); err != nil {
		f.t.Fatal(err)
	}
	return ch.Nonce
}

// openAudit opens a real log for the mailbox.
func openAudit(t testing.TB) *audit.Log {
	t.Helper()
	l, err := audit.Open(audit.Config{Dir: filepath.Join(t.TempDir(), "audit"), Log: slog.New(slog.NewTextHandler(io.Discard, nil))})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := l.Close(); err != nil {
			t.Error(err)
		}
	})
	return l
}
