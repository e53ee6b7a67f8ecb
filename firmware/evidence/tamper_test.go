// SPDX-License-Identifier: Apache-2.0

package evidence

import (
	"bytes"
	"fmt"
	"slices"
	"testing"

	"github.com/google/go-tpm/tpm2"

	"github.com/davit-dpu/davit/firmware/eventlog"
)

// What is done to a document after it was quoted, and which claims find it.
func TestTampering(t *testing.T) {
	t.Parallel()
	for name, test := range map[string]struct {
		tamper func(*card, *Document)
		want   []string
	}{
		"card log: an event removed": {func(c *card, d *Document) {
			d.CardLog = editLog(c.t, d.CardLog, func(e []eventlog.Event) []eventlog.Event { return e[:2] })
		}, []string{"pcr.14.replay"}},
		"card log: two events of a pcr in another order": {func(c *card, d *Document) {
			d.CardLog = editLog(c.t, d.CardLog, func(e []eventlog.Event) []eventlog.Event { e[0], e[1] = e[1], e[0]; return e })
		}, []string{"pcr.8.replay"}},
		"card log: an event added": {func(c *card, d *Document) {
			d.CardLog = editLog(c.t, d.CardLog, func(e []eventlog.Event) []eventlog.Event { return append(e, c.measurement(8, "program", "x")) })
		}, []string{"pcr.8.replay"}},
		"card log: a digest changed": {func(c *card, d *Document) {
			d.CardLog = editLog(c.t, d.CardLog, func(e []eventlog.Event) []eventlog.Event { e[0].Digests[0].Sum[0] ^= 1; return e })
		}, []string{"log.card.events", "pcr.8.replay"}},
		"card log: a label changed": {func(c *card, d *Document) {
			d.CardLog = bytes.Replace(d.CardLog, []byte("davitd"), []byte("ditdav"), 1)
		}, []string{"log.card.events"}},
		"card log: an event moved to another pcr": {func(c *card, d *Document) {
			d.CardLog = editLog(c.t, d.CardLog, func(e []eventlog.Event) []eventlog.Event { e[2].PCR = 8; return e })
		}, []string{"log.card.events", "pcr.8.replay", "pcr.14.replay"}},
		"card log: cut off": {func(c *card, d *Document) { d.CardLog = d.CardLog[:len(d.CardLog)-1] },
			[]string{"log.card", "log.card.events", "pcr.8.replay", "pcr.14.replay"}},
		"card log: left out": {func(c *card, d *Document) { d.CardLog = nil },
			[]string{"log.card", "log.card.events", "pcr.8.replay", "pcr.14.replay"}},
		"card log: replaced by an empty one": {func(c *card, d *Document) { d.CardLog = c.log() },
			[]string{"log.card.events", "pcr.8.replay", "pcr.14.replay"}},
		"firmware log: left out": {func(c *card, d *Document) { d.FirmwareLog = nil },
			[]string{"log.firmware", "pcr.0.replay", "pcr.4.replay", "pcr.14.replay"}},
		"firmware log: an event removed": {func(c *card, d *Document) {
			d.FirmwareLog = editLog(c.t, d.FirmwareLog, func(e []eventlog.Event) []eventlog.Event { return e[1:] })
		}, []string{"pcr.0.replay"}},
		"firmware log: garbage": {func(c *card, d *Document) { d.FirmwareLog = []byte("garbage") },
			[]string{"log.firmware", "pcr.0.replay", "pcr.4.replay", "pcr.14.replay"}},
		"logs: an event of a pcr that is not quoted": {func(c *card, d *Document) {
			d.FirmwareLog = editLog(c.t, d.FirmwareLog, func(e []eventlog.Event) []eventlog.Event { return append(e, firmwareEvent(23)) })
		}, []string{"pcr.23.replay"}},
		"pcr value changed": {func(c *card, d *Document) { d.TPM.PCRs[3] = bytes.Repeat([]byte{1}, 32) },
			unquoted("pcr.digest")},
		"pcr value left out": {func(c *card, d *Document) { delete(d.TPM.PCRs, 3) }, unquoted("pcr.digest")},
		"pcr value too many": {func(c *card, d *Document) { d.TPM.PCRs[23] = make([]byte, 32) }, unquoted("pcr.digest")},
		"pcr value short":    {func(c *card, d *Document) { d.TPM.PCRs[3] = d.TPM.PCRs[3][1:] }, unquoted("pcr.digest")},
		"boot report changed": {func(c *card, d *Document) { d.BootReport = []byte(`{"lifecycle":"production"}`) },
			unquoted("nonce")},
		"boot report left out":       {func(c *card, d *Document) { d.BootReport = nil }, append(unquoted("nonce"), "boot.report")},
		"endorsement key of another": {func(c *card, d *Document) { d.TPM.EndorsementKey = otherCard(c.t).ekArea() }, after(unquoted("nonce"), "nonce", "card.identity", "ek.certificate")},
		"receipt key of another": {func(c *card, d *Document) {
			other := otherCard(c.t).document()
			d.ReceiptKey = other.ReceiptKey
		}, after(unquoted("nonce"), "nonce", "receipt.key")},
		"nonce of another": {func(c *card, d *Document) { d.Nonce = bytes.Repeat([]byte{1}, 32) }, unquoted("nonce")},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			c := newCard(t)
			d := c.document()
			c.seal(&d)
			expect := c.expectations()
			test.tamper(c, &d)
			checkFailed(t, Appraise(parsed(t, d), expect), test.want...)
		})
	}
}

