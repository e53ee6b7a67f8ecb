// SPDX-License-Identifier: Apache-2.0

package mailbox

import (
	"crypto"
	"crypto/ecdsa"
	"crypto/ed25519"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/x509"
	"encoding/pem"
	"errors"
	"fmt"
	"io"
	"os"
	"strings"

	"github.com/veraison/go-cose"

	"github.com/davit-dpu/davit/firmware/spec"
)

// Algorithm is a signature algorithm by its name in COSE (RFC 9053).
type Algorithm string

// Algorithms.
const (
	EdDSA Algorithm = "EdDSA" // with Ed25519
	ES256 Algorithm = "ES256" // ECDSA with P-256 and SHA-256
	ES384 Algorithm = "ES384" // ECDSA with P-384 and SHA-384
)

// maxKeyID bounds the key id in bytes.
const maxKeyID = 64

// Types of the PEM blocks of key files.
const (
	privateBlock = "PRIVATE KEY" // PKCS #8
	publicBlock  = "PUBLIC KEY"  // SubjectPublicKeyInfo
)

// GenerateKey makes a signing key in memory.
func GenerateKey(alg Algorithm) (crypto.Signer, error) {
	switch alg {
	case EdDSA:
		_, key, err := ed25519.GenerateKey(rand.Reader)
		return key, err
	case ES256:
		return ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	case ES384:
		return ecdsa.GenerateKey(elliptic.P384(), rand.Reader)
	}
	return nil, fmt.Errorf("generate key: algorithm %q is not EdDSA, ES256 or ES384", alg)
}

// AlgorithmOf tells the one algorithm that a public key is used with.
func AlgorithmOf(public crypto.PublicKey) (Algorithm, error) {
	switch key := public.(type) {
	case ed25519.PublicKey:
		if len(key) == ed25519.PublicKeySize {
			return EdDSA, nil
		}
	case *ecdsa.PublicKey:
		switch key.Curve {
		case elliptic.P256():
			return ES256, nil
		case elliptic.P384():
			return ES384, nil
		}
	}
	return "", fmt.Errorf("key of type %T is not Ed25519, P-256 or P-384", public)
}

// KeyID is the default id of a public key: the first 16 hexadecimal digits of
// SHA-256 over its DER SubjectPublicKeyInfo.
func KeyID(public crypto.PublicKey) (string, error) {
	der, err := x509.MarshalPKIXPublicKey(public)
	if err != nil {
		return "", fmt.Errorf("key id: %w", err)
	}
	return spec.KeyID(der), nil
}

// MarshalPrivateKey gives a key as PKCS #8 in PEM.
func MarshalPrivateKey(key crypto.Signer) ([]byte, error) {
	der, err := x509.MarshalPKCS8PrivateKey(key)
	if err != nil {
		return nil, fmt.Errorf("encode private key: %w", err)
	}
	return pem.EncodeToMemory(&pem.Block{Type: privateBlock, Bytes: der}), nil
}

// MarshalPublicKey gives a public key as SubjectPublicKeyInfo in PEM.
func MarshalPublicKey(public crypto.PublicKey) ([]byte, error) {
	der, err := x509.MarshalPKIXPublicKey(public)
	if err != nil {
		return nil, fmt.Errorf("encode public key: %w", err)
	}
	return pem.EncodeToMemory(&pem.Block{Type: publicBlock, Bytes: der}), nil
}

// ParsePrivateKey reads one PKCS #8 PEM block with a key of a known algorithm.
func ParsePrivateKey(text []byte) (crypto.Signer, error) {
	der, err := onlyBlock(text, privateBlock)
	if err != nil {
		return nil, fmt.Errorf("private key: %w", err)
	}
	parsed, err := x509.ParsePKCS8PrivateKey(der)
	if err != nil {
		return nil, fmt.Errorf("private key: %w", err)
	}
	key, ok := parsed.(crypto.Signer)
	if !ok {
		return nil, fmt.Errorf("private key: %T cannot sign", parsed)
	}
	if _, err := AlgorithmOf(key.Public()); err != nil {
		return nil, fmt.Errorf("private key: %w", err)
	}
	return key, nil
}

