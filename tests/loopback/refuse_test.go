// SPDX-License-Identifier: Apache-2.0

package loopback

import (
	"bytes"
	"crypto"
	"crypto/sha256"
	"encoding/pem"
	"io"
	"os"
	"path/filepath"
	"slices"
	"testing"
	"time"

	"github.com/davit-dpu/davit/firmware/audit"
	"github.com/davit-dpu/davit/firmware/mailbox"
	"github.com/davit-dpu/davit/firmware/mailbox/door"
	"github.com/davit-dpu/davit/firmware/spec"
	"github.com/davit-dpu/davit/tests/vm"
)

// doors are the ways to a card's mailbox, by the names that its record has.
func doors(env *vm.LoopbackEnv) map[string]func(*testing.T) *door.Client {
	unix := func(path string) func(*testing.T) *door.Client {
		return func(t *testing.T) *door.Client {
			return dialled(t)(door.DialUnix(t.Context(), path, door.ClientConfig{}))
		}
	}
	return map[string]func(*testing.T) *door.Client{
		"unix": unix(env.Loopback.Door()),
		"bus":  unix(env.Server.HostDoor()),
		"tls": func(t *testing.T) *door.Client {
			return dialled(t)(door.DialTLS(t.Context(), env.Server.Address, door.ClientConfig{}))
		},
	}
}

func dialled(t *testing.T) func(*door.Client, error) *door.Client {
	return func(c *door.Client, err error) *door.Client {
		t.Helper()
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { _ = c.Close() }) // the card may have hung up
		return c
	}
}

// signer is a key that signs commands to one card.
type signer struct {
	card string
	key  crypto.Signer
	id   string
}

func newSigner(t *testing.T, card string, key crypto.Signer) *signer {
	t.Helper()
	id, err := mailbox.KeyID(key.Public())
	if err != nil {
		t.Fatal(err)
	}
	return &signer{card, key, id}
}

// sign makes a command that the card would take, but for what change does.
func (s *signer) sign(t *testing.T, nonce []byte, op string, args any, change func(*mailbox.Request)) []byte {
	t.Helper()
	r := mailbox.Request{
		Card: s.card, Op: op, Args: args, Nonce: nonce, Lifecycle: spec.Development, Requester: "tests/loopback",
		NotBefore: time.Now().Add(-time.Minute), NotAfter: time.Now().Add(time.Minute),
	}
	if change != nil {
		change(&r)
	}
	command, err := mailbox.Sign(s.key, s.id, r)
	if err != nil {
		t.Fatal(err)
	}
	return command
}

// refusal is one row of the matrix: how a message is made, and what it is
// answered with.
type refusal struct {
	code mailbox.Code
	make func(t *testing.T, m *matrix, nonce []byte) []byte
}

// matrix is what the rows work with.
type matrix struct {
	operator, viewer, stranger *signer
	used                       []byte // a command that was executed
}

var list = map[string]string{"name": "nobody"}

// refusals has every refusal that a message can earn by itself.
var refusals = []refusal{
	{mailbox.Unsigned, func(t *testing.T, m *matrix, nonce []byte) []byte {
		request, err := mailbox.PublicRequest(m.operator.card, "instance.list", nil, nonce)
		if err != nil {
			t.Fatal(err)
		}
		return request
	}},
	{mailbox.BadSignature, func(t *testing.T, m *matrix, nonce []byte) []byte {
		command := m.operator.sign(t, nonce, "instance.stop", map[string]any{"name": "nobody", "graceSeconds": uint32(1)}, nil)
		return bytes.Replace(command, []byte("nobody"), []byte("victim"), 1)
	}},
	{mailbox.Replayed, func(t *testing.T, m *matrix, _ []byte) []byte { return m.used }},
	{mailbox.Expired, func(t *testing.T, m *matrix, nonce []byte) []byte {
		return m.operator.sign(t, nonce, "instance.list", nil, func(r *mailbox.Request) { r.NotAfter = time.Now().Add(-10 * time.Second) })
	}},
	{mailbox.NotYetValid, func(t *testing.T, m *matrix, nonce []byte) []byte {
		return m.operator.sign(t, nonce, "instance.list", nil, func(r *mailbox.Request) {
			r.NotBefore, r.NotAfter = time.Now().Add(time.Hour), time.Now().Add(2*time.Hour)
		})
	}},
	{mailbox.WrongCard, func(t *testing.T, m *matrix, nonce []byte) []byte {
		return m.operator.sign(t, nonce, "instance.list", nil, func(r *mailbox.Request) { r.Card = "00" + r.Card[2:] + "00" })
	}},
	{mailbox.WrongLifecycle, func(t *testing.T, m *matrix, nonce []byte) []byte {
		return m.operator.sign(t, nonce, "instance.list", nil, func(r *mailbox.Request) { r.Lifecycle = spec.Production })
	}},
	{mailbox.NoSuchNonce, func(t *testing.T, m *matrix, nonce []byte) []byte {
		other := slices.Clone(nonce)
		other[0] ^= 1
		return m.operator.sign(t, other, "instance.list", nil, nil)
	}},
	{mailbox.UnknownKey, func(t *testing.T, m *matrix, nonce []byte) []byte {
		return m.stranger.sign(t, nonce, "instance.list", nil, nil)
	}},
	{mailbox.NotAllowed, func(t *testing.T, m *matrix, nonce []byte) []byte {
		return m.viewer.sign(t, nonce, "instance.delete", list, nil)
	}},
	{mailbox.UnknownOp, func(t *testing.T, m *matrix, nonce []byte) []byte {
		return m.operator.sign(t, nonce, "instance.nonesuch", nil, nil)
	}},
	{mailbox.BadArgs, func(t *testing.T, m *matrix, nonce []byte) []byte {
		return m.operator.sign(t, nonce, "instance.show", map[string]string{"name": "../etc/passwd"}, nil)
	}},
	{mailbox.BadArgs, func(t *testing.T, m *matrix, nonce []byte) []byte {
		return m.operator.sign(t, nonce, "instance.show", map[string]string{"nmae": "demo"}, nil)
	}},
	{mailbox.Malformed, func(t *testing.T, m *matrix, nonce []byte) []byte {
		return append(m.operator.sign(t, nonce, "instance.list", nil, nil), 0)
	}},
	{mailbox.Malformed, func(*testing.T, *matrix, []byte) []byte { return []byte("GET / HTTP/1.1\r\n\r\n") }},
	{mailbox.Malformed, func(*testing.T, *matrix, []byte) []byte { return nil }},
	{mailbox.BadAlgorithm, func(t *testing.T, m *matrix, nonce []byte) []byte {
		// The protected header begins a5 … 01 27: algorithm -8, EdDSA. 26 is ES256, 24 nothing of ours.
		command := m.operator.sign(t, nonce, "instance.list", nil, nil)
		at := bytes.Index(command, []byte{0xa3, 0x01, 0x27})
		if at < 0 {
			t.Fatalf("no protected header in % x", command[:16])
		}
		command[at+2] = 0x24
		return command
	}},
}

