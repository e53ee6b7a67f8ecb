// SPDX-License-Identifier: Apache-2.0

package mailbox

import (
	"bytes"
	"context"
	"crypto"
	"crypto/sha256"
	"errors"
	"slices"
	"testing"
	"time"

	"github.com/fxamacker/cbor/v2"
	"github.com/veraison/go-cose"

	"github.com/davit-dpu/davit/firmware/audit"
	"github.com/davit-dpu/davit/firmware/spec"
)

// raw signs any headers and payload, as a hostile key holder could.
func raw(t testing.TB, key crypto.Signer, headers cose.Headers, body []byte) []byte {
	t.Helper()
	signer, err := newSigner(key)
	if err != nil {
		t.Fatal(err)
	}
	out, err := cose.Sign1(nil, signer, headers, body, nil)
	if err != nil {
		t.Fatal(err)
	}
	return out
}

func header(id string, more cose.ProtectedHeader) cose.Headers {
	h := cose.ProtectedHeader{cose.HeaderLabelContentType: CommandType, cose.HeaderLabelKeyID: []byte(id)}
	for k, v := range more {
		h[k] = v
	}
	return cose.Headers{Protected: h}
}

// body is the payload of a good command as a map that can be changed.
func (f *fixture) body(change func(map[int]any)) []byte {
	f.t.Helper()
	r := f.request(nil)
	m := map[int]any{
		1: 1, 2: r.Card, 3: r.Op, 4: map[string]any{"name": "web"}, 5: r.Nonce,
		6: r.NotBefore.Unix(), 7: r.NotAfter.Unix(), 8: "alice", 9: "maintenance", 10: "production",
	}
	if change != nil {
		change(m)
	}
	b, err := encode(m)
	if err != nil {
		f.t.Fatal(err)
	}
	return b
}

func (f *fixture) signBody(body []byte) []byte {
	return raw(f.t, f.operator, header("operator", nil), body)
}

// flip changes one bit.
func flip(b []byte, at int) []byte {
	b = slices.Clone(b)
	b[at] ^= 1
	return b
}

type refusalCase struct {
	name string
	code Code
	make func(f *fixture) []byte
	key  string // id of the key that the record names: empty before verification
}

func with(change func(*Request)) func(*fixture) []byte {
	return func(f *fixture) []byte { return f.sign(f.request(change)) }
}

func bodyWith(change func(map[int]any)) func(*fixture) []byte {
	return func(f *fixture) []byte { return f.signBody(f.body(change)) }
}

func formCases() []refusalCase {
	return []refusalCase{
		{"empty", Malformed, func(*fixture) []byte { return nil }, ""},
		{"garbage", Malformed, func(*fixture) []byte { return []byte("GET / HTTP/1.1\r\n") }, ""},
		{"only the tag", Malformed, func(*fixture) []byte { return []byte{tagSign1} }, ""},
		{"too large", TooLarge, func(*fixture) []byte { return make([]byte, MaxCommand+1) }, ""},
		{"too large but signed", TooLarge, func(f *fixture) []byte {
			return raw(f.t, f.operator, header("operator", nil), make([]byte, MaxCommand))
		}, ""},
		{"trailing byte", Malformed, func(f *fixture) []byte { return append(f.sign(f.request(nil)), 0) }, ""},
		{"cut short", Malformed, func(f *fixture) []byte { c := f.sign(f.request(nil)); return c[:len(c)-1] }, ""},
		{"untagged", Malformed, func(f *fixture) []byte { return f.sign(f.request(nil))[1:] }, ""},
		{"unknown critical header", Malformed, func(f *fixture) []byte {
			h := header("operator", cose.ProtectedHeader{cose.HeaderLabelCritical: []any{int64(100)}, int64(100): int64(1)})
			return raw(f.t, f.operator, h, f.body(nil))
		}, ""},
		{"unknown header", Malformed, func(f *fixture) []byte {
			return raw(f.t, f.operator, header("operator", cose.ProtectedHeader{int64(100): int64(1)}), f.body(nil))
		}, ""},
		{"unprotected header", Malformed, func(f *fixture) []byte {
			h := header("operator", nil)
			h.Unprotected = cose.UnprotectedHeader{cose.HeaderLabelKeyID: []byte("viewer")}
			return raw(f.t, f.operator, h, f.body(nil))
		}, ""},
		{"receipt as command", Malformed, func(f *fixture) []byte {
			return raw(f.t, f.operator, header("operator", cose.ProtectedHeader{cose.HeaderLabelContentType: ReceiptType}), f.body(nil))
		}, ""},
		{"key id not printable", Malformed, func(f *fixture) []byte {
			return raw(f.t, f.operator, header("opera\ntor", nil), f.body(nil))
		}, ""},
		{"algorithm that nobody has", BadAlgorithm, func(f *fixture) []byte {
			return bytes.Replace(f.sign(f.request(nil)), []byte{0xa3, 0x01, 0x27}, []byte{0xa3, 0x01, 0x23}, 1)
		}, ""},
		{"unknown key", UnknownKey, func(f *fixture) []byte {
			return f.signAs(f.operator, "nobody", f.request(nil))
		}, ""},
	}
}

