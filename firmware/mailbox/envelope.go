// SPDX-License-Identifier: Apache-2.0

package mailbox

import (
	"crypto"
	"crypto/rand"
	"crypto/sha256"
	"errors"
	"fmt"

	"github.com/veraison/go-cose"
)

// Content types: what a message is stands in its signed header, so that no
// message can be taken for one of another kind.
const (
	CommandType = "application/vnd.davit.command+cbor"
	RequestType = "application/vnd.davit.request+cbor"
	ReceiptType = "application/vnd.davit.receipt+cbor"
)

// Size limits in bytes.
const (
	MaxCommand = 64 << 10 // a command or request; checked before anything else
	MaxReceipt = 4 << 20  // a receipt with its result
)

// tagSign1 is the initial byte of CBOR tag 18, COSE_Sign1.
const tagSign1 = 0xd2

// errAlgorithm marks an envelope whose algorithm is not one of ours.
var errAlgorithm = errors.New("algorithm is not EdDSA, ES256 or ES384")

// Digest is the SHA-256 of a command's or receipt's bytes.
type Digest = [sha256.Size]byte

// envelope is a parsed COSE_Sign1 whose signature was not looked at.
type envelope struct {
	message cose.Sign1Message
	keyID   string
}

// openEnvelope accepts one form only: tag 18, deterministic, the protected
// header exactly {1: algorithm, 3: content type, 4: key id}, the unprotected
// header empty, payload and signature present.
func openEnvelope(data []byte, contentType string) (*envelope, error) {
	if len(data) == 0 || data[0] != tagSign1 {
		return nil, errors.New("not a tagged COSE_Sign1")
	}
	if err := commandDialect.check(data[1:]); err != nil {
		return nil, err
	}
	var e envelope
	if err := e.message.UnmarshalCBOR(data); err != nil {
		return nil, err
	}
	_, _, protected, err := head(e.message.Headers.RawProtected)
	if err != nil {
		return nil, fmt.Errorf("protected header: %w", err)
	}
	if err := commandDialect.check(protected); err != nil {
		return nil, fmt.Errorf("protected header: %w", err)
	}
	if len(e.message.Headers.Unprotected) != 0 {
		return nil, errors.New("the unprotected header is not empty")
	}
	if err := e.readHeader(contentType); err != nil {
		return nil, err
	}
	if len(e.message.Payload) == 0 {
		return nil, errors.New("the payload is empty")
	}
	return &e, nil
}

// readHeader takes the three header fields; a fourth one is refused, critical
// or not.
func (e *envelope) readHeader(contentType string) error {
	header := e.message.Headers.Protected
	for label := range header {
		switch label {
		case cose.HeaderLabelAlgorithm, cose.HeaderLabelContentType, cose.HeaderLabelKeyID:
		default:
			return fmt.Errorf("unknown header %v", label)
		}
	}
	if got := header[cose.HeaderLabelContentType]; got != contentType {
		return fmt.Errorf("content type is not %s", contentType)
	}
	id, ok := header[cose.HeaderLabelKeyID].([]byte)
	if !ok || len(id) > maxKeyID || !printable(string(id)) {
		return fmt.Errorf("key id: want 1 to %d printable ASCII characters", maxKeyID)
	}
	e.keyID = string(id)
	if _, present := header[cose.HeaderLabelAlgorithm]; !present {
		return errors.New("there is no algorithm")
	}
	alg, err := header.Algorithm()
	if err != nil {
		return errAlgorithm
	}
	switch alg {
	case cose.AlgorithmEdDSA, cose.AlgorithmES256, cose.AlgorithmES384:
		return nil
	}
	return errAlgorithm
}

// verify checks the signature and gives the payload.
func (e *envelope) verify(v cose.Verifier) ([]byte, error) {
	if err := e.message.Verify(nil, v); err != nil {
		return nil, err
	}
	return e.message.Payload, nil
}

// seal signs a payload.
func seal(signer cose.Signer, keyID, contentType string, payload []byte) ([]byte, error) {
	if len(keyID) > maxKeyID || !printable(keyID) {
		return nil, fmt.Errorf("key id %q: want 1 to %d printable ASCII characters", keyID, maxKeyID)
	}
	headers := cose.Headers{Protected: cose.ProtectedHeader{
		cose.HeaderLabelAlgorithm:   signer.Algorithm(),
		cose.HeaderLabelContentType: contentType,
		cose.HeaderLabelKeyID:       []byte(keyID),
	}}
	return cose.Sign1(rand.Reader, signer, headers, payload, nil)
}

// sealWith is seal with a plain key.
func sealWith(key crypto.Signer, keyID, contentType string, payload []byte) ([]byte, error) {
	signer, err := newSigner(key)
	if err != nil {
		return nil, err
	}
	return seal(signer, keyID, contentType, payload)
}

// printable reports whether s is printable ASCII and not empty.
func printable(s string) bool {
	for i := range len(s) {
		if s[i] < ' ' || s[i] > '~' {
			return false
		}
	}
	return s != ""
}
