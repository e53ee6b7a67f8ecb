// SPDX-License-Identifier: Apache-2.0

package evidence

import (
	"bytes"
	"crypto/x509"
	"errors"
	"fmt"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/google/go-tpm/tpm2"

	"github.com/davit-dpu/davit/firmware/eventlog"
)

// parsed sends a document through its encoding, as a verifier gets it.
func parsed(t *testing.T, d Document) *Unverified {
	t.Helper()
	data, err := d.Encode()
	if err != nil {
		t.Fatal(err)
	}
	u, err := Parse(data)
	if err != nil {
		t.Fatal(err)
	}
	return u
}

func checkFailed(t *testing.T, r Report, want ...string) {
	t.Helper()
	if got := r.names(Failed); !slices.Equal(got, want) {
		t.Errorf("failed claims %v, want %v", got, want)
		for _, c := range r.Claims {
			if c.Verdict == Failed {
				t.Logf("%s: %s", c.Name, c.Reason)
			}
		}
	}
	_, err := r.Verified()
	if passed := len(want) == 0; r.Passed != passed || (err == nil) != passed || (!passed && !errors.Is(err, ErrNotTrusted)) {
		t.Errorf("Passed = %v, Verified = %v, with %d claims failed", r.Passed, err, len(want))
	}
	for _, c := range r.Claims {
		if c.Verdict == Failed && !strings.Contains(fmt.Sprint(err), c.Name+" ("+printable(c.Reason)+")") {
			t.Errorf("error %v doesn't say why %s failed", err, c.Name)
		}
		if (c.Verdict == Passed) != (c.Reason == "") {
			t.Errorf("claim %s: %s with reason %q", c.Name, c.Verdict, c.Reason)
		}
	}
}

func TestWholeEvidencePasses(t *testing.T) {
	t.Parallel()
	c := newCard(t)
	d := c.document()
	c.seal(&d)
	r := Appraise(parsed(t, d), c.expectations())
	checkFailed(t, r)
	v, err := r.Verified()
	if err != nil {
		t.Fatal(err)
	}
	if !v.ReceiptKey.Equal(c.receipt.Public()) || !bytes.Equal(v.PCRs[8], c.pcrs[8]) {
		t.Errorf("verified %+v", v)
	}
	for _, e := range r.Events {
		if !e.Replayed || e.DataHashed != (e.Log == "card") || (e.Measured != nil) != (e.Log == "card") {
			t.Errorf("event %+v", e)
		}
	}
	if len(r.Events) != 6 {
		t.Errorf("%d events listed, want 6", len(r.Events))
	}
}

func TestReceiptKey(t *testing.T) {
	t.Parallel()
	for name, make := range map[string]func(*card, *Document){
		"not certified": func(c *card, d *Document) { d.TPM.Receipt.Certification = Signed{} },
		"certified by itself": func(c *card, d *Document) {
			d.TPM.Receipt.Certification = c.sign(c.receipt, certification(d.TPM.Receipt.Public))
		},
		"another key certified": func(c *card, d *Document) {
			d.TPM.Receipt.Certification = c.sign(c.ak, certification(area(newKey(c.t), false)))
		},
		"a quote for a certification": func(c *card, d *Document) {
			d.TPM.Receipt.Certification = c.sign(c.ak, c.quote(testNonce))
		},
		"a software key": func(c *card, d *Document) {
			p := publicArea(c.receipt, false)
			p.ObjectAttributes.FixedTPM = false
			d.TPM.Receipt.Public = tpm2.Marshal(p)
			d.TPM.Receipt.Certification = c.sign(c.ak, certification(d.TPM.Receipt.Public))
		},
		"the attestation key itself": func(c *card, d *Document) {
			d.TPM.Receipt.Public = d.TPM.AttestationKey
			d.TPM.Receipt.Certification = c.sign(c.ak, certification(d.TPM.AttestationKey))
		},
		"no key": func(c *card, d *Document) { d.ReceiptKey = nil },
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			c := newCard(t)
			d := c.document()
			make(c, &d)
			c.seal(&d)
			checkFailed(t, Appraise(parsed(t, d), c.expectations()), "receipt.key")
		})
	}
}

