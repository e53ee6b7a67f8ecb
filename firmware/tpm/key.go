// SPDX-License-Identifier: Apache-2.0

package tpm

import (
	"bytes"
	"context"
	"crypto"
	"crypto/ecdsa"
	"crypto/sha256"
	"encoding/asn1"
	"errors"
	"fmt"
	"io"
	"math/big"

	"github.com/google/go-tpm/tpm2"
)

// MaxQualifying is the longest qualifying data of a quote or certification in
// bytes: a SHA-256 digest always fits (TPM2B_DATA).
const MaxQualifying = 32

// Public is the public half of a TPM key.
type Public struct {
	// Area is the encoded TPMT_PUBLIC.
	Area []byte
	// Name is the TPM's name for the key: nameAlg and the digest of Area.
	Name []byte
}

// Attestation is a statement of the TPM with the signature on it.
type Attestation struct {
	// Statement is the encoded TPMS_ATTEST.
	Statement []byte
	// Signature is the encoded TPMT_SIGNATURE.
	Signature []byte
}

// loaded is a primary key in the TPM's transient memory.
type loaded struct {
	handle tpm2.TPMHandle
	name   tpm2.TPM2BName
	public Public
	key    *ecdsa.PublicKey
}

// AK is the attestation key. The TPM uses it only for statements of its own.
type AK struct {
	tpm *TPM
	key *loaded
}

// AK returns the attestation key, deriving it at first use.
func (t *TPM) AK(ctx context.Context) (*AK, error) {
	k, err := t.signer(ctx, &t.ak, akTemplate())
	if err != nil {
		return nil, fmt.Errorf("derive attestation key: %w", err)
	}
	return &AK{t, k}, nil
}

// Public returns the key's public area and name.
func (a *AK) Public() Public { return a.key.public.clone() }

// Quote has the TPM state the values of PCRs of the SHA-256 bank together with
// qualifying, at most [MaxQualifying] bytes, by which the verifier knows the
// statement is new. Spec: TPM 2.0 Part 3, TPM2_Quote.
func (a *AK) Quote(ctx context.Context, qualifying []byte, pcrs ...int) (Attestation, error) {
	selection, err := selectPCRs(quoteBank, pcrs)
	if err != nil {
		return Attestation{}, fmt.Errorf("quote: %w", err)
	}
	unlock, err := a.tpm.lock(ctx)
	if err != nil {
		return Attestation{}, fmt.Errorf("quote: %w", err)
	}
	defer unlock()
	rsp, err := tpm2.Quote{
		SignHandle:     a.key.auth(),
		QualifyingData: tpm2.TPM2BData{Buffer: qualifying},
		InScheme:       ecdsaSHA256(),
		PCRSelect:      selection,
	}.Execute(a.tpm.link)
	if err != nil {
		return Attestation{}, fmt.Errorf("quote: %w", clear(err))
	}
	return attestation(rsp.Quoted, rsp.Signature), nil
}

// Certify has the TPM state that k is loaded in the same TPM, together with
// qualifying. Spec: Part 3, TPM2_Certify.
func (a *AK) Certify(ctx context.Context, k *Key, qualifying []byte) (Attestation, error) {
	unlock, err := a.tpm.lock(ctx)
	if err != nil {
		return Attestation{}, fmt.Errorf("certify key: %w", err)
	}
	defer unlock()
	rsp, err := tpm2.Certify{
		ObjectHandle:   k.key.auth(),
		SignHandle:     a.key.auth(),
		QualifyingData: tpm2.TPM2BData{Buffer: qualifying},
		InScheme:       ecdsaSHA256(),
	}.Execute(a.tpm.link)
	if err != nil {
		return Attestation{}, fmt.Errorf("certify key: %w", clear(err))
	}
	return attestation(rsp.CertifyInfo, rsp.Signature), nil
}

func attestation(statement tpm2.TPM2BAttest, sig tpm2.TPMTSignature) Attestation {
	return Attestation{Statement: bytes.Clone(statement.Bytes()), Signature: tpm2.Marshal(sig)}
}

// Key is an ECDSA P-256 key in the TPM that signs any SHA-256 digest. It
// implements [crypto.Signer].
type Key struct {
	tpm *TPM
	key *loaded
}

var _ crypto.Signer = (*Key)(nil)

// ReceiptKey returns the key that signs receipts, deriving it at first use.
func (t *TPM) ReceiptKey(ctx context.Context) (*Key, error) {
	k, err := t.signer(ctx, &t.receipt, receiptTemplate())
	if err != nil {
		return nil, fmt.Errorf("derive receipt key: %w", err)
	}
	return &Key{t, k}, nil
}

// Public returns the key as a *[ecdsa.PublicKey].
func (k *Key) Public() crypto.PublicKey { return k.key.key }

