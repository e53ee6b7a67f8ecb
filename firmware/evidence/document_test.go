// SPDX-License-Identifier: Apache-2.0

package evidence

import (
	"bytes"
	"errors"
	"os"
	"reflect"
	"strings"
	"testing"

	"github.com/google/go-tpm/tpm2"
)

func plain() Document {
	return Document{Version: Version, Nonce: testNonce, NoTPM: "none", ReceiptKey: []byte{1}}
}

func TestRoundTrip(t *testing.T) {
	t.Parallel()
	c := newCard(t)
	whole := c.document()
	c.seal(&whole)
	for name, want := range map[string]Document{"whole": whole, "plain": plain()} {
		data, err := want.Encode()
		if err != nil {
			t.Fatal(err)
		}
		got, err := Parse(data)
		if err != nil {
			t.Fatal(err)
		}
		if !reflect.DeepEqual(got.doc, want) {
			t.Errorf("%s: got %+v, want %+v", name, got.doc, want)
		}
	}
}

func TestParseRefuses(t *testing.T) {
	t.Parallel()
	good, err := plain().Encode()
	if err != nil {
		t.Fatal(err)
	}
	replace := func(old, with string) []byte { return bytes.Replace(good, []byte(old), []byte(with), 1) }
	for name, data := range map[string][]byte{
		"nothing":               nil,
		"a byte short":          good[:len(good)-1],
		"a byte more":           append(bytes.Clone(good), 0),
		"another version":       replace("\xa4\x01\x01", "\xa4\x01\x02"),
		"a longer encoding":     replace("\xa4\x01\x01", "\xa4\x01\x18\x01"),
		"an unknown key":        replace("\x08\x64none", "\x09\x64none"),
		"a key twice":           replace("\x04\x41\x01", "\x02\x41\x01"),
		"another order":         []byte("\xa4\x02\x50" + strings.Repeat("n", 16) + "\x01\x01\x04\x41\x01\x08\x64none"),
		"a short nonce":         []byte("\xa4\x01\x01\x02\x4f" + strings.Repeat("n", 15) + "\x04\x41\x01\x08\x64none"),
		"a long nonce":          []byte("\xa4\x01\x01\x02\x58\x41" + strings.Repeat("n", 65) + "\x04\x41\x01\x08\x64none"),
		"4 GiB of nonce":        []byte("\xa4\x01\x01\x02\x5a\xff\xff\xff\xff"),
		"an indefinite length":  append(append([]byte{0xbf}, good[1:]...), 0xff),
		"a tag":                 append([]byte{0xc1}, good...),
		"no reason":             []byte("\xa3\x01\x01\x02\x50" + strings.Repeat("n", 16) + "\x04\x41\x01"),
		"empty instead of none": []byte("\xa5\x01\x01\x02\x50" + strings.Repeat("n", 16) + "\x04\x41\x01\x05\x40\x08\x64none"),
		"too large":             make([]byte, MaxSize+1),
	} {
		if u, err := Parse(data); !errors.Is(err, ErrMalformed) || u != nil {
			t.Errorf("%s: Parse = %v, %v, want %v", name, u, err, ErrMalformed)
		}
	}
	if _, err := Parse([]byte("\xa4\x01\x01\x02\x50" + strings.Repeat("n", 16) + "\x04\x41\x01\x08\x64none")); err != nil {
		t.Errorf("the table's valid document is refused: %v", err)
	}
}

func TestEncodeRefuses(t *testing.T) {
	t.Parallel()
	for name, change := range map[string]func(*Document){
		"version":             func(d *Document) { d.Version = 2 },
		"nonce":               func(d *Document) { d.Nonce = nil },
		"a TPM and none":      func(d *Document) { d.TPM = &TPM{} },
		"neither":             func(d *Document) { d.NoTPM = "" },
		"a large boot report": func(d *Document) { d.BootReport = make([]byte, MaxBootReport+1) },
		"pcr 24":              func(d *Document) { d.NoTPM, d.TPM = "", &TPM{PCRs: map[uint64][]byte{24: nil}} },
		"a large certificate": func(d *Document) { d.NoTPM, d.TPM = "", &TPM{Certificate: make([]byte, maxCert+1)} },
		"a large value":       func(d *Document) { d.NoTPM, d.TPM = "", &TPM{PCRs: map[uint64][]byte{0: make([]byte, 33)}} },
	} {
		d := plain()
		change(&d)
		if data, err := d.Encode(); !errors.Is(err, ErrMalformed) || data != nil {
			t.Errorf("%s: Encode = %d bytes, %v, want %v", name, len(data), err, ErrMalformed)
		}
	}
}

