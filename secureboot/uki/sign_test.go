// SPDX-License-Identifier: Apache-2.0

package uki

import (
	"bytes"
	"crypto"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/sha256"
	"crypto/x509"
	"encoding/pem"
	"errors"
	"os"
	"os/exec"
	"path/filepath"
	"testing"
)

func TestSignVerify(t *testing.T) {
	t.Parallel()
	plain := mustBuild(t, makeStub(stubOptions{}))
	before := bytes.Clone(plain)
	a := signerA()
	signed := mustSign(t, plain, a)
	if !bytes.Equal(plain, before) {
		t.Error("Sign changed its argument")
	}
	if again := mustSign(t, plain, a); !bytes.Equal(signed, again) {
		t.Error("two signatures of the same image differ")
	}
	img := mustOpen(t, signed)
	if got, want := img.Digest(), mustOpen(t, plain).Digest(); got != want {
		t.Errorf("signing changed the digest from %x to %x", want, got)
	}
	v, err := img.Verify(a.cert)
	if err != nil {
		t.Fatal(err)
	}
	if v.Certificate != a.cert {
		t.Error("the signer's certificate is another")
	}
	if _, err := Sign(signed, a.key, a.cert); !errors.Is(err, ErrSigned) {
		t.Errorf("second signature: error %v, want %v", err, ErrSigned)
	}
	if v, err := mustOpen(t, plain).Verify(a.cert); v != nil || !errors.Is(err, ErrUnsigned) {
		t.Errorf("unsigned image: %v, error %v, want %v", v, err, ErrUnsigned)
	}
	// The same name and serial number, and another key.
	if v, err := img.Verify(signerB().cert); v != nil || !errors.Is(err, ErrUntrusted) {
		t.Errorf("impostor's certificate: %v, error %v, want %v", v, err, ErrUntrusted)
	}
	other := newSigner("someone else", 2)
	if v, err := img.Verify(other.cert); v != nil || !errors.Is(err, ErrUntrusted) {
		t.Errorf("other certificate: %v, error %v, want %v", v, err, ErrUntrusted)
	}
}

// An image whose length is no multiple of 8 is padded before it is signed.
func TestSignPads(t *testing.T) {
	t.Parallel()
	plain := makeStub(stubOptions{tail: []byte("odd")})
	signed := mustSign(t, plain, signerA())
	if _, err := mustOpen(t, signed).Verify(signerA().cert); err != nil {
		t.Error(err)
	}
	if got, want := mustOpen(t, signed).Digest(), mustOpen(t, plain).Digest(); got != want {
		t.Errorf("digest %x after, %x before", got, want)
	}
}

// Every byte in front of the certificates is covered, but the checksum and the
// certificate table's directory, which Open checks.
func TestVerifyEveryByte(t *testing.T) {
	t.Parallel()
	signed := mustSign(t, makeStub(stubOptions{tail: make([]byte, 16)}), signerA())
	h := mustOpen(t, signed).header
	checksum := h.optional + offCheckSum
	for i := range int(h.certOffset) {
		if i >= checksum && i < checksum+4 {
			continue
		}
		bad := bytes.Clone(signed)
		bad[i] ^= 0x40
		img, err := Open(bad)
		if err != nil {
			continue
		}
		if v, err := img.Verify(signerA().cert); err == nil || v != nil {
			t.Errorf("byte %#x changed, and the image still verifies", i)
		}
	}
}

func TestVerifyRefusesBytesBehind(t *testing.T) {
	t.Parallel()
	signed := mustSign(t, makeStub(stubOptions{}), signerA())
	if _, err := Open(append(bytes.Clone(signed), make([]byte, 8)...)); !errors.Is(err, ErrFormat) {
		t.Errorf("error %v, want %v", err, ErrFormat)
	}
}