// ParsePublicKey reads one SubjectPublicKeyInfo PEM block with a key of a known
// algorithm.
func ParsePublicKey(text []byte) (crypto.PublicKey, error) {
	der, err := onlyBlock(text, publicBlock)
	if err != nil {
		return nil, fmt.Errorf("public key: %w", err)
	}
	public, err := x509.ParsePKIXPublicKey(der)
	if err != nil {
		return nil, fmt.Errorf("public key: %w", err)
	}
	if _, err := AlgorithmOf(public); err != nil {
		return nil, fmt.Errorf("public key: %w", err)
	}
	return public, nil
}

func onlyBlock(text []byte, kind string) ([]byte, error) {
	block, rest := pem.Decode(text)
	if block == nil {
		return nil, errors.New("no PEM block")
	}
	if block.Type != kind {
		return nil, fmt.Errorf("PEM block %q, want %q", block.Type, kind)
	}
	if strings.TrimSpace(string(rest)) != "" {
		return nil, errors.New("something follows the PEM block")
	}
	return block.Bytes, nil
}

// ReadPrivateKey reads a private key file. It refuses a file that others than
// its owner can read, because such a key is not a secret.
func ReadPrivateKey(path string) (crypto.Signer, error) {
	f, err := os.Open(path)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	info, err := f.Stat()
	if err != nil {
		return nil, err
	}
	if info.Mode().Perm()&0o077 != 0 {
		return nil, fmt.Errorf("private key %s: mode is %v, others can read it; run: chmod 600 %s", path, info.Mode().Perm(), path)
	}
	text, err := io.ReadAll(io.LimitReader(f, 1<<16))
	if err != nil {
		return nil, fmt.Errorf("private key %s: %w", path, err)
	}
	key, err := ParsePrivateKey(text)
	if err != nil {
		return nil, fmt.Errorf("%s: %w", path, err)
	}
	return key, nil
}

// cose gives the algorithm's number in the IANA registry.
func (a Algorithm) cose() (cose.Algorithm, error) {
	switch a {
	case EdDSA:
		return cose.AlgorithmEdDSA, nil
	case ES256:
		return cose.AlgorithmES256, nil
	case ES384:
		return cose.AlgorithmES384, nil
	}
	return 0, fmt.Errorf("algorithm %q is not EdDSA, ES256 or ES384", a)
}

// newVerifier makes the verifier for the one algorithm of the key.
func newVerifier(public crypto.PublicKey) (cose.Verifier, error) {
	alg, err := AlgorithmOf(public)
	if err != nil {
		return nil, err
	}
	number, err := alg.cose()
	if err != nil {
		return nil, err
	}
	return cose.NewVerifier(number, public)
}

// newSigner makes the COSE signer for the one algorithm of the key.
func newSigner(key crypto.Signer) (cose.Signer, error) {
	alg, err := AlgorithmOf(key.Public())
	if err != nil {
		return nil, err
	}
	number, err := alg.cose()
	if err != nil {
		return nil, err
	}
	return cose.NewSigner(number, namesHash{Signer: key, alg: alg})
}

// namesHash tells a crypto.Signer which hash the digest is of. COSE libraries
// leave the options nil, but keys in hardware need to know.
type namesHash struct {
	crypto.Signer
	alg Algorithm
}

// Sign implements crypto.Signer.
func (n namesHash) Sign(random io.Reader, digest []byte, _ crypto.SignerOpts) ([]byte, error) {
	switch n.alg {
	case ES256:
		return n.Signer.Sign(random, digest, crypto.SHA256)
	case ES384:
		return n.Signer.Sign(random, digest, crypto.SHA384)
	}
	return n.Signer.Sign(random, digest, crypto.Hash(0)) // Ed25519 takes the message itself
}