func signatureCases() []refusalCase {
	return []refusalCase{
		{"signed by another key", BadSignature, func(f *fixture) []byte {
			return f.signAs(mustKey(f.t, EdDSA), "operator", f.request(nil))
		}, ""},
		{"key of another algorithm", BadSignature, func(f *fixture) []byte {
			return f.signAs(f.viewer, "operator", f.request(nil))
		}, ""},
		{"signature altered", BadSignature, func(f *fixture) []byte {
			c := f.sign(f.request(nil))
			return flip(c, len(c)-1)
		}, ""},
		{"payload altered", BadSignature, func(f *fixture) []byte {
			c := f.sign(f.request(nil))
			return flip(c, bytes.Index(c, []byte("web")))
		}, ""},
		{"no permission and bad signature", BadSignature, func(f *fixture) []byte {
			return f.signAs(mustKey(f.t, ES384), "viewer", f.request(nil))
		}, ""},
		{"payload is text", Malformed, func(f *fixture) []byte { return f.signBody([]byte("hello")) }, "operator"},
		{"payload with a null", Malformed, bodyWith(func(m map[int]any) { m[8] = nil }), "operator"},
		{"payload with an unknown field", Malformed, bodyWith(func(m map[int]any) { m[11] = 1 }), "operator"},
		{"payload without nonce", Malformed, bodyWith(func(m map[int]any) { delete(m, 5) }), "operator"},
		{"payload without lifecycle", Malformed, bodyWith(func(m map[int]any) { delete(m, 10) }), "operator"},
		{"payload with nonce as list", Malformed, bodyWith(func(m map[int]any) { m[5] = make([]int, 32) }), "operator"},
		{"payload of version 2", Malformed, bodyWith(func(m map[int]any) { m[1] = 2 }), "operator"},
		{"window upside down", Malformed, bodyWith(func(m map[int]any) { m[7] = 0 }), "operator"},
		{"op with a space", Malformed, bodyWith(func(m map[int]any) { m[3] = "instance stop" }), "operator"},
		{"args as list", Malformed, bodyWith(func(m map[int]any) { m[4] = []int{1} }), "operator"},
		{"payload with repeated key", Malformed, func(f *fixture) []byte {
			b := f.body(nil)
			return f.signBody(slices.Concat([]byte{b[0] + 1}, b[1:3], b[1:]))
		}, "operator"},
		{"payload with trailing byte", Malformed, func(f *fixture) []byte { return f.signBody(append(f.body(nil), 0)) }, "operator"},
		{"payload with a long number", Malformed, func(f *fixture) []byte {
			b := f.body(nil)
			return f.signBody(slices.Concat(b[:1], []byte{0x18, 0x01}, b[2:]))
		}, "operator"},
	}
}

