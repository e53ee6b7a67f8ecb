// SPDX-License-Identifier: Apache-2.0

package attest

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/sha256"
	"crypto/x509"
	"encoding/pem"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
)

// pemType is the block type of the key file: PKCS #8.
const pemType = "PRIVATE KEY"

// tempPrefix begins the name of a key that has not got its place yet.
const tempPrefix = ".key-"

// loadSoftwareKey stands in for a TPM. Whoever can read the state folder has
// the key, and evidence never says otherwise.
func (s *Service) loadSoftwareKey() error {
	if s.cfg.KeyFile == "" {
		return errors.New("there is no TPM, and no file for a software key is configured")
	}
	key, err := readKey(s.cfg.KeyFile)
	if errors.Is(err, fs.ErrNotExist) {
		key, err = makeKey(s.cfg.KeyFile)
	}
	if err != nil {
		return err
	}
	if err := removeTemps(filepath.Dir(s.cfg.KeyFile)); err != nil {
		return err
	}
	if s.spki, err = x509.MarshalPKIXPublicKey(key.Public()); err != nil {
		return fmt.Errorf("encode receipt key: %w", err)
	}
	s.signer, s.id = key, sha256.Sum256(s.spki)
	return nil
}

// removeTemps removes keys that were made and never used, because their maker died
// or came second. It is called when the key has its place, so that a maker whose
// file is taken away finds that one.
func removeTemps(dir string) error {
	entries, err := os.ReadDir(dir)
	if err != nil {
		return fmt.Errorf("remove unused software keys: %w", err)
	}
	for _, e := range entries {
		if !strings.HasPrefix(e.Name(), tempPrefix) {
			continue
		}
		if err := os.Remove(filepath.Join(dir, e.Name())); err != nil && !errors.Is(err, fs.ErrNotExist) {
			return fmt.Errorf("remove unused software key: %w", err)
		}
	}
	return nil
}

func readKey(path string) (*ecdsa.PrivateKey, error) {
	data, err := os.ReadFile(path)
	if err != nil {
		return nil, fmt.Errorf("read software key: %w", err)
	}
	block, rest := pem.Decode(data)
	if block == nil || block.Type != pemType || len(rest) != 0 {
		return nil, fmt.Errorf("read software key %s: not one PEM block of type %s", path, pemType)
	}
	parsed, err := x509.ParsePKCS8PrivateKey(block.Bytes)
	if err != nil {
		return nil, fmt.Errorf("read software key %s: %w", path, err)
	}
	key, ok := parsed.(*ecdsa.PrivateKey)
	if !ok || key.Curve != elliptic.P256() {
		return nil, fmt.Errorf("read software key %s: not an ECDSA P-256 key", path)
	}
	return key, nil
}

// makeKey writes a new key beside its place and links it there, so that a
// crash leaves none or a whole one, and of two makers one wins.
func makeKey(path string) (*ecdsa.PrivateKey, error) {
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return nil, fmt.Errorf("make software key: %w", err)
	}
	der, err := x509.MarshalPKCS8PrivateKey(key)
	if err != nil {
		return nil, fmt.Errorf("make software key: %w", err)
	}
	if err := os.MkdirAll(filepath.Dir(path), 0o700); err != nil {
		return nil, fmt.Errorf("make software key: %w", err)
	}
	tmp, err := os.CreateTemp(filepath.Dir(path), tempPrefix+"*") // of mode 0600
	if err != nil {
		return nil, fmt.Errorf("make software key: %w", err)
	}
	defer os.Remove(tmp.Name())
	_, err = tmp.Write(pem.EncodeToMemory(&pem.Block{Type: pemType, Bytes: der}))
	if err := errors.Join(err, tmp.Sync(), tmp.Close()); err != nil {
		return nil, fmt.Errorf("write software key: %w", err)
	}
	if err := os.Link(tmp.Name(), path); errors.Is(err, fs.ErrExist) || errors.Is(err, fs.ErrNotExist) {
		return readKey(path) // another maker's, who may have removed ours
	} else if err != nil {
		return nil, fmt.Errorf("write software key: %w", err)
	}
	return key, nil
}