// viewerConfig adds a key that may look and not touch.
func viewerConfig(t *testing.T, viewer crypto.Signer) func(*spec.CardConfig) {
	t.Helper()
	public, err := mailbox.MarshalPublicKey(viewer.Public())
	if err != nil {
		t.Fatal(err)
	}
	block, _ := pem.Decode(public)
	return func(c *spec.CardConfig) {
		c.Keys = append(c.Keys, spec.Key{ID: spec.KeyID(block.Bytes), Algorithm: "EdDSA", Roles: []string{"viewer"}, Public: string(public)})
		c.Policy.Roles["viewer"] = spec.Role{Ops: []string{"instance.list", "instance.show"}}
	}
}

func generate(t *testing.T) crypto.Signer {
	t.Helper()
	key, err := mailbox.GenerateKey(mailbox.EdDSA)
	if err != nil {
		t.Fatal(err)
	}
	return key
}

// answered is one message that a card refused.
type answered struct {
	door    string
	code    mailbox.Code
	receipt *mailbox.Receipt
	command audit.Digest
}

// TestRefusals sends what must be refused through every door: each gets its
// own code in a signed receipt, and its own record in the audit log, which is
// verified after the card has ended.
func TestRefusals(t *testing.T) {
	t.Parallel()
	viewer := generate(t)
	env := vm.StartLoopback(t, vm.Options{Configure: viewerConfig(t, viewer)})
	operatorKey, err := mailbox.ReadPrivateKey(env.Operator.KeyFile)
	if err != nil {
		t.Fatal(err)
	}
	card := env.Operator.Contact.CardID
	m := &matrix{newSigner(t, card, operatorKey), newSigner(t, card, viewer), newSigner(t, card, generate(t)), nil}
	var all []answered
	for name, dial := range doors(env) {
		t.Run(name, func(t *testing.T) {
			c := dial(t)
			c.Trust(cardKey(t, env))
			all = append(all, m.through(t, c, name)...)
		})
	}
	t.Run("viewer may look", func(t *testing.T) {
		c := doors(env)["tls"](t)
		c.Trust(cardKey(t, env))
		if r := exchange(t, c, env, m.viewer.sign(t, challenge(t, c), "instance.list", nil, nil)); r.Code != mailbox.OK {
			t.Errorf("a key with the right to look: %s %s", r.Code, r.Text)
		}
	})
	env.Server.Card.Stop(soon)
	checkAudit(t, env, all)
}

func cardKey(t *testing.T, env *vm.LoopbackEnv) crypto.PublicKey {
	t.Helper()
	key, err := mailbox.ReadPrivateKey(filepath.Join(env.Loopback.StateDir(), "identity.key"))
	if err != nil {
		t.Fatal(err)
	}
	return key.Public()
}

// challenge gets a nonce of the card.
func challenge(t *testing.T, c *door.Client) []byte {
	t.Helper()
	receipt, err := c.Request(t.Context(), mailbox.ChallengeOp, nil)
	if err != nil {
		t.Fatal(err)
	}
	var ch mailbox.Challenge
	if err := receipt.Decode(&ch); err != nil {
		t.Fatal(err)
	}
	return ch.Nonce
}

