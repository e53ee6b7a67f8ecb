// SPDX-License-Identifier: Apache-2.0

package mailbox

import (
	"crypto"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/rsa"
	"crypto/x509"
	"encoding/pem"
	"io"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/davit-dpu/davit/firmware/spec"
)

func TestKeyFiles(t *testing.T) {
	t.Parallel()
	for _, alg := range []Algorithm{EdDSA, ES256, ES384} {
		key := mustKey(t, alg)
		text, err := MarshalPrivateKey(key)
		if err != nil {
			t.Fatal(err)
		}
		path := filepath.Join(t.TempDir(), "key.pem")
		if err := os.WriteFile(path, text, 0o600); err != nil {
			t.Fatal(err)
		}
		again, err := ReadPrivateKey(path)
		if err != nil {
			t.Fatalf("%s: %v", alg, err)
		}
		public, err := MarshalPublicKey(again.Public())
		if err != nil {
			t.Fatal(err)
		}
		parsed, err := ParsePublicKey(public)
		if err != nil {
			t.Fatal(err)
		}
		if got, err := AlgorithmOf(parsed); err != nil || got != alg {
			t.Errorf("algorithm %s, %v; want %s", got, err, alg)
		}
		id, err := KeyID(parsed)
		block, _ := pem.Decode(public)
		if want := spec.KeyID(block.Bytes); err != nil || id != want || len(id) != 16 {
			t.Errorf("key id %q, %v; want %q", id, err, want)
		}
		if err := os.Chmod(path, 0o640); err != nil {
			t.Fatal(err)
		}
		if _, err := ReadPrivateKey(path); err == nil || !strings.Contains(err.Error(), "chmod 600") {
			t.Errorf("a key that the group can read: %v", err)
		}
	}
}

func TestKeysRefused(t *testing.T) {
	t.Parallel()
	p521, err := ecdsa.GenerateKey(elliptic.P521(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	weak, err := rsa.GenerateKey(rand.Reader, 2048)
	if err != nil {
		t.Fatal(err)
	}
	good, err := MarshalPrivateKey(mustKey(t, EdDSA))
	if err != nil {
		t.Fatal(err)
	}
	encode := func(key any) []byte {
		der, err := x509.MarshalPKCS8PrivateKey(key)
		if err != nil {
			t.Fatal(err)
		}
		return pem.EncodeToMemory(&pem.Block{Type: privateBlock, Bytes: der})
	}
	for name, text := range map[string][]byte{
		"nothing": nil, "text": []byte("secret"), "P-521": encode(p521), "RSA": encode(weak),
		"two keys": append(good, good...), "not PKCS #8": pem.EncodeToMemory(&pem.Block{Type: privateBlock, Bytes: []byte{1}}),
		"wrong type": []byte(strings.ReplaceAll(string(good), "PRIVATE KEY", "PUBLIC KEY")),
	} {
		if key, err := ParsePrivateKey(text); err == nil || key != nil {
			t.Errorf("private %s: accepted", name)
		}
		if key, err := ParsePublicKey(text); err == nil || key != nil {
			t.Errorf("public %s: accepted", name)
		}
	}
	if _, err := GenerateKey("RS256"); err == nil {
		t.Error("generates RS256")
	}
}

func TestKeyringRefused(t *testing.T) {
	t.Parallel()
	good := ringEntry(t, "k", mustKey(t, EdDSA), "operator")
	for name, change := range map[string]func(*spec.Key){
		"no id":             func(k *spec.Key) { k.ID = "" },
		"long id":           func(k *spec.Key) { k.ID = strings.Repeat("k", maxKeyID+1) },
		"another algorithm": func(k *spec.Key) { k.Algorithm = "ES256" },
		"no key":            func(k *spec.Key) { k.Public = "" },
		"unknown role":      func(k *spec.Key) { k.Roles = []string{"root"} },
	} {
		k := good
		change(&k)
		if ring, err := NewKeyring([]spec.Key{k}, testPolicy); err == nil || ring != nil {
			t.Errorf("%s: accepted", name)
		}
	}
	if _, err := NewKeyring([]spec.Key{good, good}, testPolicy); err == nil {
		t.Error("one id twice: accepted")
	}
}

func TestPatterns(t *testing.T) {
	t.Parallel()
	for _, tt := range []struct {
		pattern, op string
		want        bool
	}{
		{"reboot", "reboot", true}, {"reboot", "reboot.now", false}, {"instance.*", "instance.stop", true},
		{"instance.*", "instance", false}, {"instance.*", "instances.stop", false}, {"*", "reboot", true},
		{"inst*", "instance.stop", false}, {"", "reboot", false},
	} {
		if got := (ringKey{patterns: []string{tt.pattern}}).allows(tt.op); got != tt.want {
			t.Errorf("%q allows %q: %v, want %v", tt.pattern, tt.op, got, tt.want)
		}
	}
	if (ringKey{}).allows("status") {
		t.Error("a key without roles is allowed something")
	}
}

// hardware is a signer like one in a TPM: it has to be told the hash.
type hardware struct {
	crypto.Signer
	asked crypto.Hash
}

func (h *hardware) Sign(random io.Reader, digest []byte, opts crypto.SignerOpts) ([]byte, error) {
	h.asked = opts.HashFunc()
	return h.Signer.Sign(random, digest, opts)
}

func TestHardwareKeysLearnTheHash(t *testing.T) {
	t.Parallel()
	for alg, want := range map[Algorithm]crypto.Hash{EdDSA: 0, ES256: crypto.SHA256, ES384: crypto.SHA384} {
		f := newFixture(t, nil)
		h := &hardware{Signer: mustKey(t, alg)}
		command, err := Sign(h, "k", f.request(nil))
		if err != nil || h.asked != want {
			t.Errorf("%s: hash %v, %v; want %v", alg, h.asked, err, want)
			continue
		}
		u, err := Parse(command)
		if err != nil {
			t.Fatal(err)
		}
		v, err := newVerifier(h.Public())
		if err != nil {
			t.Fatal(err)
		}
		if _, err := u.verify(v); err != nil {
			t.Errorf("%s: %v", alg, err)
		}
	}
}

func TestSignRefuses(t *testing.T) {
	t.Parallel()
	f := newFixture(t, nil)
	for name, change := range map[string]func(*Request){
		"no card":       func(r *Request) { r.Card = "" },
		"no nonce":      func(r *Request) { r.Nonce = nil },
		"no op":         func(r *Request) { r.Op = "" },
		"no lifecycle":  func(r *Request) { r.Lifecycle = "" },
		"window":        func(r *Request) { r.NotAfter = r.NotBefore.Add(-1e9) },
		"long reason":   func(r *Request) { r.Reason = strings.Repeat("x", maxText+1) },
		"args a list":   func(r *Request) { r.Args = []int{1} },
		"args a float":  func(r *Request) { r.Args = map[string]any{"x": 1.5} },
		"args a null":   func(r *Request) { r.Args = map[string]any{"x": nil} },
		"args too much": func(r *Request) { r.Args = map[string]any{"x": make([]byte, MaxCommand)} },
	} {
		if command, err := Sign(f.operator, "operator", f.request(change)); err == nil || command != nil {
			t.Errorf("%s: signed", name)
		}
	}
	if _, err := Sign(f.operator, "", f.request(nil)); err == nil {
		t.Error("no key id: signed")
	}
	if _, err := PublicRequest("", "status", nil, make([]byte, maxClientNonce+1)); err == nil {
		t.Error("request with a long nonce: made")
	}
}
