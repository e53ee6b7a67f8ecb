// SPDX-License-Identifier: Apache-2.0

package uki

import (
	"bytes"
	"crypto"
	"crypto/rand"
	"crypto/rsa"
	"crypto/sha256"
	"crypto/x509"
	encoding "encoding/asn1"
	"errors"
	"fmt"
	"math/big"

	"golang.org/x/crypto/cryptobyte"
	"golang.org/x/crypto/cryptobyte/asn1"
)

// Object identifiers of PKCS #7, PKCS #9 and Authenticode.
var (
	oidSignedData    = encoding.ObjectIdentifier{1, 2, 840, 113549, 1, 7, 2}
	oidContentType   = encoding.ObjectIdentifier{1, 2, 840, 113549, 1, 9, 3}
	oidMessageDigest = encoding.ObjectIdentifier{1, 2, 840, 113549, 1, 9, 4}
	oidSHA256        = encoding.ObjectIdentifier{2, 16, 840, 1, 101, 3, 4, 2, 1}
	oidRSA           = encoding.ObjectIdentifier{1, 2, 840, 113549, 1, 1, 1}
	oidSHA256RSA     = encoding.ObjectIdentifier{1, 2, 840, 113549, 1, 1, 11}
	oidSpcIndirect   = encoding.ObjectIdentifier{1, 3, 6, 1, 4, 1, 311, 2, 1, 4}
	oidSpcPEImage    = encoding.ObjectIdentifier{1, 3, 6, 1, 4, 1, 311, 2, 1, 15}
)

const (
	tag0 = asn1.Tag(0x80) // context-specific 0, primitive
	tag1 = asn1.Tag(0x81)
	cons = asn1.Tag(0x20) // constructed
)

// signedData is what Verify needs of a parsed signature.
type signedData struct {
	imageDigest []byte // the digest that the signature is about
	content     []byte // SpcIndirectDataContent without tag and length
	issuer      []byte
	serial      *big.Int
	attributes  []byte // authenticated attributes, DER, with the tag they are signed with
	messageSum  []byte
	signature   []byte
}

// marshalIndirect encodes the inside of SpcIndirectDataContent: what is signed
// (a PE image) and its digest. The file name that belongs there by the
// specification is the text that signers put since it is out of use.
func marshalIndirect(digest [32]byte) ([]byte, error) {
	var b cryptobyte.Builder
	b.AddASN1(asn1.SEQUENCE, func(b *cryptobyte.Builder) { // data
		b.AddASN1ObjectIdentifier(oidSpcPEImage)
		b.AddASN1(asn1.SEQUENCE, func(b *cryptobyte.Builder) { // SpcPeImageData
			b.AddASN1(asn1.BIT_STRING, func(b *cryptobyte.Builder) { b.AddUint8(0) })
			b.AddASN1(tag0|cons, func(b *cryptobyte.Builder) { // file: SpcLink
				b.AddASN1(asn1.Tag(0x82)|cons, func(b *cryptobyte.Builder) {
					b.AddASN1(tag0, func(b *cryptobyte.Builder) {
						for _, c := range []byte("<<<Obsolete>>>") {
							b.AddUint16(uint16(c)) // BMPString
						}
					})
				})
			})
		})
	})
	b.AddASN1(asn1.SEQUENCE, func(b *cryptobyte.Builder) { // messageDigest: DigestInfo
		addAlgorithm(b, oidSHA256)
		b.AddASN1OctetString(digest[:])
	})
	return b.Bytes()
}

func addAlgorithm(b *cryptobyte.Builder, oid encoding.ObjectIdentifier) {
	b.AddASN1(asn1.SEQUENCE, func(b *cryptobyte.Builder) {
		b.AddASN1ObjectIdentifier(oid)
		b.AddASN1NULL()
	})
}

// marshalAttributes encodes the authenticated attributes as the SET that is
// signed. There is no signing time: firmware ignores it, and without it the
// signature of an image is always the same. The order is that of DER (by
// encoding; the two begin alike, and the longer has the larger length byte).
func marshalAttributes(contentSum []byte) ([]byte, error) {
	var b cryptobyte.Builder
	b.AddASN1(asn1.SET, func(b *cryptobyte.Builder) {
		b.AddASN1(asn1.SEQUENCE, func(b *cryptobyte.Builder) {
			b.AddASN1ObjectIdentifier(oidContentType)
			b.AddASN1(asn1.SET, func(b *cryptobyte.Builder) { b.AddASN1ObjectIdentifier(oidSpcIndirect) })
		})
		b.AddASN1(asn1.SEQUENCE, func(b *cryptobyte.Builder) {
			b.AddASN1ObjectIdentifier(oidMessageDigest)
			b.AddASN1(asn1.SET, func(b *cryptobyte.Builder) { b.AddASN1OctetString(contentSum) })
		})
	})
	return b.Bytes()
}