// TPMPublic returns the key's public area and name.
func (k *Key) TPMPublic() Public { return k.key.public.clone() }

// Sign signs a SHA-256 digest and returns the signature in ASN.1 DER, as
// [ecdsa.SignASN1] does. The TPM's own random numbers are used, rand is not.
// Spec: Part 3, TPM2_Sign.
func (k *Key) Sign(_ io.Reader, digest []byte, opts crypto.SignerOpts) ([]byte, error) {
	if opts.HashFunc() != crypto.SHA256 || len(digest) != sha256.Size {
		return nil, fmt.Errorf("sign: the key signs SHA-256 digests, got %v of %d bytes", opts.HashFunc(), len(digest))
	}
	unlock, err := k.tpm.lock(context.Background())
	if err != nil {
		return nil, fmt.Errorf("sign: %w", err)
	}
	defer unlock()
	rsp, err := tpm2.Sign{
		KeyHandle:  k.key.auth(),
		Digest:     tpm2.TPM2BDigest{Buffer: digest},
		InScheme:   ecdsaSHA256(),
		Validation: tpm2.TPMTTKHashCheck{Tag: tpm2.TPMSTHashCheck, Hierarchy: tpm2.TPMRHNull},
	}.Execute(k.tpm.link)
	if err != nil {
		return nil, fmt.Errorf("sign: %w", clear(err))
	}
	sig, err := rsp.Signature.Signature.ECDSA()
	if err != nil {
		return nil, fmt.Errorf("sign: %w", err)
	}
	r, s := new(big.Int).SetBytes(sig.SignatureR.Buffer), new(big.Int).SetBytes(sig.SignatureS.Buffer)
	return asn1.Marshal(struct{ R, S *big.Int }{r, s})
}

// signer returns the key kept in slot, and derives it first if there is none.
func (t *TPM) signer(ctx context.Context, slot **loaded, template tpm2.TPMTPublic) (*loaded, error) {
	unlock, err := t.lock(ctx)
	if err != nil {
		return nil, err
	}
	defer unlock()
	if *slot != nil {
		return *slot, nil
	}
	k, err := t.primary(template)
	if err != nil {
		return nil, err
	}
	pub, err := tpm2.Unmarshal[tpm2.TPMTPublic](k.public.Area)
	if err != nil {
		return nil, errors.Join(err, t.flush(k.handle))
	}
	point, err := tpm2.Pub(*pub)
	if err != nil {
		return nil, errors.Join(err, t.flush(k.handle))
	}
	key, ok := point.(*ecdsa.PublicKey)
	if !ok {
		return nil, errors.Join(fmt.Errorf("TPM returned a key of type %T", point), t.flush(k.handle))
	}
	k.key = key
	*slot = k
	return k, nil
}

// primary derives a key in the endorsement hierarchy and leaves it loaded.
func (t *TPM) primary(template tpm2.TPMTPublic) (*loaded, error) {
	rsp, err := tpm2.CreatePrimary{
		PrimaryHandle: tpm2.AuthHandle{Handle: tpm2.TPMRHEndorsement, Auth: tpm2.PasswordAuth(nil)},
		InPublic:      tpm2.New2B(template),
	}.Execute(t.link)
	if err != nil {
		return nil, clear(err)
	}
	return &loaded{
		handle: rsp.ObjectHandle,
		name:   rsp.Name,
		public: Public{Area: bytes.Clone(rsp.OutPublic.Bytes()), Name: bytes.Clone(rsp.Name.Buffer)},
	}, nil
}

func (t *TPM) flush(h tpm2.TPMHandle) error {
	if _, err := (tpm2.FlushContext{FlushHandle: h}).Execute(t.link); err != nil {
		return fmt.Errorf("flush key: %w", clear(err))
	}
	return nil
}

// transientFirst is the first handle of loaded objects (Part 2, TPM_HC).
const transientFirst = 0x80000000

// flushTransient unloads all keys; only for a TPM that nobody else uses.
func (t *TPM) flushTransient() error {
	rsp, err := tpm2.GetCapability{Capability: tpm2.TPMCapHandles, Property: transientFirst, PropertyCount: 64}.Execute(t.link)
	if err != nil {
		return fmt.Errorf("list loaded keys: %w", clear(err))
	}
	handles, err := rsp.CapabilityData.Data.Handles()
	if err != nil {
		return fmt.Errorf("list loaded keys: %w", err)
	}
	for _, h := range handles.Handle {
		if err := t.flush(h); err != nil {
			return err
		}
	}
	return nil
}

func (k *loaded) auth() tpm2.AuthHandle {
	return tpm2.AuthHandle{Handle: k.handle, Name: k.name, Auth: tpm2.PasswordAuth(nil)}
}

func (p Public) clone() Public {
	return Public{Area: bytes.Clone(p.Area), Name: bytes.Clone(p.Name)}
}
