// SPDX-License-Identifier: Apache-2.0

package evidence

import (
	"bytes"
	"crypto/ecdsa"
	"crypto/sha256"
	"errors"
	"fmt"
	"math/big"

	"github.com/google/go-tpm/tpm2"
)

// signingKey is a P-256 key with a public area that says it never leaves its TPM.
type signingKey struct {
	name       []byte
	restricted bool
	key        *ecdsa.PublicKey
}

// parseKey reads the TPMT_PUBLIC of an ECDSA P-256 key with SHA-256 that was
// made in its TPM and stays there.
func parseKey(area []byte) (*signingKey, error) {
	pub, err := unmarshal[tpm2.TPMTPublic](area)
	if err != nil {
		return nil, fmt.Errorf("public area: %w", err)
	}
	a := pub.ObjectAttributes
	switch {
	case pub.Type != tpm2.TPMAlgECC || pub.NameAlg != tpm2.TPMAlgSHA256:
		return nil, fmt.Errorf("key is of type %#x with name by %#x, want ECC and SHA-256", uint16(pub.Type), uint16(pub.NameAlg))
	case !a.FixedTPM || !a.FixedParent || !a.SensitiveDataOrigin:
		return nil, errors.New("key can leave its TPM, or came from elsewhere")
	case !a.SignEncrypt || a.Decrypt:
		return nil, errors.New("key is not for signing alone")
	}
	params, err := pub.Parameters.ECCDetail()
	if err != nil {
		return nil, fmt.Errorf("parameters: %w", err)
	}
	if params.CurveID != tpm2.TPMECCNistP256 || params.Scheme.Scheme != tpm2.TPMAlgECDSA {
		return nil, fmt.Errorf("key is on curve %#x for scheme %#x, want ECDSA on P-256", uint16(params.CurveID), uint16(params.Scheme.Scheme))
	}
	if scheme, err := params.Scheme.Details.ECDSA(); err != nil || scheme.HashAlg != tpm2.TPMAlgSHA256 {
		return nil, errors.New("key does not sign SHA-256 digests")
	}
	point, err := pub.Unique.ECC()
	if err != nil {
		return nil, fmt.Errorf("point: %w", err)
	}
	key, err := tpm2.ECDSAPub(params, point)
	if err != nil {
		return nil, fmt.Errorf("point: %w", err)
	}
	if _, err := key.ECDH(); err != nil {
		return nil, fmt.Errorf("point: %w", err)
	}
	return &signingKey{name: nameOf(area), restricted: a.Restricted, key: key}, nil
}

// nameOf returns the TPM's name for an object with SHA-256 as its nameAlg
// (TPM 2.0 Part 1, "Names").
func nameOf(area []byte) []byte {
	sum := sha256.Sum256(area)
	return append([]byte{byte(tpm2.TPMAlgSHA256 >> 8), byte(tpm2.TPMAlgSHA256 & 0xff)}, sum[:]...)
}

// statement verifies that the key signed s, and reads what it signed: a
// TPMS_ATTEST, which a TPM makes itself.
func (k *signingKey) statement(s Signed) (*tpm2.TPMSAttest, error) {
	sig, err := unmarshal[tpm2.TPMTSignature](s.Signature)
	if err != nil {
		return nil, fmt.Errorf("signature: %w", err)
	}
	if sig.SigAlg != tpm2.TPMAlgECDSA {
		return nil, fmt.Errorf("signature by %#x, want ECDSA", uint16(sig.SigAlg))
	}
	pair, err := sig.Signature.ECDSA()
	if err != nil {
		return nil, fmt.Errorf("signature: %w", err)
	}
	if pair.Hash != tpm2.TPMAlgSHA256 {
		return nil, fmt.Errorf("signature over digest by %#x, want SHA-256", uint16(pair.Hash))
	}
	digest := sha256.Sum256(s.Statement)
	r, v := new(big.Int).SetBytes(pair.SignatureR.Buffer), new(big.Int).SetBytes(pair.SignatureS.Buffer)
	if !ecdsa.Verify(k.key, digest[:], r, v) {
		return nil, errors.New("signature is not by this key over this statement")
	}
	attest, err := unmarshal[tpm2.TPMSAttest](s.Statement)
	if err != nil {
		return nil, fmt.Errorf("statement: %w", err)
	}
	return attest, nil
}

// quote reads a statement that must be a quote.
func (k *signingKey) quote(s Signed) (*tpm2.TPMSAttest, *tpm2.TPMSQuoteInfo, error) {
	attest, err := k.statement(s)
	if err != nil {
		return nil, nil, err
	}
	if attest.Type != tpm2.TPMSTAttestQuote {
		return nil, nil, fmt.Errorf("statement of type %#x is not a quote", uint16(attest.Type))
	}
	info, err := attest.Attested.Quote()
	if err != nil {
		return nil, nil, fmt.Errorf("quote: %w", err)
	}
	return attest, info, nil
}

// certifies verifies a statement that the object with this name is in the TPM
// of the key.
func (k *signingKey) certifies(s Signed, name []byte) error {
	attest, err := k.statement(s)
	if err != nil {
		return err
	}
	if attest.Type != tpm2.TPMSTAttestCertify {
		return fmt.Errorf("statement of type %#x is not a certification", uint16(attest.Type))
	}
	info, err := attest.Attested.Certify()
	if err != nil {
		return fmt.Errorf("certification: %w", err)
	}
	if !bytes.Equal(info.Name.Buffer, name) {
		return fmt.Errorf("certification is of another key, %x", info.Name.Buffer)
	}
	return nil
}

// quotedPCRs returns the numbers that a quote covers. It must be of the
// SHA-256 bank alone.
func quotedPCRs(info *tpm2.TPMSQuoteInfo) ([]int, error) {
	if n := len(info.PCRSelect.PCRSelections); n != 1 {
		return nil, fmt.Errorf("quote covers %d banks, want SHA-256 alone", n)
	}
	selection := info.PCRSelect.PCRSelections[0]
	if selection.Hash != tpm2.TPMAlgSHA256 {
		return nil, fmt.Errorf("quote covers bank %#x, want SHA-256", uint16(selection.Hash))
	}
	var out []int
	for i, b := range selection.PCRSelect {
		for bit := range 8 {
			if b&(1<<bit) != 0 {
				out = append(out, 8*i+bit)
			}
		}
	}
	return out, nil
}

// unmarshal reads a TPM structure and refuses bytes left over, and any that
// are not written again as they were read.
func unmarshal[T tpm2.Marshallable, P interface {
	*T
	tpm2.Unmarshallable
}](data []byte) (*T, error) {
	v, err := tpm2.Unmarshal[T, P](data)
	if err != nil {
		return nil, fmt.Errorf("%w: %w", ErrMalformed, err)
	}
	if !bytes.Equal(tpm2.Marshal(*v), data) {
		return nil, fmt.Errorf("not in its only encoding: %w", ErrMalformed)
	}
	return v, nil
}
