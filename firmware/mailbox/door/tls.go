// SPDX-License-Identifier: Apache-2.0

package door

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/sha256"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"errors"
	"fmt"
	"math/big"
	"time"
)

// Protocol is the ALPN name of the framing.
const Protocol = "davit-mailbox/1"

// Identity makes what a TLS door shows: a key and a self-signed certificate,
// for TLS 1.3 only. It is made at start and never stored. The certificate
// proves nothing by itself, and its dates are wide: nobody checks them, and the
// card's clock may not be right yet. What proves that the other end of the TLS
// channel is the card is binding, the SHA-256 of the certificate's
// SubjectPublicKeyInfo, which the card puts into every receipt that it signs
// (mailbox.Door.Binding).
func Identity() (config *tls.Config, binding []byte, err error) {
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return nil, nil, fmt.Errorf("make TLS key: %w", err)
	}
	template := &x509.Certificate{
		SerialNumber: big.NewInt(1),
		Subject:      pkix.Name{CommonName: "davit card"},
		NotBefore:    time.Date(2000, 1, 1, 0, 0, 0, 0, time.UTC),
		NotAfter:     time.Date(9999, 12, 31, 23, 59, 59, 0, time.UTC), // RFC 5280 section 4.1.2.5: no end
	}
	der, err := x509.CreateCertificate(rand.Reader, template, template, key.Public(), key)
	if err != nil {
		return nil, nil, fmt.Errorf("make TLS certificate: %w", err)
	}
	cert, err := x509.ParseCertificate(der)
	if err != nil {
		return nil, nil, fmt.Errorf("make TLS certificate: %w", err)
	}
	sum := sha256.Sum256(cert.RawSubjectPublicKeyInfo)
	return &tls.Config{
		Certificates:           []tls.Certificate{{Certificate: [][]byte{der}, PrivateKey: key, Leaf: cert}},
		MinVersion:             tls.VersionTLS13,
		NextProtos:             []string{Protocol},
		SessionTicketsDisabled: true, // a resumed session would show no certificate
	}, sum[:], nil
}

// clientTLS accepts any certificate and notes its key's hash: the channel is
// trusted only once a receipt names the same hash.
func clientTLS(binding *[]byte) *tls.Config {
	return &tls.Config{
		MinVersion:         tls.VersionTLS13,
		NextProtos:         []string{Protocol},
		InsecureSkipVerify: true,
		VerifyConnection: func(state tls.ConnectionState) error {
			if len(state.PeerCertificates) == 0 || state.NegotiatedProtocol != Protocol {
				return errors.New("the other end is not a Davit card")
			}
			sum := sha256.Sum256(state.PeerCertificates[0].RawSubjectPublicKeyInfo)
			*binding = sum[:]
			return nil
		},
	}
}
