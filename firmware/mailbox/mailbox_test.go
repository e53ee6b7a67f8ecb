// SPDX-License-Identifier: Apache-2.0

package mailbox

import (
	"bytes"
	"context"
	"crypto/sha256"
	"errors"
	"strings"
	"testing"

	"github.com/davit-dpu/davit/firmware/audit"
	"github.com/davit-dpu/davit/firmware/spec"
)

func TestCommandIsExecutedAndRecorded(t *testing.T) {
	t.Parallel()
	for _, alg := range []Algorithm{EdDSA, ES256, ES384} {
		f := newFixture(t, nil)
		key := mustKey(t, alg)
		ring, err := NewKeyring([]spec.Key{ringEntry(t, "k", key, "operator")}, testPolicy)
		if err != nil {
			t.Fatal(err)
		}
		f.box.cfg.Keyring = ring
		command := f.signAs(key, "k", f.request(nil))
		before := len(f.audit.all())

		receipt, err := f.box.Submit(t.Context(), Door{Name: "test", Binding: []byte("spki hash")}, command)
		if err != nil {
			t.Fatal(err)
		}
		r := f.verify(receipt, command)
		var result struct{ Stopped, By string }
		if err := r.Decode(&result); err != nil || r.Code != OK || r.Err() != nil {
			t.Fatalf("%s: %s %q, %v", alg, r.Code, r.Text, err)
		}
		if string(r.Binding) != "spki hash" || !r.Time.Equal(noon) {
			t.Errorf("%s: receipt %+v", alg, r)
		}
		records := f.audit.all()[before:]
		if len(records) != 2 || r.AuditIndex != uint64(before+1) {
			t.Fatalf("%s: %d records, receipt says %d", alg, len(records), r.AuditIndex)
		}
		want := audit.Entry{Time: noon, Kind: audit.KindAccepted, Command: sha256.Sum256(command), Op: "instance.stop", Key: "k", Door: "test", Code: "accepted", Reason: "alice: maintenance"}
		if records[0] != want {
			t.Errorf("%s: accepted record %+v, want %+v", alg, records[0], want)
		}
		want.Kind, want.Code, want.Reason, want.Ref, want.Receipt = audit.KindDone, "ok", "", uint64(before+1), sha256.Sum256(receipt)
		if records[1] != want {
			t.Errorf("%s: done record %+v, want %+v", alg, records[1], want)
		}
	}
}

func TestResultDecodes(t *testing.T) {
	t.Parallel()
	f := newFixture(t, nil)
	r := f.submit(f.sign(f.request(nil)))
	var result struct {
		Stopped string `cbor:"stopped"`
	}
	if err := r.Decode(&result); err != nil || result.Stopped != "web" {
		t.Errorf("result %+v, %v; want web, and the field it does not know ignored", result, err)
	}
	if err := r.Decode(new(int)); err == nil {
		t.Error("a map decodes into an int")
	}
}

func TestOpsThatFail(t *testing.T) {
	t.Parallel()
	for op, text := range map[string]string{"instance.fail": "no such instance", "instance.panic": "internal error"} {
		f := newFixture(t, nil)
		r := f.submit(f.sign(f.request(func(r *Request) { r.Op, r.Args = op, nil })))
		if r.Code != Failed || r.Text != text || f.executed.Load() != 1 {
			t.Errorf("%s: %s %q, executed %d times", op, r.Code, r.Text, f.executed.Load())
		}
		records := f.audit.all()
		if last := records[len(records)-1]; last.Kind != audit.KindDone || last.Code != "failed" || last.Reason != text {
			t.Errorf("%s: record %+v", op, last)
		}
		if r := f.submit(f.sign(f.request(nil))); r.Code != OK {
			t.Errorf("after %s the mailbox answers %s", op, r.Code)
		}
	}
}

func TestResultsThatCannotBeSent(t *testing.T) {
	t.Parallel()
	for name, value := range map[string]any{
		"too large": make([]byte, MaxReceipt), "a float": 1.5, "a function": func() {}, "text not UTF-8": "\xff",
	} {
		f := newFixture(t, func(c *Config) {
			c.Ops = append(c.Ops, Handle("instance.odd", func(context.Context, *Command, struct{}) (any, error) { return value, nil }))
		})
		r := f.submit(f.sign(f.request(func(r *Request) { r.Op, r.Args = "instance.odd", nil })))
		if r.Code != Failed || !strings.Contains(r.Text, "executed, but") {
			t.Errorf("%s: %s %q", name, r.Code, r.Text)
		}
	}
}

func TestPublicRequest(t *testing.T) {
	t.Parallel()
	f := newFixture(t, nil)
	r := f.submit(f.public("status", nil))
	if r.Code != OK || string(r.Nonce) != "fresh" {
		t.Fatalf("receipt %+v", r)
	}
	records := f.audit.all()
	if len(records) != 1 || records[0].Kind != audit.KindPublic || records[0].Op != "status" || r.AuditIndex != 1 {
		t.Errorf("records %+v", records)
	}
	// Signed it works as well, for every key, and is recorded as a command.
	r = f.submit(f.signAs(f.viewer, "viewer", f.request(func(r *Request) { r.Op, r.Args = "status", nil })))
	records = f.audit.all()
	if r.Code != OK || records[len(records)-1].Kind != audit.KindDone {
		t.Errorf("signed: %s, record %+v", r.Code, records[len(records)-1])
	}
}

