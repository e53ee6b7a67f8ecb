// SPDX-License-Identifier: Apache-2.0

package evidence

import (
	"bytes"
	"crypto/ecdsa"
	"crypto/sha256"
	"crypto/subtle"
	"crypto/x509"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"maps"
	"slices"

	"github.com/davit-dpu/davit/firmware/eventlog"
)

// errNoTPM is the reason of all claims that a TPM would have to support.
var errNoTPM = errors.New("the document has no TPM part")

// appraisal collects claims while the parts of a document are looked at.
// A later claim uses what an earlier one found only if that one passed.
type appraisal struct {
	doc    Document
	expect Expectations
	claims []Claim

	ak      *signingKey      // nil unless quote.signature holds
	receipt *ecdsa.PublicKey // nil unless receipt.key holds
	quoted  eventlog.PCRs    // nil unless pcr.digest holds
	logs    []source
	joined  *eventlog.Log // nil unless log.firmware or log.card holds
	report  Report
}

// Appraise holds a document against expectations. It never fails itself: what
// cannot be looked at is a claim that failed. The report passes only if each
// claim passed or was exempted.
func Appraise(u *Unverified, expect Expectations) Report {
	a := &appraisal{expect: expect}
	if u != nil {
		a.doc = u.doc
	}
	a.tpm()
	a.quote()
	a.identity()
	a.receiptKey()
	a.eventLogs()
	a.registers()
	a.bootReport()
	a.exemptions()
	return a.finish()
}

// claim records an outcome: err is why it failed, nil if it passed.
func (a *appraisal) claim(name, expected, seen string, err error) {
	c := Claim{Name: name, Expected: expected, Seen: seen, Verdict: Passed}
	if err != nil {
		c.Verdict, c.Reason = Failed, err.Error()
		exempt := slices.Contains(a.expect.Exempt, name) && !slices.Contains(notExemptable, name)
		if exempt {
			c.Verdict = Exempted
		}
	}
	a.claims = append(a.claims, c)
}

func (a *appraisal) tpm() {
	seen, err := "present", error(nil)
	if a.doc.TPM == nil {
		seen, err = a.doc.NoTPM, errNoTPM
	}
	a.claim("tpm", "present", seen, err)
}

// quote looks at the nonce, the signature and the PCR values of the quote.
// The nonce claim rests on the signature, the digest on both.
func (a *appraisal) quote() {
	var seenKey, seenNonce string
	var pcrs eventlog.PCRs
	errSignature, errNonce, errDigest := errNoTPM, errNoTPM, errNoTPM
	if t := a.doc.TPM; t != nil {
		seenKey, seenNonce = hex.EncodeToString(nameOf(t.AttestationKey)), hex.EncodeToString(a.doc.Nonce)
		a.report.AttestationKey = seenKey
		errNonce, errDigest = errors.New("quote is not signed"), errors.New("quote is not signed")
		var q quoteContent
		if q, errSignature = readQuote(t); errSignature == nil {
			a.ak = q.key
			errNonce = a.checkNonce(q.qualifying)
			pcrs, errDigest = q.values(t.PCRs)
		}
	}
	a.claim("nonce", hex.EncodeToString(a.expect.Nonce), seenNonce, errNonce)
	a.claim("quote.signature", "by a restricted key of a TPM", seenKey, errSignature)
	a.claim("pcr.digest", fmt.Sprintf("PCRs 0..%d as listed", lastStaticPCR), fmt.Sprintf("%d PCRs", len(pcrs)), errDigest)
	if errNonce == nil && errDigest == nil {
		a.quoted = pcrs
	}
}

func (a *appraisal) checkNonce(qualifying []byte) error {
	if len(a.expect.Nonce) < MinNonce {
		return fmt.Errorf("no nonce of at least %d bytes was expected", MinNonce)
	}
	if subtle.ConstantTimeCompare(a.doc.Nonce, a.expect.Nonce) != 1 {
		return errors.New("nonce is not the verifier's: the document is old, or was made for another")
	}
	binding := a.doc.Binding()
	if subtle.ConstantTimeCompare(qualifying, binding[:]) != 1 {
		return errors.New("quote does not bind the nonce, the keys and the boot report of this document")
	}
	return nil
}

