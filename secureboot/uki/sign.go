// SPDX-License-Identifier: Apache-2.0

package uki

import (
	"bytes"
	"crypto"
	"crypto/x509"
	"errors"
	"fmt"
)

// Decisions of Sign and Verify.
var (
	// ErrUnsigned says that an image carries no signature.
	ErrUnsigned = errors.New("image is not signed")
	// ErrUntrusted says that an image carries no valid signature by the
	// certificate it was checked with.
	ErrUntrusted = errors.New("image is not signed by the trusted certificate")
	// ErrSigned says that an image is signed already.
	ErrSigned = errors.New("image is signed already")
)

// Header of an attribute certificate (WIN_CERTIFICATE): dwLength, wRevision,
// wCertificateType. Certificates begin at multiples of 8 bytes.
const (
	certHeader      = 8
	certRevision2   = 0x0200
	certPKCSSigned  = 0x0002
	maxCertificates = 16
)

// Verified is an image with a valid signature of a certificate that the caller
// trusts. Only Verify makes one.
type Verified struct {
	*Image
	Certificate *x509.Certificate // the one that signed
}

// Sign gives image with an Authenticode signature appended. The key must be
// the certificate's, and RSA. The same image, key and certificate give the same
// result. An image that is signed already is refused with ErrSigned.
func Sign(image []byte, key crypto.Signer, cert *x509.Certificate) ([]byte, error) {
	img, err := Open(image)
	if err != nil {
		return nil, fmt.Errorf("sign image: %w", err)
	}
	if img.Signed() {
		return nil, ErrSigned
	}
	signature, err := signPKCS7(img.Digest(), key, cert)
	if err != nil {
		return nil, fmt.Errorf("sign image: %w", err)
	}
	out := pad(bytes.Clone(image), 8)
	start := len(out)
	out = le.AppendUint32(out, uint32(certHeader+len(signature)))
	out = le.AppendUint16(out, certRevision2)
	out = le.AppendUint16(out, certPKCSSigned)
	out = pad(append(out, signature...), 8)
	le.PutUint32(out[img.header.certDir:], uint32(start))
	le.PutUint32(out[img.header.certDir+4:], uint32(len(out)-start))
	// The checksum may not stay as it was, and zero means that there is none.
	le.PutUint32(out[img.header.optional+offCheckSum:], 0)
	return out, nil
}

// Verify checks that one of the image's signatures was made by cert over the
// image as it is. Dates and chains are not looked at, as firmware does with
// certificates in db. The error wraps ErrUnsigned or ErrUntrusted.
func (i *Image) Verify(cert *x509.Certificate) (*Verified, error) {
	if !i.Signed() {
		return nil, ErrUnsigned
	}
	signatures, err := i.signatures()
	if err != nil {
		return nil, fmt.Errorf("%w: %w", ErrUntrusted, err)
	}
	digest := i.Digest()
	var reasons []error
	for n, raw := range signatures {
		s, err := parsePKCS7(raw)
		if err == nil {
			err = s.check(digest, cert)
		}
		if err == nil {
			return &Verified{Image: i, Certificate: cert}, nil
		}
		reasons = append(reasons, fmt.Errorf("signature %d: %w", n+1, err))
	}
	return nil, fmt.Errorf("%w %q: %w", ErrUntrusted, cert.Subject, errors.Join(reasons...))
}

// signatures splits the certificate table into its PKCS #7 signatures.
func (i *Image) signatures() ([][]byte, error) {
	table := i.data[i.header.certOffset:]
	var list [][]byte
	for len(table) > 0 {
		if len(table) < certHeader || len(list) == maxCertificates {
			return nil, fmt.Errorf("certificate table: %d bytes left over", len(table))
		}
		n := uint64(le.Uint32(table))
		if n < certHeader || n > uint64(len(table)) {
			return nil, fmt.Errorf("certificate table: entry of %d bytes, %d left", n, len(table))
		}
		if le.Uint16(table[4:]) == certRevision2 && le.Uint16(table[6:]) == certPKCSSigned {
			list = append(list, trimDER(table[certHeader:n]))
		}
		table = table[min(align(n, 8), uint64(len(table))):]
	}
	if len(list) == 0 {
		return nil, errors.New("certificate table: no PKCS #7 signature")
	}
	return list, nil
}

// trimDER cuts the zeros behind a DER value that some signers count into the
// entry's length.
func trimDER(b []byte) []byte {
	if len(b) < 4 || b[0] != 0x30 || b[1] != 0x82 {
		return b
	}
	n := 4 + int(b[2])<<8 + int(b[3])
	if n <= len(b) && len(b)-n < 8 && len(bytes.Trim(b[n:], "\x00")) == 0 {
		return b[:n]
	}
	return b
}