func TestNothingIsExecutedWithoutARecord(t *testing.T) {
	t.Parallel()
	f := newFixture(t, nil)
	command := f.sign(f.request(nil))
	f.audit.fail(errors.New("disk full"))
	if r := f.submit(command); r.Code != AuditFailed || f.executed.Load() != 0 || r.AuditIndex != 0 {
		t.Errorf("%s with record %d, executed %d times", r.Code, r.AuditIndex, f.executed.Load())
	}
	if r := f.submit(f.public("status", nil)); r.Code != OK {
		t.Errorf("status of a card with a broken log: %s", r.Code)
	}
	f.audit.fail(nil)
	if r := f.submit(command); r.Code != Replayed {
		t.Errorf("the same command later: %s, want %s", r.Code, Replayed)
	}
	if r := f.submit(f.sign(f.request(nil))); r.Code != OK {
		t.Errorf("a new command: %s", r.Code)
	}
}

func TestBusyKeepsTheNonce(t *testing.T) {
	t.Parallel()
	started, release := make(chan struct{}), make(chan struct{})
	f := newFixture(t, func(c *Config) {
		c.Running = 1
		c.Ops = append(c.Ops, Handle("instance.slow", func(context.Context, *Command, struct{}) (any, error) {
			close(started)
			<-release
			return nil, nil
		}))
	})
	slow := f.sign(f.request(func(r *Request) { r.Op, r.Args = "instance.slow", nil }))
	command := f.sign(f.request(nil))
	done := make(chan *Receipt)
	go func() { done <- f.submit(slow) }()
	<-started
	if r := f.submit(command); r.Code != Busy {
		t.Errorf("while another runs: %s, want %s", r.Code, Busy)
	}
	records := f.audit.all()
	if last := records[len(records)-1]; last.Kind != audit.KindRefused || last.Code != "busy" || last.Key != "operator" {
		t.Errorf("record %+v", last)
	}
	if r := f.submit(f.public("status", nil)); r.Code != OK {
		t.Errorf("status meanwhile: %s", r.Code)
	}
	close(release)
	if r := <-done; r.Code != OK {
		t.Errorf("slow command: %s", r.Code)
	}
	if r := f.submit(command); r.Code != OK {
		t.Errorf("the same command once there is room: %s", r.Code)
	}
}

func TestConfigIsChecked(t *testing.T) {
	t.Parallel()
	handler := func(context.Context, *Command) (any, error) { return nil, nil }
	stream := func(context.Context, *Command, Stream) error { return nil }
	good := newFixture(t, nil).box.cfg
	for name, change := range map[string]func(*Config){
		"no card":             func(c *Config) { c.Card = "" },
		"long card":           func(c *Config) { c.Card = strings.Repeat("c", maxCard+1) },
		"no lifecycle":        func(c *Config) { c.Lifecycle = "" },
		"no keyring":          func(c *Config) { c.Keyring = nil },
		"no receipt key":      func(c *Config) { c.Receipt = nil },
		"no audit":            func(c *Config) { c.Audit = nil },
		"no log":              func(c *Config) { c.Log = nil },
		"op without name":     func(c *Config) { c.Ops = []Op{{Handle: handler}} },
		"op twice":            func(c *Config) { c.Ops = []Op{{Name: "a", Handle: handler}, {Name: "a", Handle: handler}} },
		"challenge again":     func(c *Config) { c.Ops = []Op{{Name: ChallengeOp, Handle: handler}} },
		"op without handler":  func(c *Config) { c.Ops = []Op{{Name: "a"}} },
		"op with two":         func(c *Config) { c.Ops = []Op{{Name: "a", Handle: handler, Stream: stream}} },
		"op a public stream":  func(c *Config) { c.Ops = []Op{{Name: "a", Public: true, Stream: stream}} },
		"op with capitals":    func(c *Config) { c.Ops = []Op{{Name: "A", Handle: handler}} },
		"op with a long name": func(c *Config) { c.Ops = []Op{{Name: strings.Repeat("a", maxOp+1), Handle: handler}} },
	} {
		cfg := good
		change(&cfg)
		if m, err := New(cfg); err == nil || m != nil {
			t.Errorf("%s: accepted", name)
		}
	}
}

func TestRealAuditLog(t *testing.T) {
	t.Parallel()
	log := openAudit(t)
	f := newFixture(t, func(c *Config) { c.Audit = log })
	command := f.sign(f.request(nil))
	r := f.submit(command)
	var b bytes.Buffer
	if err := log.Export(&b); err != nil {
		t.Fatal(err)
	}
	found := 0
	chain, err := audit.Verify(&b, func(rec audit.Record) error {
		if rec.Command == sha256.Sum256(command) && (rec.Index == r.AuditIndex || rec.Ref == r.AuditIndex) {
			found++
		}
		return nil
	})
	if err != nil || found != 2 || len(chain.Unfinished) != 0 {
		t.Errorf("%d records of the command, chain %+v, %v", found, chain, err)
	}
}