// Each link from image to key must be checked: here one is missing in each case.
func TestVerifyChain(t *testing.T) {
	t.Parallel()
	a := signerA()
	plain := makeStub(stubOptions{})
	digest := mustOpen(t, plain).Digest()
	content, err := marshalIndirect(digest)
	if err != nil {
		t.Fatal(err)
	}
	foreign, err := marshalIndirect(sha256.Sum256([]byte("another image")))
	if err != nil {
		t.Fatal(err)
	}
	attributes := func(content []byte) []byte {
		sum := sha256.Sum256(content)
		b, err := marshalAttributes(sum[:])
		if err != nil {
			t.Fatal(err)
		}
		return b
	}
	sign := func(b []byte) []byte {
		sum := sha256.Sum256(b)
		sig, err := a.key.Sign(rand.Reader, sum[:], crypto.SHA256)
		if err != nil {
			t.Fatal(err)
		}
		return sig
	}
	for _, tc := range []struct {
		name                string
		content, attributes []byte
		signature           []byte
		ok                  bool
	}{
		{"whole", content, attributes(content), sign(attributes(content)), true},
		{"signature of another image", foreign, attributes(foreign), sign(attributes(foreign)), false},
		{"content exchanged", content, attributes(foreign), sign(attributes(foreign)), false},
		{"attributes exchanged", content, attributes(content), sign(attributes(foreign)), false},
		{"content signed in place of attributes", content, attributes(content), sign(content), false},
	} {
		t.Run(tc.name, func(t *testing.T) {
			der, err := marshalSignedData(tc.content, tc.attributes, tc.signature, a.cert)
			if err != nil {
				t.Fatal(err)
			}
			s, err := parsePKCS7(der)
			if err != nil {
				t.Fatal(err)
			}
			if err := s.check(digest, a.cert); (err == nil) != tc.ok {
				t.Errorf("error %v, want success %t", err, tc.ok)
			}
		})
	}
}

func TestSignRefusesKeys(t *testing.T) {
	t.Parallel()
	plain := makeStub(stubOptions{})
	if out, err := Sign(plain, signerB().key, signerA().cert); err == nil || out != nil {
		t.Error("a key that is not the certificate's was accepted")
	}
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	if out, err := Sign(plain, key, signerA().cert); err == nil || out != nil {
		t.Error("an elliptic-curve key was accepted")
	}
}

// TestVerifyCaptured checks images that other programs signed.
func TestVerifyCaptured(t *testing.T) {
	t.Parallel()
	b, err := os.ReadFile("testdata/signer.crt")
	if err != nil {
		t.Fatal(err)
	}
	block, _ := pem.Decode(b)
	cert, err := x509.ParseCertificate(block.Bytes)
	if err != nil {
		t.Fatal(err)
	}
	for _, name := range []string{"sbsign.efi", "osslsigncode.efi"} {
		image, err := os.ReadFile(filepath.Join("testdata", name))
		if err != nil {
			t.Fatal(err)
		}
		img := mustOpen(t, image)
		if _, err := img.Verify(cert); err != nil {
			t.Errorf("%s: %v", name, err)
		}
		if _, err := img.Verify(signerA().cert); !errors.Is(err, ErrUntrusted) {
			t.Errorf("%s: error %v, want %v", name, err, ErrUntrusted)
		}
	}
}

// TestOtherVerifiers lets other programs check our signatures.
func TestOtherVerifiers(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	cert := filepath.Join(dir, "cert.pem")
	image := filepath.Join(dir, "image.efi")
	a := signerA()
	der := pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: a.cert.Raw})
	for file, b := range map[string][]byte{
		cert: der, image: mustSign(t, mustBuild(t, makeStub(stubOptions{})), a),
	} {
		if err := os.WriteFile(file, b, 0o600); err != nil {
			t.Fatal(err)
		}
	}
	for _, args := range [][]string{
		{"sbverify", "--cert", cert, image},
		{"osslsigncode", "verify", "-CAfile", cert, "-in", image},
	} {
		t.Run(args[0], func(t *testing.T) {
			if _, err := exec.LookPath(args[0]); err != nil {
				t.Skipf("no %s on this machine", args[0])
			}
			if out, err := exec.CommandContext(t.Context(), args[0], args[1:]...).CombinedOutput(); err != nil {
				t.Errorf("%v: %v\n%s", args, err, out)
			}
		})
	}
}