// exchange sends a message and verifies the receipt.
func exchange(t *testing.T, c *door.Client, env *vm.LoopbackEnv, message []byte) *mailbox.Receipt {
	t.Helper()
	u, err := c.Exchange(t.Context(), message)
	if err != nil {
		t.Fatal(err)
	}
	r, err := u.Verify(cardKey(t, env), sha256.Sum256(message))
	if err != nil {
		t.Fatal(err)
	}
	return r
}

// through takes all rows through one door. A nonce serves until a command uses
// it: refused commands use none.
func (m *matrix) through(t *testing.T, c *door.Client, name string) []answered {
	t.Helper()
	m.used = m.operator.sign(t, challenge(t, c), "instance.list", nil, nil)
	if _, err := c.Send(t.Context(), m.used); err != nil {
		t.Fatal("a good command:", err)
	}
	nonce := challenge(t, c)
	var all []answered
	for _, r := range refusals {
		message := r.make(t, m, nonce)
		receipt, err := c.Send(t.Context(), message)
		if a, ok := err.(*door.Answer); ok {
			receipt, err = a.Receipt, nil
		}
		if err != nil {
			t.Fatalf("%s: %v", r.code, err)
		}
		if receipt.Code != r.code {
			t.Errorf("got %s (%s), want %s", receipt.Code, receipt.Text, r.code)
		}
		all = append(all, answered{name, r.code, receipt, sha256.Sum256(message)})
	}
	if _, err := c.Send(t.Context(), m.operator.sign(t, nonce, "instance.list", nil, nil)); err != nil {
		t.Error("the nonce of the refused commands, in a good one:", err)
	}
	return all
}

// checkAudit verifies the chain, and finds the record of each refusal.
func checkAudit(t *testing.T, env *vm.LoopbackEnv, all []answered) {
	t.Helper()
	records := map[uint64]audit.Record{}
	chain := verifyAudit(t, filepath.Join(env.Loopback.StateDir(), "audit"), func(r audit.Record) { records[r.Index] = r })
	if len(chain.Unfinished) > 0 || chain.Torn > 0 {
		t.Errorf("after an orderly end: commands %d without an outcome, %d torn bytes", chain.Unfinished, chain.Torn)
	}
	if want := 3 * len(refusals); len(all) != want {
		t.Errorf("%d refusals, want %d", len(all), want)
	}
	for _, a := range all {
		r, ok := records[a.receipt.AuditIndex]
		if !ok || r.Kind != audit.KindRefused || r.Code != string(a.code) || r.Door != a.door || r.Command != a.command {
			t.Errorf("%s through %s: record %d is %+v", a.code, a.door, a.receipt.AuditIndex, r)
		}
	}
}

// verifyAudit verifies an audit log on its own, as anybody can who has a copy.
func verifyAudit(t *testing.T, dir string, visit func(audit.Record)) audit.Chain {
	t.Helper()
	segments, err := filepath.Glob(filepath.Join(dir, "audit-*.log"))
	if err != nil || len(segments) == 0 {
		t.Fatalf("no audit log in %s: %v", dir, err)
	}
	var parts []io.Reader
	for _, s := range segments { // sorted by name, and so by index
		text, err := os.ReadFile(s)
		if err != nil {
			t.Fatal(err)
		}
		parts = append(parts, bytes.NewReader(text))
	}
	chain, err := audit.Verify(io.MultiReader(parts...), func(r audit.Record) error { visit(r); return nil })
	if err != nil {
		t.Fatal("verify the audit log:", err)
	}
	return chain
}

// TestAuditTampering: a flipped bit in the log of a real run is found, and the
// card does not start over it.
func TestAuditTampering(t *testing.T) {
	t.Parallel()
	env := vm.StartLoopback(t, vm.Options{})
	env.Do(t, "instance.list", nil, nil)
	env.Server.Card.Stop(soon)
	segments, err := filepath.Glob(filepath.Join(env.Loopback.StateDir(), "audit", "audit-*.log"))
	if err != nil || len(segments) != 1 {
		t.Fatalf("segments %q, %v", segments, err)
	}
	text, err := os.ReadFile(segments[0])
	if err != nil {
		t.Fatal(err)
	}
	at := bytes.Index(text, []byte("instance.list"))
	if at < 0 {
		t.Fatal("the command is not in the log")
	}
	text[at] ^= 4
	if err := os.WriteFile(segments[0], text, 0o600); err != nil {
		t.Fatal(err)
	}
	if _, err := audit.Verify(bytes.NewReader(text), nil); err == nil {
		t.Error("an altered log verifies")
	}
	if err := env.Loopback.StartAgent(t.Context(), env.Operator); err == nil {
		t.Error("the card starts over an altered audit log")
	} else if !bytes.Contains([]byte(err.Error()), []byte("audit log is corrupt")) {
		t.Error(err)
	}
}