// quoteContent is a quote whose signature was verified.
type quoteContent struct {
	key        *signingKey
	qualifying []byte
	pcrs       []int
	digest     []byte
}

func readQuote(t *TPM) (quoteContent, error) {
	key, err := parseKey(t.AttestationKey)
	if err != nil {
		return quoteContent{}, fmt.Errorf("attestation key: %w", err)
	}
	if !key.restricted {
		return quoteContent{}, errors.New("attestation key is not restricted: it signs statements that no TPM made")
	}
	attest, info, err := key.quote(t.Quote)
	if err != nil {
		return quoteContent{}, err
	}
	pcrs, err := quotedPCRs(info)
	if err != nil {
		return quoteContent{}, err
	}
	return quoteContent{key, attest.ExtraData.Buffer, pcrs, info.PCRDigest.Buffer}, nil
}

// values returns the listed values if they are exactly those quoted.
func (q quoteContent) values(listed map[uint64][]byte) (eventlog.PCRs, error) {
	out := eventlog.PCRs{}
	h := sha256.New()
	for _, n := range q.pcrs {
		v, ok := listed[uint64(n)]
		if !ok || len(v) != sha256.Size {
			return nil, fmt.Errorf("pcr %d is quoted and has no value of %d bytes", n, sha256.Size)
		}
		out[n] = v
		h.Write(v)
	}
	if len(out) != len(listed) {
		return nil, fmt.Errorf("%d values for %d PCRs quoted", len(listed), len(out))
	}
	for n := range lastStaticPCR + 1 {
		if out[n] == nil {
			return nil, fmt.Errorf("pcr %d is not quoted", n)
		}
	}
	if subtle.ConstantTimeCompare(h.Sum(nil), q.digest) != 1 {
		return nil, errors.New("listed values are not those quoted")
	}
	return out, nil
}

// receiptKey: the key in the document, the public area and what the
// attestation key certified are one key, which cannot leave the TPM.
func (a *appraisal) receiptKey() {
	err := errNoTPM
	if t := a.doc.TPM; t != nil {
		err = a.checkReceiptKey(t.Receipt)
	}
	sum := sha256.Sum256(a.doc.ReceiptKey)
	a.claim("receipt.key", "in the TPM of the attestation key", hex.EncodeToString(sum[:]), err)
}

func (a *appraisal) checkReceiptKey(k CertifiedKey) error {
	if a.ak == nil {
		return errors.New("there is no attestation key to certify it")
	}
	key, err := parseKey(k.Public)
	if err != nil {
		return err
	}
	if key.restricted {
		return errors.New("key is restricted: it cannot sign receipts")
	}
	spki, err := x509.MarshalPKIXPublicKey(key.key)
	if err != nil {
		return fmt.Errorf("encode key: %w", err)
	}
	if !bytes.Equal(spki, a.doc.ReceiptKey) {
		return errors.New("public area is of another key")
	}
	if err := a.ak.certifies(k.Certification, key.name); err != nil {
		return err
	}
	a.receipt = key.key
	return nil
}

func (a *appraisal) bootReport() {
	seen, err := fmt.Sprintf("%d bytes", len(a.doc.BootReport)), error(nil)
	switch {
	case a.doc.BootReport == nil:
		err = errors.New("the document has no boot report")
	case !json.Valid(a.doc.BootReport):
		err = errors.New("boot report is not JSON")
	default:
		a.report.BootReport = slices.Clone(a.doc.BootReport)
	}
	a.claim("boot.report", "JSON", seen, err)
}

func (a *appraisal) exemptions() {
	if len(a.expect.Exempt) > 0 {
		a.claim("exemptions", "names of claims", fmt.Sprintf("%d names", len(a.expect.Exempt)), a.expect.checkExemptions(a.claims))
	}
}

func (a *appraisal) finish() Report {
	r := a.report
	r.Claims = a.claims
	r.Passed = len(r.names(Failed)) == 0
	if r.Passed {
		r.verified = &Verified{
			CardID:     sha256.Sum256(a.doc.TPM.EndorsementKey),
			ReceiptKey: a.receipt,
			PCRs:       maps.Clone(a.quoted),
		}
	}
	return r
}
