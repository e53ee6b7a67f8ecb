// SPDX-License-Identifier: Apache-2.0

package rig

import (
	"context"
	"crypto/rand"
	"crypto/sha256"
	"crypto/x509"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"time"

	"github.com/fxamacker/cbor/v2"

	"github.com/davit-dpu/davit/firmware/evidence"
	"github.com/davit-dpu/davit/firmware/mailbox"
	"github.com/davit-dpu/davit/firmware/mailbox/door"
	"github.com/davit-dpu/davit/firmware/measure"
)

// Contact is what an operator knows of one card after first contact: where it
// is, who it is, and with which key to speak to it. It holds no secret.
type Contact struct {
	Address        string `json:"address"`        // host:port of the TLS door
	CardID         string `json:"cardID"`         // hexadecimal
	AttestationKey string `json:"attestationKey"` // the TPM's name for it, hexadecimal
	ReceiptKey     []byte `json:"receiptKey"`     // SubjectPublicKeyInfo, DER
	KeyFile        string `json:"keyFile"`        // operator's private key, PEM
	CardConsole    string `json:"cardConsole,omitempty"`
	HostDoor       string `json:"hostDoor,omitempty"` // unix socket on the host whose bytes the bus carries
}

// firstExemptions are claims that nothing is known for at first contact. They
// stay in the report, as exempted.
var firstExemptions = []string{
	"ak.identity",   // that both keys are in one TPM takes an exchange at enrolment
	"card.identity", // not known before; the maker's certificate speaks for the TPM
	"pcr.reference", // takes a release's manifest
}

// laterExemptions are those of every later appraisal.
var laterExemptions = []string{"pcr.reference"}

// Enrol makes first contact with the card at an address: it asks for evidence,
// appraises it with the TPM makers' roots, and returns what the evidence
// proved. Evidence that does not pass is a *NotTrusted error, with the report.
func Enrol(ctx context.Context, address string, roots *x509.CertPool) (*Contact, error) {
	client, err := door.DialTLS(ctx, address, door.ClientConfig{})
	if err != nil {
		return nil, err
	}
	defer client.Close()
	report, receiptKey, err := appraise(ctx, client, evidence.Expectations{EndorsementRoots: roots, Exempt: firstExemptions})
	if err != nil {
		return nil, err
	}
	return &Contact{Address: address, CardID: report.CardID, AttestationKey: report.AttestationKey, ReceiptKey: receiptKey}, nil
}

// appraise asks for fresh evidence and returns the report if it passed, with
// the receipt key that it proved. The receipt that brought the evidence is then
// verified with that very key.
func appraise(ctx context.Context, client *door.Client, want evidence.Expectations) (*evidence.Report, []byte, error) {
	want.Nonce = make([]byte, 32)
	rand.Read(want.Nonce) // never returns an error
	want.Registers, want.Now = measure.Registers(), time.Now()
	request, err := mailbox.PublicRequest("", "attest", map[string]any{"nonce": want.Nonce}, want.Nonce)
	if err != nil {
		return nil, nil, err
	}
	unverified, err := client.Exchange(ctx, request)
	if err != nil {
		return nil, nil, err
	}
	code, result := unverified.Claim()
	if code != mailbox.OK {
		return nil, nil, fmt.Errorf("the card gives no evidence: %s", code)
	}
	var raw []byte
	if err := cbor.Unmarshal(result, &raw); err != nil {
		return nil, nil, fmt.Errorf("evidence: %w", err)
	}
	doc, err := evidence.Parse(raw)
	if err != nil {
		return nil, nil, err
	}
	report := evidence.Appraise(doc, want)
	verified, err := report.Verified()
	if err != nil {
		return nil, nil, &NotTrusted{Report: report, Cause: err}
	}
	if verified.ReceiptKey == nil {
		return nil, nil, errors.New("the evidence proves no receipt key")
	}
	receipt, err := unverified.Verify(verified.ReceiptKey, sha256.Sum256(request))
	if err != nil {
		return nil, nil, fmt.Errorf("the evidence's receipt: %w", err)
	}
	if receipt.Card != report.CardID {
		return nil, nil, fmt.Errorf("the evidence is of card %s, its receipt of card %s", report.CardID, receipt.Card)
	}
	// The key that the evidence proved must also be at the end of this TLS
	// channel: a verified answer that names the channel shows it.
	client.Trust(verified.ReceiptKey)
	if _, err := client.Request(ctx, mailbox.ChallengeOp, nil); err != nil {
		return nil, nil, fmt.Errorf("the channel to the card: %w", err)
	}
	spki, err := x509.MarshalPKIXPublicKey(verified.ReceiptKey)
	if err != nil {
		return nil, nil, err
	}
	return &report, spki, nil
}

