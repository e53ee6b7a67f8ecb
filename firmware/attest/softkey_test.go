// SPDX-License-Identifier: Apache-2.0

package attest

import (
	"crypto/sha256"
	"crypto/x509"
	"errors"
	"log/slog"
	"os"
	"path/filepath"
	"sync"
	"testing"

	"github.com/davit-dpu/davit/firmware/evidence"
	"github.com/davit-dpu/davit/firmware/tpm"
)

func TestSoftwareKey(t *testing.T) {
	t.Parallel()
	cfg := Config{NoTPM: "loopback board", KeyFile: filepath.Join(t.TempDir(), "state", "receipt.pem"), Logger: slog.New(slog.DiscardHandler)}
	first, err := New(t.Context(), cfg)
	if err != nil {
		t.Fatal(err)
	}
	second, err := New(t.Context(), cfg)
	if err != nil {
		t.Fatal(err)
	}
	if first.CardID() != second.CardID() || first.AttestationKey() != nil {
		t.Errorf("the card's id changes from start to start, or there is an attestation key")
	}
	spki, err := x509.MarshalPKIXPublicKey(first.Signer().Public())
	if err != nil {
		t.Fatal(err)
	}
	if first.CardID() != sha256.Sum256(spki) {
		t.Errorf("card id %v is not of the key", first.CardID())
	}
	if info, err := os.Stat(cfg.KeyFile); err != nil || info.Mode().Perm() != 0o600 {
		t.Errorf("key file %v, %v", info, err)
	}
	if left, err := os.ReadDir(filepath.Dir(cfg.KeyFile)); err != nil || len(left) != 1 {
		t.Errorf("the state folder holds %v, %v", left, err)
	}
	nonce := freshNonce(t)
	r := evidence.Appraise(evidenceOf(t, first, nonce), evidence.Expectations{Nonce: nonce, Exempt: []string{"receipt.key", "log.card"}})
	if r.Passed || r.Claims[0].Name != "tpm" || r.Claims[0].Verdict != evidence.Failed || r.Claims[0].Seen != "loopback board" {
		t.Errorf("passed %v, first claim %+v", r.Passed, r.Claims[0])
	}
}

func TestUnusedKeysAreRemoved(t *testing.T) {
	t.Parallel()
	cfg := Config{KeyFile: filepath.Join(t.TempDir(), "receipt.pem")}
	for _, when := range []string{"as the key is made", "as it is read"} {
		left, other := filepath.Join(filepath.Dir(cfg.KeyFile), ".key-123"), filepath.Join(filepath.Dir(cfg.KeyFile), "other")
		if err := errors.Join(os.WriteFile(left, []byte("secret"), 0o600), os.WriteFile(other, nil, 0o600)); err != nil {
			t.Fatal(err)
		}
		if _, err := New(t.Context(), cfg); err != nil {
			t.Fatal(err)
		}
		if _, err := os.Stat(left); !errors.Is(err, os.ErrNotExist) {
			t.Errorf("%s: a left-over key is still there: %v", when, err)
		}
		if _, err := os.Stat(other); err != nil {
			t.Errorf("%s: %v", when, err)
		}
	}
}

func TestSoftwareKeyRefused(t *testing.T) {
	t.Parallel()
	path := filepath.Join(t.TempDir(), "key")
	for name, content := range map[string]string{
		"empty":       "",
		"garbage":     "garbage",
		"wrong block": "-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n",
		"wrong key":   "-----BEGIN PRIVATE KEY-----\nAAAA\n-----END PRIVATE KEY-----\n",
	} {
		if err := os.WriteFile(path, []byte(content), 0o600); err != nil {
			t.Fatal(err)
		}
		if s, err := New(t.Context(), Config{KeyFile: path}); err == nil || s != nil {
			t.Errorf("%s: New = %v, %v, want an error", name, s, err)
		}
		if got, err := os.ReadFile(path); err != nil || string(got) != content {
			t.Errorf("%s: the file was replaced", name)
		}
	}
	if s, err := New(t.Context(), Config{}); err == nil || s != nil {
		t.Errorf("New without TPM and key file = %v, %v, want an error", s, err)
	}
}

// Two agents that start at once end with one key.
func TestSoftwareKeyRace(t *testing.T) {
	t.Parallel()
	path := filepath.Join(t.TempDir(), "key")
	ids := make([]tpm.CardID, 8)
	var wg sync.WaitGroup
	for i := range ids {
		wg.Go(func() {
			s, err := New(t.Context(), Config{KeyFile: path})
			if err != nil {
				t.Error(err)
				return
			}
			ids[i] = s.CardID()
		})
	}
	wg.Wait()
	for _, id := range ids {
		if id != ids[0] {
			t.Errorf("ids %v and %v", id, ids[0])
		}
	}
}
