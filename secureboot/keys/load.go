// SPDX-License-Identifier: Apache-2.0

package keys

import (
	"crypto/ed25519"
	"crypto/rsa"
	"crypto/x509"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
)

// maxFile bounds a file of a folder of keys in bytes.
const maxFile = 64 << 10

// Load reads the keys in dir and checks that they belong together, that no one
// else can read the private ones, and that they are marked as keys of
// development. ErrNotExist is wrapped when dir is missing or empty; a folder
// with some of the files is another error, which names the missing one.
func Load(dir string) (*Set, error) {
	if names, err := os.ReadDir(dir); errors.Is(err, fs.ErrNotExist) || err == nil && len(names) == 0 {
		return nil, fmt.Errorf("%w in %s", ErrNotExist, dir)
	}
	s := &Set{Dir: dir}
	if err := s.loadImage(); err != nil {
		return nil, fmt.Errorf("load keys in %s: %w", dir, err)
	}
	if err := s.loadOperator(); err != nil {
		return nil, fmt.Errorf("load keys in %s: %w", dir, err)
	}
	return s, nil
}

func (s *Set) loadImage() error {
	key, err := readPrivate(filepath.Join(s.Dir, ImageKeyFile))
	if err != nil {
		return err
	}
	var ok bool
	if s.Image, ok = key.(*rsa.PrivateKey); !ok {
		return fmt.Errorf("%s: a %T, want RSA", ImageKeyFile, key)
	}
	b, err := readFile(filepath.Join(s.Dir, ImageCertFile), false)
	if err != nil {
		return err
	}
	if s.Certificate, err = ParseCertificate(b); err != nil {
		return fmt.Errorf("%s: %w", ImageCertFile, err)
	}
	if !s.Image.PublicKey.Equal(s.Certificate.PublicKey) {
		return fmt.Errorf("%s is not of %s", ImageCertFile, ImageKeyFile)
	}
	if !IsDevelopment(s.Certificate) {
		return fmt.Errorf("%s: %q is not marked as a key of development", ImageCertFile, s.Certificate.Subject)
	}
	return nil
}

func (s *Set) loadOperator() error {
	key, err := readPrivate(filepath.Join(s.Dir, OperatorKeyFile))
	if err != nil {
		return err
	}
	var ok bool
	if s.Operator, ok = key.(ed25519.PrivateKey); !ok {
		return fmt.Errorf("%s: a %T, want Ed25519", OperatorKeyFile, key)
	}
	b, err := readFile(filepath.Join(s.Dir, OperatorPubFile), false)
	if err != nil {
		return err
	}
	der, err := pemBlock(b, "PUBLIC KEY")
	if err != nil {
		return fmt.Errorf("%s: %w", OperatorPubFile, err)
	}
	pub, err := x509.ParsePKIXPublicKey(der)
	if err != nil {
		return fmt.Errorf("%s: %w", OperatorPubFile, err)
	}
	if !s.Operator.Public().(ed25519.PublicKey).Equal(pub) {
		return fmt.Errorf("%s is not of %s", OperatorPubFile, OperatorKeyFile)
	}
	return nil
}

func readPrivate(name string) (any, error) {
	b, err := readFile(name, true)
	if err != nil {
		return nil, err
	}
	der, err := pemBlock(b, "PRIVATE KEY")
	if err != nil {
		return nil, fmt.Errorf("%s: %w", filepath.Base(name), err)
	}
	key, err := x509.ParsePKCS8PrivateKey(der)
	if err != nil {
		return nil, fmt.Errorf("%s: %w", filepath.Base(name), err)
	}
	return key, nil
}

// readFile reads a regular file; a private one must not be open to others.
func readFile(name string, private bool) ([]byte, error) {
	f, err := os.Open(name)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	st, err := f.Stat()
	if err != nil {
		return nil, err
	}
	switch {
	case !st.Mode().IsRegular() || st.Size() > maxFile:
		return nil, fmt.Errorf("%s: not a file of at most %d bytes", name, maxFile)
	case private && st.Mode().Perm()&0o077 != 0:
		return nil, fmt.Errorf("%w: %s has mode %04o, want 0600", ErrPermissions, name, st.Mode().Perm())
	}
	return io.ReadAll(io.LimitReader(f, maxFile))
}