func placeCases() []refusalCase {
	return []refusalCase{
		{"another card", WrongCard, with(func(r *Request) { r.Card = "card-2" }), "operator"},
		{"another lifecycle", WrongLifecycle, with(func(r *Request) { r.Lifecycle = spec.Development }), "operator"},
		{"too early", NotYetValid, with(func(r *Request) { r.NotBefore, r.NotAfter = noon.Add(time.Second), noon.Add(time.Hour) }), "operator"},
		{"too late", Expired, with(func(r *Request) { r.NotBefore, r.NotAfter = noon.Add(-time.Hour), noon.Add(-time.Second) }), "operator"},
		{"invented nonce", NoSuchNonce, with(func(r *Request) { r.Nonce = make([]byte, NonceSize) }), "operator"},
		{"altered nonce", NoSuchNonce, with(func(r *Request) { r.Nonce = flip(r.Nonce, 0) }), "operator"},
		{"nonce of another card", NoSuchNonce, func(f *fixture) []byte {
			other := newFixture(f.t, nil).nonce()
			return f.sign(f.request(func(r *Request) { r.Nonce = other }))
		}, "operator"},
		{"stale nonce", NoSuchNonce, func(f *fixture) []byte {
			nonce := f.nonce()
			f.clock.advance(DefaultNonceTTL + time.Second)
			return f.sign(f.request(func(r *Request) { r.Nonce = nonce }))
		}, "operator"},
		{"the same command again", Replayed, func(f *fixture) []byte {
			c := f.sign(f.request(nil))
			f.submit(c)
			return c
		}, "operator"},
		{"the same nonce again", Replayed, func(f *fixture) []byte {
			r := f.request(nil)
			f.submit(f.sign(r))
			r.Reason = "another"
			return f.sign(r)
		}, "operator"},
		{"op not allowed", NotAllowed, func(f *fixture) []byte {
			return f.signAs(f.viewer, "viewer", f.request(nil))
		}, "viewer"},
		{"op not allowed and not there", NotAllowed, with(func(r *Request) { r.Op = "no.such" }), "operator"},
		{"prefix is not the name", NotAllowed, with(func(r *Request) { r.Op = "instance" }), "operator"},
		{"op not there", UnknownOp, with(func(r *Request) { r.Op = "gone" }), "operator"},
		{"args with unknown field", BadArgs, with(func(r *Request) { r.Args = map[string]any{"name": "web", "now": true} }), "operator"},
		{"args with other case", BadArgs, with(func(r *Request) { r.Args = map[string]any{"Name": "web"} }), "operator"},
		{"args of another type", BadArgs, with(func(r *Request) { r.Args = map[string]any{"name": 1} }), "operator"},
		{"args refused by Validate", BadArgs, with(func(r *Request) { r.Args = nil }), "operator"},
		{"args where none are taken", BadArgs, with(func(r *Request) { r.Op = "instance.bare" }), "operator"},
		{"stream where none can be", NoStream, func(f *fixture) []byte {
			return f.signAs(f.viewer, "viewer", f.request(func(r *Request) { r.Op, r.Args = "log.tail", nil }))
		}, "viewer"},
	}
}

func plainCases() []refusalCase {
	return []refusalCase{
		{"unsigned", Unsigned, func(f *fixture) []byte { return f.public("instance.stop", stopArgs{Name: "web"}) }, ""},
		{"unsigned and not there", Unsigned, func(f *fixture) []byte { return f.public("no.such", nil) }, ""},
		{"public for another card", WrongCard, func(f *fixture) []byte {
			b, err := PublicRequest("card-2", "status", nil, nil)
			if err != nil {
				f.t.Fatal(err)
			}
			return b
		}, ""},
		{"public with args", BadArgs, func(f *fixture) []byte { return f.public("status", map[string]any{"x": 1}) }, ""},
		{"request with unknown field", Malformed, func(f *fixture) []byte {
			b, err := encode(map[int]any{0: RequestType, 1: 1, 3: "status", 6: 1})
			if err != nil {
				f.t.Fatal(err)
			}
			return b
		}, ""},
		{"request without content type", Malformed, func(f *fixture) []byte {
			b, err := encode(map[int]any{1: 1, 3: "status"})
			if err != nil {
				f.t.Fatal(err)
			}
			return b
		}, ""},
		{"request with a long nonce", Malformed, func(f *fixture) []byte {
			b, err := encode(map[int]any{0: RequestType, 1: 1, 3: "status", 5: make([]byte, maxClientNonce+1)})
			if err != nil {
				f.t.Fatal(err)
			}
			return b
		}, ""},
	}
}

