// SPDX-License-Identifier: Apache-2.0

package evidence

import (
	"bytes"
	"crypto/sha256"
	"errors"
	"fmt"

	"github.com/fxamacker/cbor/v2"

	"github.com/davit-dpu/davit/firmware/eventlog"
)

// Version is the version of the format that this package writes and reads.
const Version = 1

// Bounds of a document, in bytes unless said otherwise.
const (
	// MaxSize is the largest encoded document.
	MaxSize = 3 << 20
	// MinNonce and MaxNonce bound the nonce.
	MinNonce, MaxNonce = 16, 64
	// MaxBootReport is the largest boot report.
	MaxBootReport = 256 << 10

	maxKey    = 1 << 10
	maxSigned = 1 << 10
	maxCert   = 8 << 10
	maxReason = 512
)

// bindingLabel opens what is hashed into the qualifying data.
const bindingLabel = "davit evidence 1\x00"

// ErrMalformed: the bytes are no document of this version.
var ErrMalformed = errors.New("evidence is malformed")

// Document is evidence as a card puts it together. Use [Parse] for one that
// came from elsewhere.
type Document struct {
	// Version must be [Version].
	Version uint64 `cbor:"1,keyasint"`
	// Nonce is the verifier's.
	Nonce []byte `cbor:"2,keyasint"`
	// TPM is what the TPM states, nil on a card without one.
	TPM *TPM `cbor:"3,keyasint,omitempty"`
	// ReceiptKey verifies the card's receipts: SubjectPublicKeyInfo in DER.
	ReceiptKey []byte `cbor:"4,keyasint"`
	// FirmwareLog and CardLog are event logs, nil if there is none.
	FirmwareLog []byte `cbor:"5,keyasint,omitempty"`
	CardLog     []byte `cbor:"6,keyasint,omitempty"`
	// BootReport is how init says the card booted, in JSON; nil if unknown.
	BootReport []byte `cbor:"7,keyasint,omitempty"`
	// NoTPM says why TPM is nil, and is empty otherwise.
	NoTPM string `cbor:"8,keyasint,omitempty"`
}

// TPM is the part of a document that comes from a TPM.
type TPM struct {
	Quote          Signed            `cbor:"1,keyasint"`
	AttestationKey []byte            `cbor:"2,keyasint"`
	EndorsementKey []byte            `cbor:"3,keyasint"`
	Certificate    []byte            `cbor:"4,keyasint,omitempty"`
	Receipt        CertifiedKey      `cbor:"5,keyasint"`
	PCRs           map[uint64][]byte `cbor:"6,keyasint"`
}

// Signed is a TPMS_ATTEST with the TPMT_SIGNATURE on it.
type Signed struct {
	Statement []byte `cbor:"1,keyasint"`
	Signature []byte `cbor:"2,keyasint"`
}

// CertifiedKey is a TPMT_PUBLIC with the attestation key's certification of it.
type CertifiedKey struct {
	Public        []byte `cbor:"1,keyasint"`
	Certification Signed `cbor:"2,keyasint"`
}

// Unverified is a well-formed document that nobody has appraised. There is no
// way to its content but [Appraise].
type Unverified struct{ doc Document }

// Binding returns the qualifying data for the document's quote. It depends on
// the nonce, the keys and the boot report.
func (d Document) Binding() [32]byte {
	var ek []byte
	if d.TPM != nil {
		ek = d.TPM.EndorsementKey
	}
	h := sha256.New()
	h.Write([]byte(bindingLabel))
	for _, part := range [][]byte{d.Nonce, d.ReceiptKey, ek, d.BootReport} {
		sum := sha256.Sum256(part)
		h.Write(sum[:])
	}
	return [32]byte(h.Sum(nil))
}

// Encode returns the document in the format of the package comment.
func (d Document) Encode() ([]byte, error) {
	if err := d.check(); err != nil {
		return nil, fmt.Errorf("encode evidence: %w", err)
	}
	out, err := encMode.Marshal(d)
	if err != nil {
		return nil, fmt.Errorf("encode evidence: %w", err)
	}
	if len(out) > MaxSize {
		return nil, fmt.Errorf("encode evidence: %d bytes: %w", len(out), ErrMalformed)
	}
	return out, nil
}