func TestEndorsementCertificate(t *testing.T) {
	t.Parallel()
	for name, make := range map[string]func(*card, *Document, *Expectations){
		"none":           func(c *card, d *Document, _ *Expectations) { d.TPM.Certificate = nil },
		"garbage":        func(c *card, d *Document, _ *Expectations) { d.TPM.Certificate = []byte("garbage") },
		"no roots":       func(_ *card, _ *Document, e *Expectations) { e.EndorsementRoots = nil },
		"other roots":    func(_ *card, _ *Document, e *Expectations) { e.EndorsementRoots = x509.NewCertPool() },
		"no time":        func(_ *card, _ *Document, e *Expectations) { e.Now = time.Time{} },
		"expired":        func(_ *card, _ *Document, e *Expectations) { e.Now = e.Now.AddDate(5, 0, 0) },
		"of another key": func(c *card, d *Document, _ *Expectations) { d.TPM.Certificate = otherCard(c.t).cert },
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			c := newCard(t)
			d := c.document()
			expect := c.expectations()
			make(c, &d, &expect)
			expect.PCRs[8] = [][]byte{c.pcrs[8]}
			c.seal(&d)
			checkFailed(t, Appraise(parsed(t, d), expect), "ek.certificate")
		})
	}
}

// What the verifier does not know fails, and can be exempted by name.
func TestExpectationsNotGiven(t *testing.T) {
	t.Parallel()
	c := newCard(t)
	d := c.document()
	c.seal(&d)
	u := parsed(t, d)
	lacking := []string{"ak.identity", "card.identity", "ek.certificate", "log.card.events", "pcr.reference"}
	checkFailed(t, Appraise(u, Expectations{Nonce: testNonce}), lacking...)
	r := Appraise(u, Expectations{Nonce: testNonce, Exempt: lacking})
	checkFailed(t, r)
	if got := r.names(Exempted); !slices.Equal(got, lacking) {
		t.Errorf("exempted %v, want %v", got, lacking)
	}
}

func TestExemptions(t *testing.T) {
	t.Parallel()
	c := newCard(t)
	d := c.document()
	c.seal(&d)
	expect := c.expectations()
	for _, name := range []string{"ak.idendity", "nonce", "tpm", "quote.signature", "pcr.digest", "exemptions", ""} {
		expect.Exempt = []string{name}
		checkFailed(t, Appraise(parsed(t, d), expect), "exemptions")
	}
	expect.Exempt = []string{"pcr.10.replay"}
	r := Appraise(parsed(t, d), expect)
	checkFailed(t, r)
	if got := r.names(Exempted); len(got) != 0 {
		t.Errorf("%v passes, and is reported as exempted", got)
	}
}

func TestReferences(t *testing.T) {
	t.Parallel()
	c := newCard(t)
	d := c.document()
	c.seal(&d)
	expect := c.expectations()
	expect.PCRs = map[int][][]byte{4: {c.pcrs[4]}, 8: {make([]byte, 32)}, 14: {}, 23: {make([]byte, 32)}}
	checkFailed(t, Appraise(parsed(t, d), expect), "pcr.8.reference", "pcr.14.reference", "pcr.23.reference")
}

// A card without TPM never passes, whatever is exempted.
func TestWithoutTPM(t *testing.T) {
	t.Parallel()
	c := newCard(t)
	d := c.document()
	d.TPM, d.NoTPM = nil, "loopback board"
	u := parsed(t, d)
	var all []string
	for _, claim := range Appraise(u, c.expectations()).Claims {
		all = append(all, claim.Name)
	}
	expect := c.expectations()
	expect.Exempt = all
	r := Appraise(u, expect)
	checkFailed(t, r, "tpm", "nonce", "quote.signature", "pcr.digest", "exemptions")
	if r.Claims[0].Seen != "loopback board" {
		t.Errorf("the report says %q, want the card's reason", r.Claims[0].Seen)
	}
	if got := Appraise(nil, expect); got.Passed {
		t.Errorf("no document passes")
	}
}

// A card that could not extend says so; the mark is found.
func TestBrokenLog(t *testing.T) {
	t.Parallel()
	c := newCard(t)
	d := c.document()
	d.CardLog = editLog(t, d.CardLog, func(e []eventlog.Event) []eventlog.Event {
		return append(e, eventlog.BrokenEvent(8, "TPM is gone", eventlog.SHA256))
	})
	c.seal(&d)
	checkFailed(t, Appraise(parsed(t, d), c.expectations()), "log.card")
}
