// SPDX-License-Identifier: Apache-2.0

package mailbox

import (
	"crypto/sha256"
	"errors"
	"slices"
	"testing"
	"time"
)

func TestReceiptRoundTrip(t *testing.T) {
	t.Parallel()
	for _, want := range []*Receipt{
		{Card: "c", Command: Digest{1}, Code: OK, Time: time.UnixMilli(0).UTC()},
		{Card: "c", Command: Digest{1}, Code: Failed, Text: "t", Result: []byte{0xa1, 0x01, 0xf6}, Time: noon, AuditIndex: 1 << 60, Nonce: []byte("n"), Binding: []byte("b")},
	} {
		body, err := encodeReceipt(want)
		if err != nil {
			t.Fatal(err)
		}
		got, err := decodeReceipt(body)
		if err != nil {
			t.Fatal(err)
		}
		again, err := encodeReceipt(got)
		if err != nil || !slices.Equal(again, body) || got.Code != want.Code || !got.Time.Equal(want.Time) || got.AuditIndex != want.AuditIndex {
			t.Errorf("got %+v, want %+v (%v)", got, want, err)
		}
	}
}

func TestReceiptsThatDoNotHold(t *testing.T) {
	t.Parallel()
	f := newFixture(t, nil)
	message := f.public("status", nil)
	receipt, err := f.box.Submit(t.Context(), Door{Name: "test"}, message)
	if err != nil {
		t.Fatal(err)
	}
	digest := sha256.Sum256(message)
	u, err := ParseReceipt(receipt)
	if err != nil {
		t.Fatal(err)
	}
	if code, result := u.Claim(); code != OK || len(result) == 0 {
		t.Errorf("claim %s %x", code, result)
	}
	if r, err := u.Verify(f.operator.Public(), digest); err == nil || r != nil {
		t.Error("verifies with a key of another kind")
	}
	if r, err := u.Verify(mustKey(t, ES256).Public(), digest); !errors.Is(err, ErrReceipt) || r != nil {
		t.Errorf("another card's key: %v", err)
	}
	if r, err := u.Verify(f.receipt.Public(), sha256.Sum256(nil)); !errors.Is(err, ErrReceipt) || r != nil {
		t.Errorf("another command: %v", err)
	}
	for i := range receipt {
		u, err := ParseReceipt(flip(receipt, i))
		if err != nil {
			continue
		}
		// The key id is a hint only; everything else must hold.
		if r, err := u.Verify(f.receipt.Public(), digest); err == nil || r != nil {
			t.Fatalf("byte %d altered: verifies", i)
		}
	}
	if _, err := ParseReceipt(f.sign(f.request(nil))); err == nil {
		t.Error("a command parses as a receipt")
	}
	if _, err := ParseReceipt(make([]byte, MaxReceipt+1)); err == nil {
		t.Error("a receipt of any size parses")
	}
}

func FuzzParseReceipt(f *testing.F) {
	x := newFixture(f, nil)
	receipt, err := x.box.Submit(f.Context(), Door{Name: "test"}, x.public("status", nil))
	if err != nil {
		f.Fatal(err)
	}
	f.Add(receipt)
	f.Fuzz(func(t *testing.T, data []byte) {
		u, err := ParseReceipt(data)
		if (err != nil) != (u == nil) {
			t.Fatalf("value %v with error %v", u, err)
		}
	})
}