// Parse reads a document. Whatever is not exactly what [Document.Encode]
// writes is [ErrMalformed]: unknown keys, other encodings, bytes left over,
// parts beyond their bounds.
func Parse(data []byte) (*Unverified, error) {
	if len(data) > MaxSize {
		return nil, fmt.Errorf("parse evidence: %d bytes: %w", len(data), ErrMalformed)
	}
	var d Document
	if err := decMode.Unmarshal(data, &d); err != nil {
		return nil, fmt.Errorf("parse evidence: %w: %w", ErrMalformed, err)
	}
	if err := d.check(); err != nil {
		return nil, fmt.Errorf("parse evidence: %w", err)
	}
	again, err := encMode.Marshal(d)
	if err != nil || !bytes.Equal(again, data) {
		return nil, fmt.Errorf("parse evidence: encoding is not deterministic: %w", ErrMalformed)
	}
	return &Unverified{d}, nil
}

func (d Document) check() error {
	if d.Version != Version {
		return fmt.Errorf("version %d, this is version %d: %w", d.Version, Version, ErrMalformed)
	}
	if len(d.Nonce) < MinNonce {
		return fmt.Errorf("nonce of %d bytes: %w", len(d.Nonce), ErrMalformed)
	}
	if (d.TPM == nil) != (d.NoTPM != "") {
		return fmt.Errorf("neither a TPM part nor a reason for its absence, or both: %w", ErrMalformed)
	}
	parts := []part{
		{"nonce", len(d.Nonce), MaxNonce},
		{"receipt key", len(d.ReceiptKey), maxKey},
		{"firmware log", len(d.FirmwareLog), eventlog.MaxSize},
		{"card log", len(d.CardLog), eventlog.MaxSize},
		{"boot report", len(d.BootReport), MaxBootReport},
		{"reason", len(d.NoTPM), maxReason},
	}
	if d.TPM != nil {
		parts = append(parts, d.TPM.parts()...)
		for n := range d.TPM.PCRs {
			if n >= eventlog.NumPCRs {
				return fmt.Errorf("value of pcr %d: %w", n, ErrMalformed)
			}
		}
	}
	for _, p := range parts {
		if p.size > p.limit {
			return fmt.Errorf("%s of %d bytes, at most %d: %w", p.name, p.size, p.limit, ErrMalformed)
		}
	}
	return nil
}

// part is a field with its bound.
type part struct {
	name        string
	size, limit int
}

func (t TPM) parts() []part {
	out := []part{
		{"quote", len(t.Quote.Statement), maxSigned},
		{"quote's signature", len(t.Quote.Signature), maxSigned},
		{"attestation key", len(t.AttestationKey), maxKey},
		{"endorsement key", len(t.EndorsementKey), maxKey},
		{"endorsement certificate", len(t.Certificate), maxCert},
		{"receipt key's public area", len(t.Receipt.Public), maxKey},
		{"receipt key's certification", len(t.Receipt.Certification.Statement), maxSigned},
		{"receipt key's certification's signature", len(t.Receipt.Certification.Signature), maxSigned},
	}
	for n, v := range t.PCRs {
		out = append(out, part{fmt.Sprintf("value of pcr %d", n), len(v), sha256.Size})
	}
	return out
}

var (
	encMode = mustMode(cbor.CoreDetEncOptions().EncMode())
	decMode = mustMode(cbor.DecOptions{
		DupMapKey:         cbor.DupMapKeyEnforcedAPF,
		IndefLength:       cbor.IndefLengthForbidden,
		TagsMd:            cbor.TagsForbidden,
		ExtraReturnErrors: cbor.ExtraDecErrorUnknownField,
		MaxNestedLevels:   6,
		MaxArrayElements:  16,
		MaxMapPairs:       32,
	}.DecMode())
)

// mustMode unwraps a codec of constant options, which cannot fail but by a
// programming error that every test would show.
func mustMode[M any](mode M, err error) M {
	if err != nil {
		panic(fmt.Sprintf("evidence: codec options: %v", err))
	}
	return mode
}
