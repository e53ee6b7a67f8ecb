// SPDX-License-Identifier: Apache-2.0

package tpm

import (
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/asn1"
	"encoding/hex"
	"errors"
	"fmt"

	"github.com/google/go-tpm/tpm2"
)

// Where the TCG EK Credential Profile puts the RSA-2048 endorsement key and
// its certificate.
const (
	ekHandle      tpm2.TPMHandle = 0x81010001
	ekCertificate tpm2.TPMHandle = 0x01c00002
)

// Bounds of reading the certificate, in bytes.
const (
	maxCertificate = 8 << 10
	nvChunk        = 512
)

// CardID names a card: the SHA-256 of the encoded TPMT_PUBLIC of its TPM's
// endorsement key. It stays the same for the TPM's life. It is a name, no
// proof: everyone may say it; see firmware/evidence for what proves it.
type CardID [32]byte

// String returns the id in lower-case hexadecimal.
func (id CardID) String() string { return hex.EncodeToString(id[:]) }

// CardIDOf returns the id that goes with an encoded TPMT_PUBLIC.
func CardIDOf(ekPublic []byte) CardID { return sha256.Sum256(ekPublic) }

// Endorsement is the TPM's endorsement key, and the certificate its maker gave it.
type Endorsement struct {
	// Public is the encoded TPMT_PUBLIC of the RSA-2048 endorsement key.
	Public []byte
	// Certificate is X.509 in DER, nil if the TPM has none.
	Certificate []byte
}

// CardID returns the id of the card with this endorsement key.
func (e Endorsement) CardID() CardID { return CardIDOf(e.Public) }

// Endorsement returns the endorsement key of template L-1 (TCG EK Credential
// Profile), from its persistent handle if the maker left it there, and derived
// anew otherwise, which takes a hardware TPM seconds.
func (t *TPM) Endorsement(ctx context.Context) (Endorsement, error) {
	unlock, err := t.lock(ctx)
	if err != nil {
		return Endorsement{}, fmt.Errorf("read endorsement key: %w", err)
	}
	defer unlock()
	public, err := t.endorsementKey()
	if err != nil {
		return Endorsement{}, fmt.Errorf("read endorsement key: %w", err)
	}
	cert, err := t.endorsementCertificate()
	if err != nil {
		return Endorsement{}, fmt.Errorf("read endorsement certificate: %w", err)
	}
	return Endorsement{Public: public, Certificate: cert}, nil
}

func (t *TPM) endorsementKey() ([]byte, error) {
	rsp, err := tpm2.ReadPublic{ObjectHandle: ekHandle}.Execute(t.link)
	switch {
	case err == nil && isEndorsement(rsp.OutPublic):
		return bytes.Clone(rsp.OutPublic.Bytes()), nil
	case err != nil && !errors.Is(err, tpm2.TPMRCHandle):
		return nil, clear(err)
	}
	k, err := t.primary(tpm2.RSAEKTemplate)
	if err != nil {
		return nil, err
	}
	return k.public.Area, t.flush(k.handle)
}

// isEndorsement reports whether a key is of the template: the same in all but
// its modulus. The owner of a TPM may persist any key at the handle.
func isEndorsement(p tpm2.TPM2BPublic) bool {
	public, err := p.Contents()
	if err != nil {
		return false
	}
	got := *public
	got.Unique = tpm2.RSAEKTemplate.Unique
	return bytes.Equal(tpm2.Marshal(got), tpm2.Marshal(tpm2.RSAEKTemplate))
}

// endorsementCertificate returns nil if the TPM's maker left no certificate.
func (t *TPM) endorsementCertificate() ([]byte, error) {
	index, err := tpm2.NVReadPublic{NVIndex: ekCertificate}.Execute(t.link)
	if errors.Is(err, tpm2.TPMRCHandle) {
		return nil, nil
	}
	if err != nil {
		return nil, clear(err)
	}
	public, err := index.NVPublic.Contents()
	if err != nil {
		return nil, err
	}
	if public.DataSize > maxCertificate {
		return nil, fmt.Errorf("certificate of %d bytes, at most %d are read", public.DataSize, maxCertificate)
	}
	data, err := t.readNV(index.NVName, public.DataSize)
	if err != nil {
		return nil, err
	}
	// Makers fill the index up behind the certificate.
	var cert asn1.RawValue
	if _, err := asn1.Unmarshal(data, &cert); err != nil {
		return nil, fmt.Errorf("index %#x holds no DER: %w", uint32(ekCertificate), err)
	}
	return bytes.Clone(cert.FullBytes), nil
}

func (t *TPM) readNV(name tpm2.TPM2BName, size uint16) ([]byte, error) {
	var out []byte
	for offset := uint16(0); offset < size; {
		n := min(size-offset, nvChunk)
		rsp, err := tpm2.NVRead{
			AuthHandle: tpm2.AuthHandle{Handle: ekCertificate, Name: name, Auth: tpm2.PasswordAuth(nil)},
			NVIndex:    tpm2.NamedHandle{Handle: ekCertificate, Name: name},
			Size:       n,
			Offset:     offset,
		}.Execute(t.link)
		if err != nil {
			return nil, clear(err)
		}
		if len(rsp.Data.Buffer) != int(n) {
			return nil, fmt.Errorf("TPM returned %d bytes of %d", len(rsp.Data.Buffer), n)
		}
		out = append(out, rsp.Data.Buffer...)
		offset += n
	}
	return out, nil
}
