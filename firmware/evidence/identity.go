// SPDX-License-Identifier: Apache-2.0

package evidence

import (
	"bytes"
	"crypto"
	"crypto/sha256"
	"crypto/x509"
	"encoding/asn1"
	"encoding/hex"
	"errors"
	"fmt"
	"slices"

	"github.com/google/go-tpm/tpm2"
)

// subjectAltName is critical in endorsement certificates, whose subject is
// empty, and names the TPM in a form that crypto/x509 does not read (TCG EK
// Credential Profile, "Subject Alternative Name").
var subjectAltName = asn1.ObjectIdentifier{2, 5, 29, 17}

// identity looks at who the card says it is.
func (a *appraisal) identity() {
	var name, id, issuer string
	errName, errCard, errCert := errNoTPM, errNoTPM, errNoTPM
	if t := a.doc.TPM; t != nil {
		sum := sha256.Sum256(t.EndorsementKey)
		name, id = hex.EncodeToString(nameOf(t.AttestationKey)), hex.EncodeToString(sum[:])
		a.report.CardID = id
		errName = a.checkPin(nameOf(t.AttestationKey), a.expect.AttestationKey, "attestation key")
		errCard = a.checkPin(sum[:], a.expect.CardID, "card")
		issuer, errCert = a.checkCertificate(t)
	}
	a.claim("ak.identity", hex.EncodeToString(a.expect.AttestationKey), name, errName)
	a.claim("card.identity", hex.EncodeToString(a.expect.CardID), id, errCard)
	a.claim("ek.certificate", "issued by a configured root", issuer, errCert)
}

// checkPin compares with what was pinned. A name is worth nothing before the
// quote is signed by the key, and for this document.
func (a *appraisal) checkPin(got, want []byte, what string) error {
	switch {
	case a.ak == nil:
		return errors.New("quote is not signed")
	case len(want) == 0:
		return fmt.Errorf("no %s is pinned", what)
	case !bytes.Equal(got, want):
		return fmt.Errorf("it is another %s", what)
	}
	return nil
}

func (a *appraisal) checkCertificate(t *TPM) (issuer string, err error) {
	if t.Certificate == nil {
		return "", errors.New("the TPM has no endorsement certificate")
	}
	cert, err := x509.ParseCertificate(t.Certificate)
	if err != nil {
		return "", fmt.Errorf("endorsement certificate: %w", err)
	}
	issuer = cert.Issuer.String()
	switch {
	case a.expect.EndorsementRoots == nil:
		return issuer, errors.New("no roots are configured")
	case a.expect.Now.IsZero():
		return issuer, errors.New("no time to check it at was given")
	}
	if err := sameKey(cert.PublicKey, t.EndorsementKey); err != nil {
		return issuer, err
	}
	cert.UnhandledCriticalExtensions = slices.DeleteFunc(cert.UnhandledCriticalExtensions, subjectAltName.Equal)
	_, err = cert.Verify(x509.VerifyOptions{
		Roots:         a.expect.EndorsementRoots,
		Intermediates: a.expect.EndorsementIntermediates,
		CurrentTime:   a.expect.Now,
		KeyUsages:     []x509.ExtKeyUsage{x509.ExtKeyUsageAny},
	})
	if err != nil {
		return issuer, fmt.Errorf("endorsement certificate: %w", err)
	}
	return issuer, nil
}

// sameKey reports whether a certificate's key is the one of a public area.
func sameKey(certified crypto.PublicKey, area []byte) error {
	pub, err := unmarshal[tpm2.TPMTPublic](area)
	if err != nil {
		return fmt.Errorf("endorsement key: %w", err)
	}
	key, err := tpm2.Pub(*pub)
	if err != nil {
		return fmt.Errorf("endorsement key: %w", err)
	}
	comparable, ok := key.(interface{ Equal(crypto.PublicKey) bool })
	if !ok || !comparable.Equal(certified) {
		return errors.New("endorsement certificate is of another key")
	}
	return nil
}
