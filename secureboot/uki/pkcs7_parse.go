// SPDX-License-Identifier: Apache-2.0

package uki

import (
	"bytes"
	encoding "encoding/asn1"
	"errors"
	"fmt"
	"math/big"

	"golang.org/x/crypto/cryptobyte"
	"golang.org/x/crypto/cryptobyte/asn1"
)

// der reads DER with one error at the end of a run: after the first failure all
// reads fail.
type der struct {
	cryptobyte.String
	bad string
}

func (d *der) fail(what string) {
	if d.bad == "" {
		d.bad = what
		d.String = nil
	}
}

func (d *der) err() error {
	if d.bad != "" {
		return fmt.Errorf("%w: %s", errSignature, d.bad)
	}
	return nil
}

var errSignature = errors.New("malformed signature")

// in gives the inside of the next element.
func (d *der) in(tag asn1.Tag, what string) *der {
	var inside cryptobyte.String
	if d.bad != "" || !d.ReadASN1(&inside, tag) {
		d.fail(what)
		return &der{bad: d.bad}
	}
	return &der{String: inside}
}

// oid reads an object identifier and compares it.
func (d *der) oid(what string, want ...encoding.ObjectIdentifier) {
	var got encoding.ObjectIdentifier
	if d.bad != "" || !d.ReadASN1ObjectIdentifier(&got) {
		d.fail(what)
		return
	}
	for _, w := range want {
		if got.Equal(w) {
			return
		}
	}
	d.fail(fmt.Sprintf("%s is %v, want %v", what, got, want))
}

// algorithm reads an AlgorithmIdentifier with no parameters or NULL.
func (d *der) algorithm(what string, want ...encoding.ObjectIdentifier) {
	a := d.in(asn1.SEQUENCE, what)
	a.oid(what, want...)
	if a.bad == "" && !a.Empty() && !bytes.Equal(a.String, []byte{5, 0}) {
		a.fail(what + " has parameters")
	}
	d.adopt(a)
}

// adopt takes over the failure of a part.
func (d *der) adopt(part *der) {
	if part.bad != "" {
		d.fail(part.bad)
	}
}

func (d *der) octets(what string) []byte {
	return d.in(asn1.OCTET_STRING, what).String
}

// end demands that nothing is left.
func (d *der) end(what string) {
	if d.bad == "" && !d.Empty() {
		d.fail("more behind " + what)
	}
}

// parsePKCS7 parses the DER of an Authenticode signature: one signer, SHA-256,
// RSA. Anything else is refused, as are bytes behind it.
func parsePKCS7(b []byte) (*signedData, error) {
	var s signedData
	top := &der{String: b}
	info := top.in(asn1.SEQUENCE, "content info")
	top.end("content info")
	info.oid("content type", oidSignedData)
	outer := info.in(tag0|cons, "signed data")
	sd := outer.in(asn1.SEQUENCE, "signed data")
	sd.version()
	sets := sd.in(asn1.SET, "digest algorithms")
	sets.algorithm("digest algorithm", oidSHA256)
	inner := sd.in(asn1.SEQUENCE, "inner content info")
	s.parseContent(inner)
	if sd.bad == "" && sd.PeekASN1Tag(tag0|cons) {
		sd.in(tag0|cons, "certificates") // trust comes from the caller's certificate only
	}
	if sd.bad == "" && sd.PeekASN1Tag(tag1|cons) {
		sd.in(tag1|cons, "revocation lists")
	}
	signers := sd.in(asn1.SET, "signer infos")
	sd.end("signer infos")
	signer := signers.in(asn1.SEQUENCE, "signer info")
	signers.end("the first signer info")
	s.parseSigner(signer)
	for _, d := range []*der{top, info, outer, sd, sets, inner, signers, signer} {
		if err := d.err(); err != nil {
			return nil, err
		}
	}
	return &s, nil
}

func (d *der) version() {
	var v int64
	if d.bad != "" || !d.ReadASN1Integer(&v) || v != 1 {
		d.fail("version is not 1")
	}
}

// parseContent reads SpcIndirectDataContent.
func (s *signedData) parseContent(d *der) {
	d.oid("inner content type", oidSpcIndirect)
	explicit := d.in(tag0|cons, "content")
	content := explicit.in(asn1.SEQUENCE, "indirect data")
	explicit.end("indirect data")
	s.content = bytes.Clone(content.String)
	data := content.in(asn1.SEQUENCE, "image data")
	data.oid("image data type", oidSpcPEImage)
	info := content.in(asn1.SEQUENCE, "digest info")
	content.end("digest info")
	info.algorithm("image digest algorithm", oidSHA256)
	s.imageDigest = info.octets("image digest")
	info.end("image digest")
	for _, part := range []*der{explicit, content, data, info} {
		d.adopt(part)
	}
}

// parseSigner reads SignerInfo.
func (s *signedData) parseSigner(d *der) {
	d.version()
	id := d.in(asn1.SEQUENCE, "issuer and serial number")
	var issuer cryptobyte.String
	s.serial = new(big.Int)
	if id.bad == "" && (!id.ReadASN1Element(&issuer, asn1.SEQUENCE) || !id.ReadASN1Integer(s.serial) || !id.Empty()) {
		id.fail("issuer and serial number")
	}
	d.adopt(id)
	s.issuer = issuer
	d.algorithm("signer's digest algorithm", oidSHA256)
	attributes := d.in(tag0|cons, "authenticated attributes")
	s.attributes = retag(attributes.String)
	s.parseAttributes(attributes)
	d.adopt(attributes)
	d.algorithm("signature algorithm", oidRSA, oidSHA256RSA)
	s.signature = d.octets("signature")
	if d.bad == "" && d.PeekASN1Tag(tag1|cons) {
		d.in(tag1|cons, "unauthenticated attributes") // time stamps: nothing relies on them
	}
	d.end("signer info")
}

// parseAttributes takes the message digest and demands that both attributes
// that bind content and signature are there, once.
func (s *signedData) parseAttributes(d *der) {
	types := 0
	for d.bad == "" && !d.Empty() {
		attr := d.in(asn1.SEQUENCE, "attribute")
		var oid encoding.ObjectIdentifier
		if attr.bad != "" || !attr.ReadASN1ObjectIdentifier(&oid) {
			d.fail("attribute")
			return
		}
		values := attr.in(asn1.SET, "attribute's values")
		switch {
		case oid.Equal(oidContentType):
			values.oid("content type attribute", oidSpcIndirect)
			values.end("content type attribute")
			types++
		case oid.Equal(oidMessageDigest):
			if s.messageSum != nil {
				d.fail("message digest is there twice")
			}
			s.messageSum = values.octets("message digest")
			values.end("message digest")
		}
		d.adopt(attr)
		d.adopt(values)
	}
	if d.bad == "" && (types != 1 || s.messageSum == nil) {
		d.fail("content type or message digest attribute is missing, or there twice")
	}
}

// retag encodes the inside of the attributes as the SET that was signed.
func retag(inside []byte) []byte {
	var b cryptobyte.Builder
	b.AddASN1(asn1.SET, func(b *cryptobyte.Builder) { b.AddBytes(inside) })
	out, err := b.Bytes()
	if err != nil {
		return nil
	}
	return out
}