// The binding is what the package comment says, and each part changes it.
func TestBinding(t *testing.T) {
	t.Parallel()
	seen := map[[32]byte]string{}
	for name, change := range map[string]func(*Document){
		"as it is":        func(*Document) {},
		"nonce":           func(d *Document) { d.Nonce = []byte("x") },
		"receipt key":     func(d *Document) { d.ReceiptKey = []byte("x") },
		"endorsement key": func(d *Document) { d.TPM = &TPM{EndorsementKey: []byte("x")} },
		"boot report":     func(d *Document) { d.BootReport = []byte("x") },
	} {
		d := plain()
		change(&d)
		if other, ok := seen[d.Binding()]; ok {
			t.Errorf("%s and %s have the same binding", name, other)
		}
		seen[d.Binding()] = name
	}
}

// FuzzAppraise: whatever comes in is a document that parses or not, and no
// document that is not the card's passes.
func FuzzAppraise(f *testing.F) {
	data, err := os.ReadFile("testdata/aavmf-uki.cbor")
	if err != nil {
		f.Fatal(err)
	}
	f.Add(data)
	f.Add([]byte("\xa4\x01\x01\x02\x50" + strings.Repeat("n", 16) + "\x04\x41\x01\x08\x64none"))
	expect := Expectations{
		Nonce:     bytes.Repeat([]byte{0x5a}, 32),
		Registers: map[string]int{"init": 8, "module": 8, "config": 14, "lifecycle": 14},
		Exempt:    []string{"ak.identity", "card.identity", "ek.certificate", "pcr.reference"},
	}
	f.Fuzz(func(t *testing.T, in []byte) {
		u, err := Parse(in)
		if (err == nil) != (u != nil) {
			t.Fatalf("Parse = %v, %v", u, err)
		}
		if u == nil {
			return
		}
		if again, err := u.doc.Encode(); err != nil || !bytes.Equal(again, in) {
			t.Fatalf("encoded again: %x, %v", again, err)
		}
		r := Appraise(u, expect)
		if _, err := r.Verified(); (err == nil) != r.Passed {
			t.Fatalf("Verified = %v, Passed = %v", err, r.Passed)
		}
		if r.Passed && !bytes.Equal(u.doc.CardLog, mustParse(t, data).doc.CardLog) {
			t.Fatalf("a document of nobody passes: %x", in)
		}
	})
}

func mustParse(t *testing.T, data []byte) *Unverified {
	t.Helper()
	u, err := Parse(data)
	if err != nil {
		t.Fatal(err)
	}
	return u
}

// FuzzStatement: TPM structures from a hostile document.
func FuzzStatement(f *testing.F) {
	data, err := os.ReadFile("testdata/aavmf-uki.cbor")
	if err != nil {
		f.Fatal(err)
	}
	u, err := Parse(data)
	if err != nil {
		f.Fatal(err)
	}
	part := u.doc.TPM
	f.Add(part.AttestationKey, part.Quote.Signature, part.Quote.Statement)
	f.Add(part.Receipt.Public, part.Receipt.Certification.Signature, part.Receipt.Certification.Statement)
	f.Add(part.EndorsementKey, part.Quote.Signature, part.Quote.Statement)
	f.Fuzz(func(t *testing.T, public, signature, statement []byte) {
		k, err := parseKey(public)
		if (err == nil) != (k != nil) {
			t.Fatalf("parseKey = %v, %v", k, err)
		}
		if err := sameKey(nil, public); err == nil {
			t.Fatal("no key is certified")
		}
		if k != nil {
			attest, err := k.statement(Signed{statement, signature})
			if (err == nil) != (attest != nil) {
				t.Fatalf("statement = %v, %v", attest, err)
			}
		}
		if attest, err := unmarshal[tpm2.TPMSAttest](statement); (err == nil) != (attest != nil) {
			t.Fatalf("unmarshal = %v, %v", attest, err)
		}
		if sig, err := unmarshal[tpm2.TPMTSignature](signature); (err == nil) != (sig != nil) {
			t.Fatalf("unmarshal = %v, %v", sig, err)
		}
	})
}
