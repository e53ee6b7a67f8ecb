// SPDX-License-Identifier: Apache-2.0

package keys

import (
	"bytes"
	"crypto/ed25519"
	"crypto/rand"
	"crypto/rsa"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/hex"
	"encoding/pem"
	"errors"
	"fmt"
	"io/fs"
	"math/big"
	"os"
	"path/filepath"
	"strings"
	"time"
)

// Decisions of this package.
var (
	// ErrExists says that a folder of keys is there already.
	ErrExists = errors.New("keys exist already")
	// ErrNotExist says that a folder has no keys.
	ErrNotExist = errors.New("no keys")
	// ErrPermissions says that others may read a private key.
	ErrPermissions = errors.New("private key is readable by others")
	// ErrDevelopment says that a development key was offered to production.
	ErrDevelopment = errors.New("development key in production")
)

// Names of the files in a folder of keys.
const (
	ImageKeyFile    = "image.key"
	ImageCertFile   = "image.crt"
	OperatorKeyFile = "operator.key"
	OperatorPubFile = "operator.pub"
)

// commonNamePrefix begins the common name of every development certificate.
const commonNamePrefix = "Davit development"

// Set is the keys of one checkout. The private keys must not be logged.
type Set struct {
	Dir         string             // where they lie
	Image       *rsa.PrivateKey    // signs images
	Certificate *x509.Certificate  // of Image, self-signed
	Operator    ed25519.PrivateKey // signs commands
}

// Ensure loads the keys in dir, after making them when there are none.
func Ensure(dir string, now time.Time) (*Set, error) {
	s, err := Load(dir)
	if !errors.Is(err, ErrNotExist) {
		return s, err
	}
	// Someone else may be as quick: then theirs are ours.
	if _, err := Create(dir, now); err != nil && !errors.Is(err, ErrExists) {
		return nil, err
	}
	return Load(dir)
}

// Create makes keys in dir, which must not exist or be empty; ErrExists is
// wrapped otherwise, and nothing is changed. The certificate is valid from a
// day before now (clocks of cards may be late) for ten years.
func Create(dir string, now time.Time) (*Set, error) {
	imageKey, err := rsa.GenerateKey(rand.Reader, 2048)
	if err != nil {
		return nil, fmt.Errorf("make image key: %w", err)
	}
	cert, err := selfSign(imageKey, now)
	if err != nil {
		return nil, fmt.Errorf("make image certificate: %w", err)
	}
	_, operator, err := ed25519.GenerateKey(rand.Reader)
	if err != nil {
		return nil, fmt.Errorf("make operator key: %w", err)
	}
	s := &Set{Dir: dir, Image: imageKey, Certificate: cert, Operator: operator}
	if err := s.store(); err != nil {
		return nil, fmt.Errorf("store keys in %s: %w", dir, err)
	}
	return s, nil
}

func selfSign(key *rsa.PrivateKey, now time.Time) (*x509.Certificate, error) {
	serial := make([]byte, 16)
	if _, err := rand.Read(serial); err != nil {
		return nil, err
	}
	serial[0] = serial[0]&0x7f | 1 // positive, and not zero
	template := &x509.Certificate{
		SerialNumber:          new(big.Int).SetBytes(serial),
		Subject:               pkix.Name{CommonName: commonNamePrefix + " image signing " + hex.EncodeToString(serial[:4])},
		NotBefore:             now.UTC().Add(-24 * time.Hour),
		NotAfter:              now.UTC().AddDate(10, 0, 0),
		KeyUsage:              x509.KeyUsageDigitalSignature,
		ExtKeyUsage:           []x509.ExtKeyUsage{x509.ExtKeyUsageCodeSigning},
		BasicConstraintsValid: true,
	}
	der, err := x509.CreateCertificate(rand.Reader, template, template, key.Public(), key)
	if err != nil {
		return nil, err
	}
	return x509.ParseCertificate(der)
}

// store writes the files into a folder beside s.Dir and renames it: a rename
// replaces an empty folder, and nothing else.
func (s *Set) store() error {
	parent := filepath.Dir(filepath.Clean(s.Dir))
	if err := os.MkdirAll(parent, 0o755); err != nil {
		return err
	}
	tmp, err := os.MkdirTemp(parent, ".keys-*") // mode 0700
	if err != nil {
		return err
	}
	defer os.RemoveAll(tmp)
	files, err := s.encode()
	if err != nil {
		return err
	}
	for name, b := range files {
		if err := writeSynced(filepath.Join(tmp, name), b); err != nil {
			return err
		}
	}
	if err := os.Rename(tmp, s.Dir); err != nil {
		if errors.Is(err, fs.ErrExist) { // also ENOTEMPTY
			return ErrExists
		}
		return err
	}
	return nil
}

func (s *Set) encode() (map[string][]byte, error) {
	image, err := x509.MarshalPKCS8PrivateKey(s.Image)
	if err != nil {
		return nil, err
	}
	operator, err := x509.MarshalPKCS8PrivateKey(s.Operator)
	if err != nil {
		return nil, err
	}
	public, err := x509.MarshalPKIXPublicKey(s.Operator.Public())
	if err != nil {
		return nil, err
	}
	encode := func(kind string, b []byte) []byte {
		return pem.EncodeToMemory(&pem.Block{Type: kind, Bytes: b})
	}
	return map[string][]byte{
		ImageKeyFile:    encode("PRIVATE KEY", image),
		ImageCertFile:   encode("CERTIFICATE", s.Certificate.Raw),
		OperatorKeyFile: encode("PRIVATE KEY", operator),
		OperatorPubFile: encode("PUBLIC KEY", public),
	}, nil
}

// writeSynced writes a new file of mode 0600 that survives a power loss.
func writeSynced(name string, b []byte) error {
	f, err := os.OpenFile(name, os.O_WRONLY|os.O_CREATE|os.O_EXCL, 0o600)
	if err != nil {
		return err
	}
	_, err = f.Write(b)
	return errors.Join(err, f.Sync(), f.Close())
}

// IsDevelopment tells if a certificate is marked as one of development.
func IsDevelopment(cert *x509.Certificate) bool {
	return strings.HasPrefix(cert.Subject.CommonName, commonNamePrefix)
}

// CheckProduction refuses development certificates with ErrDevelopment.
func CheckProduction(cert *x509.Certificate) error {
	if IsDevelopment(cert) {
		return fmt.Errorf("%w: %q", ErrDevelopment, cert.Subject.CommonName)
	}
	return nil
}

// ParseCertificate reads one PEM certificate, and nothing behind it.
func ParseCertificate(b []byte) (*x509.Certificate, error) {
	der, err := pemBlock(b, "CERTIFICATE")
	if err != nil {
		return nil, err
	}
	return x509.ParseCertificate(der)
}

func pemBlock(b []byte, kind string) ([]byte, error) {
	block, rest := pem.Decode(b)
	if block == nil || block.Type != kind || len(bytes.TrimSpace(rest)) != 0 {
		return nil, fmt.Errorf("not one PEM %s", kind)
	}
	return block.Bytes, nil
}