// TestRefusalMatrix: each refusal has exactly its code, executes nothing, is
// signed and about exactly these bytes, and leaves a record.
func TestRefusalMatrix(t *testing.T) {
	t.Parallel()
	seen := map[Code]bool{Busy: true, AuditFailed: true} // have tests of their own
	for _, tt := range slices.Concat(formCases(), signatureCases(), placeCases(), plainCases()) {
		seen[tt.code] = true
		t.Run(tt.name, func(t *testing.T) {
			t.Parallel()
			f := newFixture(t, nil)
			message := tt.make(f)
			before, executed := len(f.audit.all()), f.executed.Load()
			r := f.submit(message)
			if r.Code != tt.code {
				t.Fatalf("code %s (%s), want %s", r.Code, r.Text, tt.code)
			}
			if got := f.executed.Load(); got != executed {
				t.Fatal("the op was executed")
			}
			if len(r.Result) != 0 {
				t.Errorf("a refusal with a result: %x", r.Result)
			}
			var refusal *Refusal
			if !errors.As(r.Err(), &refusal) || !errors.Is(r.Err(), &Refusal{Code: tt.code}) {
				t.Errorf("Err gives %v", r.Err())
			}
			records := f.audit.all()
			if len(records) != before+1 || r.AuditIndex != uint64(len(records)) {
				t.Fatalf("%d new records, receipt says record %d", len(records)-before, r.AuditIndex)
			}
			want := audit.Entry{Kind: audit.KindRefused, Code: string(tt.code), Command: sha256.Sum256(message), Door: "test", Key: tt.key}
			got := records[len(records)-1]
			if got.Kind != want.Kind || got.Code != want.Code || got.Command != want.Command || got.Door != want.Door || got.Key != want.Key {
				t.Errorf("record %+v, want %+v", got, want)
			}
		})
	}
	for _, code := range Codes() {
		if code != OK && code != Accepted && code != Failed && !seen[code] {
			t.Errorf("no test for %s", code)
		}
	}
}

// Every single altered bit of a command is refused, without execution.
func TestEveryAlteredBitIsRefused(t *testing.T) {
	t.Parallel()
	f := newFixture(t, nil)
	command := f.sign(f.request(nil))
	for i := range command {
		for bit := range 8 {
			altered := slices.Clone(command)
			altered[i] ^= 1 << bit
			if _, _, err := f.box.check(&attempt{}, altered); err == nil {
				t.Fatalf("byte %d bit %d altered: passes", i, bit)
			}
		}
	}
	if r := f.submit(command); r.Code != OK {
		t.Fatalf("the command itself: %s %s", r.Code, r.Text)
	}
}

// A key that the policy denies must not learn from the arguments' check
// whether they would be right, nor an unknown op from an unsigned request.
func TestRefusalsTellNothing(t *testing.T) {
	t.Parallel()
	f := newFixture(t, nil)
	bad := f.submit(f.signAs(f.viewer, "viewer", f.request(func(r *Request) { r.Args = nil })))
	good := f.submit(f.signAs(f.viewer, "viewer", f.request(nil)))
	if bad.Code != good.Code || bad.Text != good.Text {
		t.Errorf("arguments show: %s %q and %s %q", bad.Code, bad.Text, good.Code, good.Text)
	}
	there := f.submit(f.public("instance.stop", nil))
	absent := f.submit(f.public("no.such", nil))
	if there.Code != absent.Code || there.Text != absent.Text {
		t.Errorf("ops show: %q and %q", there.Text, absent.Text)
	}
}

// FuzzSubmit: whatever is not the command itself is never executed.
func FuzzSubmit(f *testing.F) {
	x := newFixture(f, nil)
	command := x.sign(x.request(nil))
	f.Add(command)
	f.Add(x.public("status", nil))
	f.Add(x.public("instance.stop", stopArgs{Name: "web"}))
	f.Fuzz(func(t *testing.T, message []byte) {
		receipt, err := x.box.Submit(context.Background(), Door{Name: "fuzz"}, message)
		if (err != nil) == (receipt != nil) || err != nil {
			t.Fatalf("receipt %x with error %v", receipt, err)
		}
		if x.executed.Load() > 0 && !bytes.Equal(message, command) {
			t.Fatalf("executed %x", message)
		}
		x.executed.Store(0)
	})
}

// FuzzParse: err <=> nil value, and what parses is one form only.
func FuzzParse(f *testing.F) {
	x := newFixture(f, nil)
	f.Add(x.sign(x.request(nil)))
	f.Add(x.signAs(x.viewer, "viewer", x.request(nil)))
	f.Fuzz(func(t *testing.T, message []byte) {
		u, err := Parse(message)
		if (err != nil) != (u == nil) {
			t.Fatalf("value %v with error %v", u, err)
		}
		if err != nil {
			var r *Refusal
			if !errors.As(err, &r) {
				t.Fatalf("%v is no refusal", err)
			}
			return
		}
		// A second reading of COSE: the plain CBOR array.
		var parts []cbor.RawMessage
		if err := cbor.Unmarshal(message[1:], &parts); err != nil || len(parts) != 4 || parts[1][0] != 0xa0 {
			t.Fatalf("%x parses, but is %d parts (%v)", message, len(parts), err)
		}
	})
}
