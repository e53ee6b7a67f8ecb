// SPDX-License-Identifier: Apache-2.0

package keys

import (
	"crypto/ed25519"
	"crypto/rsa"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/pem"
	"errors"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"
)

var now = time.Date(2026, 3, 1, 12, 0, 0, 0, time.UTC)

func mustCreate(t *testing.T) *Set {
	t.Helper()
	s, err := Create(filepath.Join(t.TempDir(), "deep", "keys"), now)
	if err != nil {
		t.Fatal(err)
	}
	return s
}

func TestCreateLoad(t *testing.T) {
	t.Parallel()
	made := mustCreate(t)
	got, err := Load(made.Dir)
	if err != nil {
		t.Fatal(err)
	}
	if !got.Image.Equal(made.Image) || !got.Operator.Equal(made.Operator) || !got.Certificate.Equal(made.Certificate) {
		t.Error("loaded keys are not those that were made")
	}
	if got.Dir != made.Dir {
		t.Errorf("dir %q, want %q", got.Dir, made.Dir)
	}
	if n := got.Image.N.BitLen(); n != 2048 {
		t.Errorf("image key has %d bits, want 2048", n)
	}
	if err := got.Certificate.CheckSignature(got.Certificate.SignatureAlgorithm,
		got.Certificate.RawTBSCertificate, got.Certificate.Signature); err != nil {
		t.Errorf("certificate is not signed by itself: %v", err)
	}
	if got.Certificate.NotBefore.After(now) || got.Certificate.NotAfter.Before(now.AddDate(9, 0, 0)) {
		t.Errorf("certificate is valid from %v to %v", got.Certificate.NotBefore, got.Certificate.NotAfter)
	}
}

func TestModes(t *testing.T) {
	t.Parallel()
	s := mustCreate(t)
	entries, err := os.ReadDir(s.Dir)
	if err != nil {
		t.Fatal(err)
	}
	if len(entries) != 4 {
		t.Errorf("%d files, want 4", len(entries))
	}
	for _, e := range entries {
		st, err := e.Info()
		if err != nil {
			t.Fatal(err)
		}
		if st.Mode() != 0o600 {
			t.Errorf("%s has mode %v, want 0600", e.Name(), st.Mode())
		}
	}
	if left, err := filepath.Glob(filepath.Join(filepath.Dir(s.Dir), ".keys-*")); err != nil || len(left) != 0 {
		t.Errorf("left over: %v %v", left, err)
	}
}

func TestCreateNeverOverwrites(t *testing.T) {
	t.Parallel()
	s := mustCreate(t)
	if again, err := Create(s.Dir, now); again != nil || !errors.Is(err, ErrExists) {
		t.Fatalf("second creation: %v, error %v, want %v", again, err, ErrExists)
	}
	got, err := Load(s.Dir)
	if err != nil {
		t.Fatal(err)
	}
	if !got.Image.Equal(s.Image) || !got.Operator.Equal(s.Operator) {
		t.Error("the keys were replaced")
	}
	// A folder with anything in it is not ours to replace.
	dir := t.TempDir()
	if err := os.WriteFile(filepath.Join(dir, "notes"), []byte("mine"), 0o600); err != nil {
		t.Fatal(err)
	}
	if _, err := Create(dir, now); !errors.Is(err, ErrExists) {
		t.Errorf("folder in use: error %v, want %v", err, ErrExists)
	}
	if _, err := os.Stat(filepath.Join(dir, "notes")); err != nil {
		t.Error(err)
	}
}

// All of those who start at once get the same keys.
func TestEnsureTogether(t *testing.T) {
	t.Parallel()
	dir := filepath.Join(t.TempDir(), "keys")
	sets := make([]*Set, 4)
	errs := make([]error, len(sets))
	var wg sync.WaitGroup
	for i := range sets {
		wg.Go(func() { sets[i], errs[i] = Ensure(dir, now) })
	}
	wg.Wait()
	for i := range sets {
		if errs[i] != nil {
			t.Fatal(errs[i])
		}
		if !sets[i].Image.Equal(sets[0].Image) || !sets[i].Operator.Equal(sets[0].Operator) {
			t.Errorf("set %d differs from set 0", i)
		}
	}
}

