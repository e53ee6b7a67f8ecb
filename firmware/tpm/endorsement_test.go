// SPDX-License-Identifier: Apache-2.0

package tpm

import (
	"bytes"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/x509"
	"math/big"
	"testing"

	"github.com/google/go-tpm/tpm2"
)

// A maker's certificate index is larger than the certificate, and read in
// several pieces.
func TestEndorsementCertificate(t *testing.T) {
	t.Parallel()
	tpm, _ := openTest(t)
	cert := certificate(t)
	writeNV(t, tpm, append(bytes.Clone(cert), make([]byte, 1500-len(cert))...))
	ek, err := tpm.Endorsement(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	if !bytes.Equal(ek.Certificate, cert) {
		t.Errorf("certificate of %d bytes, want %d", len(ek.Certificate), len(cert))
	}
}

func TestEndorsementCertificateRefused(t *testing.T) {
	t.Parallel()
	tpm, _ := openTest(t)
	writeNV(t, tpm, bytes.Repeat([]byte{0xff}, 700))
	if ek, err := tpm.Endorsement(t.Context()); err == nil || ek.Public != nil {
		t.Errorf("Endorsement with garbage for a certificate = %v, %v, want an error", ek, err)
	}
}

// The maker's persistent key is used; any other key that an owner persisted in
// its place is not.
func TestPersistentEndorsement(t *testing.T) {
	t.Parallel()
	tpm, _ := openTest(t)
	derived, err := tpm.Endorsement(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	for name, template := range map[string]tpm2.TPMTPublic{"the same": tpm2.RSAEKTemplate, "another": tpm2.RSASRKTemplate} {
		k, err := tpm.primary(template)
		if err != nil {
			t.Fatal(err)
		}
		evict := tpm2.EvictControl{
			Auth:             tpm2.AuthHandle{Handle: tpm2.TPMRHOwner, Auth: tpm2.PasswordAuth(nil)},
			ObjectHandle:     &tpm2.NamedHandle{Handle: k.handle, Name: k.name},
			PersistentHandle: ekHandle,
		}
		if _, err := evict.Execute(tpm.link); err != nil {
			t.Fatal(err)
		}
		if err := tpm.flush(k.handle); err != nil {
			t.Fatal(err)
		}
		got, err := tpm.Endorsement(t.Context())
		if err != nil {
			t.Fatal(err)
		}
		if !bytes.Equal(got.Public, derived.Public) {
			t.Errorf("with %s key at the handle, the endorsement key is %x", name, got.Public)
		}
		evict.ObjectHandle = &tpm2.NamedHandle{Handle: ekHandle, Name: k.name}
		if _, err := evict.Execute(tpm.link); err != nil {
			t.Fatal(err)
		}
	}
}

func certificate(t *testing.T) []byte {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	template := &x509.Certificate{SerialNumber: big.NewInt(1), DNSNames: make([]string, 60)}
	for i := range template.DNSNames {
		template.DNSNames[i] = "tpm.example"
	}
	der, err := x509.CreateCertificate(rand.Reader, template, template, key.Public(), key)
	if err != nil {
		t.Fatal(err)
	}
	return der
}

// writeNV does what a maker does: it defines the certificate's index and
// fills it.
func writeNV(t *testing.T, tpm *TPM, data []byte) {
	t.Helper()
	owner := tpm2.AuthHandle{Handle: tpm2.TPMRHOwner, Auth: tpm2.PasswordAuth(nil)}
	public := tpm2.TPMSNVPublic{
		NVIndex:    ekCertificate,
		NameAlg:    tpm2.TPMAlgSHA256,
		Attributes: tpm2.TPMANV{OwnerWrite: true, OwnerRead: true, AuthRead: true, NoDA: true},
		DataSize:   uint16(len(data)),
	}
	if _, err := (tpm2.NVDefineSpace{AuthHandle: owner, PublicInfo: tpm2.New2B(public)}).Execute(tpm.link); err != nil {
		t.Fatal(err)
	}
	for offset := 0; offset < len(data); offset += nvChunk {
		read, err := tpm2.NVReadPublic{NVIndex: ekCertificate}.Execute(tpm.link)
		if err != nil {
			t.Fatal(err)
		}
		_, err = tpm2.NVWrite{
			AuthHandle: owner,
			NVIndex:    tpm2.NamedHandle{Handle: ekCertificate, Name: read.NVName},
			Data:       tpm2.TPM2BMaxNVBuffer{Buffer: data[offset:min(offset+nvChunk, len(data))]},
			Offset:     uint16(offset),
		}.Execute(tpm.link)
		if err != nil {
			t.Fatal(err)
		}
	}
}