// signPKCS7 makes the DER ContentInfo of an Authenticode signature over an
// image's digest. The key must be RSA and belong to the certificate.
func signPKCS7(digest [32]byte, key crypto.Signer, cert *x509.Certificate) ([]byte, error) {
	pub, ok := key.Public().(*rsa.PublicKey)
	if !ok || !pub.Equal(cert.PublicKey) {
		return nil, errors.New("the key is not the certificate's RSA key")
	}
	content, err := marshalIndirect(digest)
	if err != nil {
		return nil, err
	}
	contentSum := sha256.Sum256(content)
	attributes, err := marshalAttributes(contentSum[:])
	if err != nil {
		return nil, err
	}
	sum := sha256.Sum256(attributes)
	signature, err := key.Sign(rand.Reader, sum[:], crypto.SHA256)
	if err != nil {
		return nil, err
	}
	return marshalSignedData(content, attributes, signature, cert)
}

func marshalSignedData(content, attributes, signature []byte, cert *x509.Certificate) ([]byte, error) {
	var b cryptobyte.Builder
	b.AddASN1(asn1.SEQUENCE, func(b *cryptobyte.Builder) { // ContentInfo
		b.AddASN1ObjectIdentifier(oidSignedData)
		b.AddASN1(tag0|cons, func(b *cryptobyte.Builder) {
			b.AddASN1(asn1.SEQUENCE, func(b *cryptobyte.Builder) { // SignedData
				b.AddASN1Int64(1)
				b.AddASN1(asn1.SET, func(b *cryptobyte.Builder) { addAlgorithm(b, oidSHA256) })
				b.AddASN1(asn1.SEQUENCE, func(b *cryptobyte.Builder) { // contentInfo
					b.AddASN1ObjectIdentifier(oidSpcIndirect)
					b.AddASN1(tag0|cons, func(b *cryptobyte.Builder) {
						b.AddASN1(asn1.SEQUENCE, func(b *cryptobyte.Builder) { b.AddBytes(content) })
					})
				})
				b.AddASN1(tag0|cons, func(b *cryptobyte.Builder) { b.AddBytes(cert.Raw) })
				b.AddASN1(asn1.SET, func(b *cryptobyte.Builder) { // signerInfos
					addSignerInfo(b, attributes, signature, cert)
				})
			})
		})
	})
	return b.Bytes()
}

func addSignerInfo(b *cryptobyte.Builder, attributes, signature []byte, cert *x509.Certificate) {
	b.AddASN1(asn1.SEQUENCE, func(b *cryptobyte.Builder) {
		b.AddASN1Int64(1)
		b.AddASN1(asn1.SEQUENCE, func(b *cryptobyte.Builder) { // issuerAndSerialNumber
			b.AddBytes(cert.RawIssuer)
			b.AddASN1BigInt(cert.SerialNumber)
		})
		addAlgorithm(b, oidSHA256)
		b.AddASN1(tag0|cons, func(b *cryptobyte.Builder) { // the SET's inside, under its implicit tag
			set := cryptobyte.String(attributes)
			var inside cryptobyte.String
			if !set.ReadASN1(&inside, asn1.SET) {
				b.SetError(errors.New("attributes are not a set"))
			}
			b.AddBytes(inside)
		})
		addAlgorithm(b, oidRSA)
		b.AddASN1OctetString(signature)
	})
}

// check verifies a parsed signature against an image's digest and the
// certificate that is trusted. Every link is checked: image digest → content →
// message digest attribute → signed attributes → key.
func (s *signedData) check(digest [32]byte, cert *x509.Certificate) error {
	if !bytes.Equal(s.issuer, cert.RawIssuer) || s.serial.Cmp(cert.SerialNumber) != 0 {
		return errors.New("signed by another certificate")
	}
	if !bytes.Equal(s.imageDigest, digest[:]) {
		return fmt.Errorf("the image's digest is %x, the signature is for %x", digest, s.imageDigest)
	}
	if sum := sha256.Sum256(s.content); !bytes.Equal(s.messageSum, sum[:]) {
		return errors.New("the signed attributes are not about the signed content")
	}
	pub, ok := cert.PublicKey.(*rsa.PublicKey)
	if !ok {
		return fmt.Errorf("the certificate's key is a %T, want RSA", cert.PublicKey)
	}
	sum := sha256.Sum256(s.attributes)
	return rsa.VerifyPKCS1v15(pub, crypto.SHA256, sum[:], s.signature)
}
