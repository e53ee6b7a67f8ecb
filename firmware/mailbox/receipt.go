// SPDX-License-Identifier: Apache-2.0

package mailbox

import (
	"bytes"
	"crypto"
	"crypto/hmac"
	"crypto/sha256"
	"errors"
	"fmt"
	"time"

	"github.com/fxamacker/cbor/v2"
)

// ErrReceipt means that a receipt is not a valid one for the command.
var ErrReceipt = errors.New("receipt does not hold")

// Receipt is what the card says about a command, its signature verified.
type Receipt struct {
	Card       string    // identity of the card that says it
	Command    Digest    // SHA-256 of the command's bytes
	Code       Code      // what came of it
	Text       string    // for people, mostly empty
	Result     []byte    // CBOR, empty for none; see Decode
	Time       time.Time // by the card's clock, to the millisecond
	AuditIndex uint64    // of the record about the command; 0: counted in a summary
	Nonce      []byte    // of a public request, as the requester gave it
	Binding    []byte    // SHA-256 of the SubjectPublicKeyInfo of the TLS door that gave the receipt
}

// Decode decodes the result into v and ignores what v does not know.
func (r *Receipt) Decode(v any) error {
	if err := decodeResult(r.Result, v); err != nil {
		return fmt.Errorf("decode result: %w", err)
	}
	return nil
}

// Err is nil for OK and Accepted, and otherwise a *Refusal with code and text.
// Note that Failed means that the op was executed.
func (r *Receipt) Err() error {
	if r.Code == OK || r.Code == Accepted {
		return nil
	}
	return refuse(r.Code, r.Text)
}

// receiptBody is the signed content of a receipt. Keys are never renumbered or
// reused; readers ignore keys they do not know.
type receiptBody struct {
	Version uint64          `cbor:"1,keyasint"`
	Card    string          `cbor:"2,keyasint"`
	Command []byte          `cbor:"3,keyasint"`
	Code    string          `cbor:"4,keyasint"`
	Text    string          `cbor:"5,keyasint,omitempty"`
	Result  cbor.RawMessage `cbor:"6,keyasint,omitempty"`
	Time    int64           `cbor:"7,keyasint"` // milliseconds since 1970
	Audit   uint64          `cbor:"8,keyasint,omitempty"`
	Nonce   []byte          `cbor:"9,keyasint,omitempty"`
	Binding []byte          `cbor:"10,keyasint,omitempty"`
}

// encodeReceipt gives the payload of a receipt.
func encodeReceipt(r *Receipt) ([]byte, error) {
	return encode(receiptBody{
		Version: version, Card: r.Card, Command: r.Command[:], Code: string(r.Code), Text: r.Text, Result: r.Result,
		Time: r.Time.UnixMilli(), Audit: r.AuditIndex, Nonce: r.Nonce, Binding: r.Binding,
	})
}

func decodeReceipt(body []byte) (*Receipt, error) {
	var b receiptBody
	if err := decodeResult(body, &b); err != nil {
		return nil, err
	}
	if b.Version != version {
		return nil, fmt.Errorf("version %d, this side knows %d", b.Version, version)
	}
	if len(b.Command) != sha256.Size || b.Code == "" || b.Card == "" {
		return nil, errors.New("command digest, code or card is missing")
	}
	return &Receipt{
		Card: b.Card, Command: Digest(b.Command), Code: Code(b.Code), Text: b.Text, Result: b.Result,
		Time: time.UnixMilli(b.Time).UTC(), AuditIndex: b.Audit, Nonce: b.Nonce, Binding: b.Binding,
	}, nil
}

// UnverifiedReceipt is a receipt whose form was checked and whose signature
// was not.
type UnverifiedReceipt struct {
	envelope *envelope
	claim    *Receipt
}

// ParseReceipt checks the form of a receipt.
func ParseReceipt(receipt []byte) (*UnverifiedReceipt, error) {
	if len(receipt) > MaxReceipt {
		return nil, fmt.Errorf("parse receipt: %d bytes, more than %d", len(receipt), MaxReceipt)
	}
	e, err := openEnvelope(receipt, ReceiptType)
	if err != nil {
		return nil, fmt.Errorf("parse receipt: %w", err)
	}
	claim, err := decodeReceipt(e.message.Payload)
	if err != nil {
		return nil, fmt.Errorf("parse receipt: %w", err)
	}
	return &UnverifiedReceipt{envelope: e, claim: claim}, nil
}

// KeyID returns the id of the key that is said to have signed the receipt.
func (u *UnverifiedReceipt) KeyID() string { return u.envelope.keyID }

// Claim returns the result as it stands in the receipt, verified by nothing.
// It is for the one case in which the receipt itself carries what is needed to
// verify it: evidence, which is appraised first and then gives the card's
// receipt key. Anything else must use Verify.
func (u *UnverifiedReceipt) Claim() (code Code, result []byte) {
	return u.claim.Code, bytes.Clone(u.claim.Result)
}

// Verify checks that the key, which must be the card's receipt key, signed the
// receipt, and that it is about the command with this digest.
func (u *UnverifiedReceipt) Verify(card crypto.PublicKey, command Digest) (*Receipt, error) {
	v, err := newVerifier(card)
	if err != nil {
		return nil, fmt.Errorf("verify receipt: %w", err)
	}
	if _, err := u.envelope.verify(v); err != nil {
		return nil, fmt.Errorf("%w: it is not signed by this card's receipt key", ErrReceipt)
	}
	if !hmac.Equal(u.claim.Command[:], command[:]) {
		return nil, fmt.Errorf("%w: it is about another command", ErrReceipt)
	}
	r := *u.claim
	return &r, nil
}