func TestLoadRefuses(t *testing.T) {
	t.Parallel()
	other := mustCreate(t)
	for _, tc := range []struct {
		name   string
		damage func(t *testing.T, dir string)
		is     error
		says   string
	}{
		{"missing key", remove(ImageKeyFile), nil, ImageKeyFile},
		{"missing certificate", remove(ImageCertFile), nil, ImageCertFile},
		{"missing operator key", remove(OperatorKeyFile), nil, OperatorKeyFile},
		{"missing public key", remove(OperatorPubFile), nil, OperatorPubFile},
		{"readable image key", chmod(ImageKeyFile, 0o640), ErrPermissions, "0640"},
		{"readable operator key", chmod(OperatorKeyFile, 0o604), ErrPermissions, "0604"},
		{"another's certificate", swap(other, ImageCertFile, ImageCertFile), nil, "is not of"},
		{"another's public key", swap(other, OperatorPubFile, OperatorPubFile), nil, "is not of"},
		{"operator key as image key", swap(other, OperatorKeyFile, ImageKeyFile), nil, "want RSA"},
		{"image key as operator key", swap(other, ImageKeyFile, OperatorKeyFile), nil, "want Ed25519"},
		{"garbage", write(ImageCertFile, []byte("garbage")), nil, ImageCertFile},
		{"too large", write(ImageKeyFile, make([]byte, maxFile+1)), nil, "at most"},
		{"production certificate", productionCert, nil, "not marked"},
	} {
		t.Run(tc.name, func(t *testing.T) {
			t.Parallel()
			dir := mustCreate(t).Dir
			tc.damage(t, dir)
			s, err := Load(dir)
			if err == nil || s != nil {
				t.Fatalf("got %v, error %v", s, err)
			}
			if errors.Is(err, ErrNotExist) {
				t.Errorf("error %v would have new keys made", err)
			}
			if tc.is != nil && !errors.Is(err, tc.is) {
				t.Errorf("error %v, want one that wraps %v", err, tc.is)
			}
			if !strings.Contains(err.Error(), tc.says) {
				t.Errorf("error %q, want one that says %q", err, tc.says)
			}
			if s, err := Ensure(dir, now); err == nil || s != nil {
				t.Error("Ensure accepted what Load refused")
			}
		})
	}
}

func TestLoadNothing(t *testing.T) {
	t.Parallel()
	for _, dir := range []string{t.TempDir(), filepath.Join(t.TempDir(), "none")} {
		if s, err := Load(dir); s != nil || !errors.Is(err, ErrNotExist) {
			t.Errorf("got %v, error %v, want %v", s, err, ErrNotExist)
		}
	}
}

func TestCheckProduction(t *testing.T) {
	t.Parallel()
	if err := CheckProduction(mustCreate(t).Certificate); !errors.Is(err, ErrDevelopment) {
		t.Errorf("error %v, want %v", err, ErrDevelopment)
	}
	release := &x509.Certificate{Subject: pkix.Name{CommonName: "Example Corp release 1"}}
	if err := CheckProduction(release); err != nil {
		t.Errorf("a certificate that is not marked: %v", err)
	}
}

func remove(name string) func(*testing.T, string) {
	return func(t *testing.T, dir string) {
		if err := os.Remove(filepath.Join(dir, name)); err != nil {
			t.Fatal(err)
		}
	}
}

func chmod(name string, mode os.FileMode) func(*testing.T, string) {
	return func(t *testing.T, dir string) {
		if err := os.Chmod(filepath.Join(dir, name), mode); err != nil {
			t.Fatal(err)
		}
	}
}

func write(name string, b []byte) func(*testing.T, string) {
	return func(t *testing.T, dir string) {
		if err := os.WriteFile(filepath.Join(dir, name), b, 0o600); err != nil {
			t.Fatal(err)
		}
	}
}

func swap(other *Set, from, to string) func(*testing.T, string) {
	return func(t *testing.T, dir string) {
		b, err := os.ReadFile(filepath.Join(other.Dir, from))
		if err != nil {
			t.Fatal(err)
		}
		write(to, b)(t, dir)
	}
}

// productionCert replaces the certificate by one without the mark.
func productionCert(t *testing.T, dir string) {
	key, err := readPrivate(filepath.Join(dir, ImageKeyFile))
	if err != nil {
		t.Fatal(err)
	}
	image := key.(*rsa.PrivateKey)
	cert, err := selfSign(image, now)
	if err != nil {
		t.Fatal(err)
	}
	template := *cert
	template.Subject = pkix.Name{CommonName: "Example Corp release 1"}
	template.RawSubject = nil
	der, err := x509.CreateCertificate(nil, &template, &template, image.Public(), image)
	if err != nil {
		t.Fatal(err)
	}
	write(ImageCertFile, pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: der}))(t, dir)
}

// The operator's key signs, and its public file verifies.
func TestOperatorKeyWorks(t *testing.T) {
	t.Parallel()
	s := mustCreate(t)
	message := []byte("reboot")
	if !ed25519.Verify(s.Operator.Public().(ed25519.PublicKey), message, ed25519.Sign(s.Operator, message)) {
		t.Error("signature does not verify")
	}
}