// NotTrusted is the error of evidence that did not pass; the report says why.
type NotTrusted struct {
	Report evidence.Report
	Cause  error
}

// Error implements error.
func (e *NotTrusted) Error() string { return e.Cause.Error() }

// Unwrap gives evidence.ErrNotTrusted.
func (e *NotTrusted) Unwrap() error { return e.Cause }

// Attest appraises a card that is known: its keys must be those of first
// contact. The report is that of an appraisal that passed.
func (c *Contact) Attest(ctx context.Context, roots *x509.CertPool) (*evidence.Report, error) {
	ak, err := hex.DecodeString(c.AttestationKey)
	if err != nil {
		return nil, fmt.Errorf("attestation key of the contact: %w", err)
	}
	id, err := hex.DecodeString(c.CardID)
	if err != nil {
		return nil, fmt.Errorf("card id of the contact: %w", err)
	}
	client, err := door.DialTLS(ctx, c.Address, door.ClientConfig{})
	if err != nil {
		return nil, err
	}
	defer client.Close()
	report, _, err := appraise(ctx, client, evidence.Expectations{
		EndorsementRoots: roots, AttestationKey: ak, CardID: id, Exempt: laterExemptions,
	})
	return report, err
}

// Dial opens a door to the card, for commands signed with the contact's key.
func (c *Contact) Dial(ctx context.Context) (*door.Client, error) {
	cfg, err := c.clientConfig()
	if err != nil {
		return nil, err
	}
	return door.DialTLS(ctx, c.Address, cfg)
}

// DialHost opens the door that the card's host carries over the bus.
func (c *Contact) DialHost(ctx context.Context) (*door.Client, error) {
	cfg, err := c.clientConfig()
	if err != nil {
		return nil, err
	}
	return door.DialUnix(ctx, c.HostDoor, cfg)
}

func (c *Contact) clientConfig() (door.ClientConfig, error) {
	public, err := x509.ParsePKIXPublicKey(c.ReceiptKey)
	if err != nil {
		return door.ClientConfig{}, fmt.Errorf("receipt key of the contact: %w", err)
	}
	cfg := door.ClientConfig{Card: c.CardID, CardKey: public, Requester: requester()}
	if c.KeyFile != "" {
		if cfg.Key, err = mailbox.ReadPrivateKey(c.KeyFile); err != nil {
			return door.ClientConfig{}, err
		}
	}
	return cfg, nil
}

// requester is who asks, for the card's record; it proves nothing.
func requester() string {
	host, err := os.Hostname()
	if err != nil {
		host = "unknown"
	}
	return "davit@" + host
}

// Save writes the contact to a file.
func (c *Contact) Save(path string) error {
	text, err := json.MarshalIndent(c, "", "  ")
	if err != nil {
		return err
	}
	return os.WriteFile(path, append(text, '\n'), 0o600)
}

// LoadContact reads what Save wrote.
func LoadContact(path string) (*Contact, error) {
	text, err := os.ReadFile(path)
	if err != nil {
		return nil, err
	}
	var c Contact
	if err := json.Unmarshal(text, &c); err != nil {
		return nil, fmt.Errorf("%s: %w", path, err)
	}
	return &c, nil
}