// unquoted are the claims that fail when there are no quoted values, because
// of the first.
func unquoted(first string) []string {
	out := []string{first}
	for n := range 16 {
		out = append(out, pcrClaim(n))
	}
	return append(out, "pcr.8.reference")
}

func pcrClaim(n int) string {
	return fmt.Sprintf("pcr.%d.replay", n)
}

// after puts claims behind another.
func after(claims []string, name string, more ...string) []string {
	return slices.Insert(claims, slices.Index(claims, name)+1, more...)
}

func editLog(t *testing.T, data []byte, edit func([]eventlog.Event) []eventlog.Event) []byte {
	t.Helper()
	old, err := eventlog.Parse(data)
	if err != nil {
		t.Fatal(err)
	}
	l, err := eventlog.New(old.Algs()...)
	if err != nil {
		t.Fatal(err)
	}
	for _, e := range edit(old.Events()) {
		if err := l.Append(e); err != nil {
			t.Fatal(err)
		}
	}
	return l.Encode()
}

// Quotes that a card, or somebody who has its attestation key's public half,
// could come up with.
func TestQuotes(t *testing.T) {
	t.Parallel()
	for name, make := range map[string]func(*card, *Document){
		"signature altered": func(c *card, d *Document) { d.TPM.Quote.Signature[len(d.TPM.Quote.Signature)-1] ^= 1 },
		"statement altered": func(c *card, d *Document) { d.TPM.Quote.Statement[30] ^= 1 },
		"statement with a byte more": func(c *card, d *Document) {
			d.TPM.Quote.Statement = append(d.TPM.Quote.Statement, 0)
		},
		"no signature": func(c *card, d *Document) { d.TPM.Quote.Signature = nil },
		"signed by another key": func(c *card, d *Document) {
			b := d.Binding()
			d.TPM.Quote = c.sign(newKey(c.t), c.quote(b[:]))
		},
		"signed by the receipt key, which signs anything": func(c *card, d *Document) {
			b := d.Binding()
			d.TPM.AttestationKey = area(c.receipt, false)
			d.TPM.Quote = c.sign(c.receipt, c.quote(b[:]))
		},
		"attestation key that is not fixed to a TPM": func(c *card, d *Document) {
			p := publicArea(c.ak, true)
			p.ObjectAttributes.FixedTPM = false
			d.TPM.AttestationKey = tpm2.Marshal(p)
		},
		"attestation key that was imported": func(c *card, d *Document) {
			p := publicArea(c.ak, true)
			p.ObjectAttributes.SensitiveDataOrigin = false
			d.TPM.AttestationKey = tpm2.Marshal(p)
		},
		"attestation key that is garbage": func(c *card, d *Document) { d.TPM.AttestationKey = []byte("garbage") },
		"a certification for a quote": func(c *card, d *Document) {
			d.TPM.Quote = d.TPM.Receipt.Certification
		},
		"of another bank": func(c *card, d *Document) {
			c.bank = tpm2.TPMAlgSHA384
			c.seal(d)
		},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			c := newCard(t)
			d := c.document()
			c.seal(&d)
			expect := c.expectations()
			make(c, &d)
			r := Appraise(parsed(t, d), expect)
			if r.Passed || !slices.Contains(r.names(Failed), "quote.signature") || r.verified != nil {
				t.Errorf("failed claims %v, want quote.signature among them", r.names(Failed))
			}
			// Nothing that rests on the quote may pass.
			for _, name := range []string{"nonce", "pcr.digest", "ak.identity", "card.identity", "receipt.key", "pcr.0.replay", "pcr.8.reference"} {
				if !slices.Contains(r.names(Failed), name) {
					t.Errorf("claim %s passes without a quote", name)
				}
			}
		})
	}
}

func TestQuoteLeavesOutPCR(t *testing.T) {
	t.Parallel()
	c := newCard(t)
	c.selected = c.selected[:15]
	d := c.document()
	c.seal(&d)
	checkFailed(t, Appraise(parsed(t, d), c.expectations()), unquoted("pcr.digest")...)
}

func TestStaleEvidence(t *testing.T) {
	t.Parallel()
	c := newCard(t)
	d := c.document()
	c.seal(&d)
	u := parsed(t, d)
	expect := c.expectations()
	expect.Nonce = []byte("the verifier's nonce for this one")
	checkFailed(t, Appraise(u, expect), unquoted("nonce")...)
	expect.Nonce = nil
	checkFailed(t, Appraise(u, expect), unquoted("nonce")...)
	// An old quote under a new nonce.
	d.Nonce = []byte("the verifier's nonce for this one")
	expect.Nonce = d.Nonce
	checkFailed(t, Appraise(parsed(t, d), expect), unquoted("nonce")...)
}

// Another TPM of the same make answers in the card's place.
func TestOtherCard(t *testing.T) {
	t.Parallel()
	c, other := newCard(t), otherCard(t)
	d := other.document()
	other.seal(&d)
	expect := c.expectations()
	expect.PCRs = nil
	expect.Exempt = []string{"pcr.reference"}
	checkFailed(t, Appraise(parsed(t, d), expect), "ak.identity", "card.identity", "ek.certificate")
}
