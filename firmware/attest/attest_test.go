// SPDX-License-Identifier: Apache-2.0

package attest

import (
	"bytes"
	"context"
	"crypto"
	"crypto/ecdsa"
	"crypto/rand"
	"crypto/sha256"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"

	"github.com/davit-dpu/davit/firmware/eventlog"
	"github.com/davit-dpu/davit/firmware/evidence"
	"github.com/davit-dpu/davit/firmware/tpm"
	"github.com/davit-dpu/davit/firmware/tpm/tpmtest"
)

// card is a service over an emulated TPM, with a firmware log that was
// extended, a card log and a boot report.
type card struct {
	*Service
	t   *testing.T
	emu *tpmtest.Emulator
	tpm *tpm.TPM
	log *cardLog
	cfg Config
}

// cardLog is a log with the discipline of the real one: append and extend
// together, and never while a snapshot is looked at.
type cardLog struct {
	mu  sync.Mutex
	log *eventlog.Log
	tpm *tpm.TPM
}

func (l *cardLog) Snapshot(fn func([]byte) error) error {
	l.mu.Lock()
	defer l.mu.Unlock()
	return fn(l.log.Encode())
}

func (l *cardLog) add(ctx context.Context, pcr int, kind, name string) error {
	l.mu.Lock()
	defer l.mu.Unlock()
	e, err := eventlog.Measurement{Kind: kind, Items: []eventlog.Item{{Name: name, Digest: sha256.Sum256([]byte(name))}}}.Event(pcr, l.tpm.Banks()...)
	if err != nil {
		return err
	}
	return errors.Join(l.log.Append(e), l.tpm.Extend(ctx, pcr, e.Digests...))
}

func newCard(t *testing.T) *card {
	t.Helper()
	c := &card{t: t, emu: tpmtest.Start(t)}
	var err error
	if c.tpm, err = tpm.Open(c.emu.Socket); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { c.tpm.Close() })
	firmware, err := eventlog.New(c.tpm.Banks()...)
	if err != nil {
		t.Fatal(err)
	}
	ours, err := eventlog.New(c.tpm.Banks()...)
	if err != nil {
		t.Fatal(err)
	}
	c.log = &cardLog{log: ours, tpm: c.tpm}
	for _, pcr := range []int{0, 4, 7} {
		digests := eventlog.DigestsOf([]byte{byte(pcr)}, c.tpm.Banks()...)
		if err := errors.Join(
			firmware.Append(eventlog.Event{PCR: uint32(pcr), Type: 0x80000008, Digests: digests}),
			c.tpm.Extend(t.Context(), pcr, digests...),
		); err != nil {
			t.Fatal(err)
		}
	}
	if err := c.log.add(t.Context(), 8, "program", "/davit/davitd"); err != nil {
		t.Fatal(err)
	}
	dir := t.TempDir()
	c.cfg = Config{
		TPM: c.tpm, CardLog: c.log, Logger: slog.New(slog.DiscardHandler),
		FirmwareLogFile: filepath.Join(dir, "firmware"), BootReportFile: filepath.Join(dir, "boot.json"),
	}
	if err := errors.Join(os.WriteFile(c.cfg.FirmwareLogFile, firmware.Encode(), 0o600), os.WriteFile(c.cfg.BootReportFile, []byte(`{}`), 0o600)); err != nil {
		t.Fatal(err)
	}
	if c.Service, err = New(t.Context(), c.cfg); err != nil {
		t.Fatal(err)
	}
	return c
}

func freshNonce(t *testing.T) []byte {
	t.Helper()
	nonce := make([]byte, 32)
	if _, err := rand.Read(nonce); err != nil {
		t.Fatal(err)
	}
	return nonce
}

func evidenceOf(t *testing.T, s *Service, nonce []byte) *evidence.Unverified {
	t.Helper()
	data, err := s.Evidence(t.Context(), nonce)
	if err != nil {
		t.Fatal(err)
	}
	u, err := evidence.Parse(data)
	if err != nil {
		t.Fatal(err)
	}
	return u
}

// expectations pin the card; what is exempted an emulator cannot have.
func (c *card) expectations(nonce []byte) evidence.Expectations {
	id := c.CardID()
	return evidence.Expectations{
		Nonce: nonce, Registers: map[string]int{"program": 8},
		AttestationKey: c.AttestationKey(), CardID: id[:],
		Exempt: []string{"ek.certificate", "pcr.reference"},
	}
}

func failed(r evidence.Report) []string {
	var out []string
	for _, c := range r.Claims {
		if c.Verdict == evidence.Failed {
			out = append(out, fmt.Sprintf("%s (%s)", c.Name, c.Reason))
		}
	}
	return out
}

func TestEvidence(t *testing.T) {
	t.Parallel()
	c := newCard(t)
	for n := range 3 {
		nonce := freshNonce(t)
		r := evidence.Appraise(evidenceOf(t, c.Service, nonce), c.expectations(nonce))
		if !r.Passed {
			t.Fatalf("after %d more events: %v", n, failed(r))
		}
		v, err := r.Verified()
		if err != nil {
			t.Fatal(err)
		}
		digest := sha256.Sum256(nonce)
		sig, err := c.Signer().Sign(rand.Reader, digest[:], crypto.SHA256)
		if err != nil {
			t.Fatal(err)
		}
		if !ecdsa.VerifyASN1(v.ReceiptKey, digest[:], sig) {
			t.Errorf("the signer's signature does not verify with the key in evidence")
		}
		if tpm.CardID(v.CardID) != c.CardID() {
			t.Errorf("card %x, want %v", v.CardID, c.CardID())
		}
		if err := c.log.add(t.Context(), 8, "program", "/davit/vcard"); err != nil {
			t.Fatal(err)
		}
	}
}

// An event that the TPM never saw, or saw and the log does not tell.
func TestLogAndTPMDiffer(t *testing.T) {
	t.Parallel()
	for name, part := range map[string]func(*card) error{
		"logged alone": func(c *card) error {
			e, err := eventlog.Measurement{Kind: "program", Items: []eventlog.Item{{Name: "x"}}}.Event(8, c.tpm.Banks()...)
			return errors.Join(err, c.log.log.Append(e))
		},
		"extended alone": func(c *card) error {
			return c.tpm.Extend(c.t.Context(), 8, eventlog.DigestsOf([]byte("x"), c.tpm.Banks()...)...)
		},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			c := newCard(t)
			if err := part(c); err != nil {
				t.Fatal(err)
			}
			nonce := freshNonce(t)
			r := evidence.Appraise(evidenceOf(t, c.Service, nonce), c.expectations(nonce))
			if got := failed(r); len(got) != 1 || r.Passed {
				t.Errorf("failed %v, want pcr.8.replay alone", got)
			}
		})
	}
}

func TestStaleNonceAndOtherTPM(t *testing.T) {
	t.Parallel()
	c, other := newCard(t), newCard(t)
	nonce := freshNonce(t)
	old := evidenceOf(t, c.Service, nonce)
	if r := evidence.Appraise(old, c.expectations(freshNonce(t))); r.Passed {
		t.Errorf("old evidence passes for a new nonce")
	}
	if r := evidence.Appraise(evidenceOf(t, other.Service, nonce), c.expectations(nonce)); r.Passed {
		t.Errorf("another TPM passes for this one")
	}
}

// The same card after a power cycle has the same identity, and evidence made
// before it does not speak for what runs after.
func TestIdentityOutlivesReset(t *testing.T) {
	t.Parallel()
	c := newCard(t)
	c.emu.Reset()
	again, err := tpm.Open(c.emu.Socket)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { again.Close() })
	cfg := c.cfg
	cfg.TPM = again
	s, err := New(t.Context(), cfg)
	if err != nil {
		t.Fatal(err)
	}
	if s.CardID() != c.CardID() || !bytes.Equal(s.AttestationKey(), c.AttestationKey()) {
		t.Errorf("identity differs after a reset")
	}
	nonce := freshNonce(t)
	if r := evidence.Appraise(evidenceOf(t, s, nonce), c.expectations(nonce)); r.Passed {
		t.Errorf("the log of an earlier boot passes")
	}
}

// Evidence made while measurements go on is always consistent.
func TestEvidenceWhileMeasuring(t *testing.T) {
	t.Parallel()
	c := newCard(t)
	var wg sync.WaitGroup
	wg.Go(func() {
		for n := range 20 {
			if err := c.log.add(t.Context(), 8, "program", fmt.Sprint(n)); err != nil {
				t.Error(err)
			}
		}
	})
	for range 2 {
		wg.Go(func() {
			for range 5 {
				nonce := freshNonce(t)
				data, err := c.Evidence(t.Context(), nonce)
				if err != nil {
					t.Error(err)
					return
				}
				u, err := evidence.Parse(data)
				if err != nil {
					t.Error(err)
					return
				}
				if r := evidence.Appraise(u, c.expectations(nonce)); !r.Passed {
					t.Errorf("failed %v", failed(r))
				}
			}
		})
	}
	wg.Wait()
}

func TestNonceBounds(t *testing.T) {
	t.Parallel()
	c := newCard(t)
	for _, n := range []int{0, evidence.MinNonce - 1, evidence.MaxNonce + 1} {
		if data, err := c.Evidence(t.Context(), make([]byte, n)); !errors.Is(err, ErrNonce) || data != nil {
			t.Errorf("Evidence for %d bytes = %d bytes, %v, want %v", n, len(data), err, ErrNonce)
		}
	}
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if data, err := c.Evidence(ctx, freshNonce(t)); !errors.Is(err, context.Canceled) || data != nil {
		t.Errorf("Evidence with an ended context = %d bytes, %v", len(data), err)
	}
}

// What is not there is left out, and its claim fails.
func TestMissingParts(t *testing.T) {
	t.Parallel()
	c := newCard(t)
	cfg := c.cfg
	cfg.FirmwareLogFile, cfg.BootReportFile, cfg.CardLog = filepath.Join(t.TempDir(), "none"), "", nil
	s, err := New(t.Context(), cfg)
	if err != nil {
		t.Fatal(err)
	}
	nonce := freshNonce(t)
	r := evidence.Appraise(evidenceOf(t, s, nonce), c.expectations(nonce))
	want := map[string]bool{"log.firmware": true, "log.card": true, "log.card.events": true, "boot.report": true}
	for _, claim := range r.Claims {
		if want[claim.Name] && claim.Verdict != evidence.Failed {
			t.Errorf("claim %s %s", claim.Name, claim.Verdict)
		}
		delete(want, claim.Name)
	}
	if len(want) != 0 || r.Passed {
		t.Errorf("claims %v are missing, passed %v", want, r.Passed)
	}
}

// Anybody may ask for evidence: what it lacks is not logged each time.
func TestWhatIsMissingIsLoggedOnce(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	var lines bytes.Buffer
	s, err := New(t.Context(), Config{
		KeyFile: filepath.Join(dir, "key"), FirmwareLogFile: filepath.Join(dir, "none"), BootReportFile: dir, CardLogFile: filepath.Join(dir, "empty"),
		Logger: slog.New(slog.NewTextHandler(&lines, nil)),
	})
	if err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(filepath.Join(dir, "empty"), nil, 0o600); err != nil {
		t.Fatal(err)
	}
	for range 3 {
		if _, err := s.Evidence(t.Context(), freshNonce(t)); err != nil {
			t.Fatal(err)
		}
	}
	for _, what := range []string{"firmware event log", "boot report", "card event log"} {
		if n := strings.Count(lines.String(), "without "+what); n != 1 {
			t.Errorf("%s: %d lines, want 1:\n%s", what, n, &lines)
		}
	}
}

// A log that nobody holds any more, because it broke, is shown as it is.
func TestBrokenLogIsShown(t *testing.T) {
	t.Parallel()
	c := newCard(t)
	if err := c.log.log.Append(eventlog.BrokenEvent(8, "TPM was gone", c.tpm.Banks()...)); err != nil {
		t.Fatal(err)
	}
	cfg := c.cfg
	cfg.CardLog, cfg.CardLogFile = nil, filepath.Join(t.TempDir(), "eventlog")
	if err := os.WriteFile(cfg.CardLogFile, c.log.log.Encode(), 0o600); err != nil {
		t.Fatal(err)
	}
	s, err := New(t.Context(), cfg)
	if err != nil {
		t.Fatal(err)
	}
	nonce := freshNonce(t)
	r := evidence.Appraise(evidenceOf(t, s, nonce), c.expectations(nonce))
	if got := failed(r); len(got) != 1 || !strings.Contains(got[0], "TPM was gone") {
		t.Errorf("failed %v, want log.card alone with the reason", got)
	}
}

func TestGoneTPM(t *testing.T) {
	t.Parallel()
	c := newCard(t)
	c.emu.Stop()
	if data, err := c.Evidence(t.Context(), freshNonce(t)); err == nil || data != nil {
		t.Errorf("Evidence without the TPM = %d bytes, %v, want an error", len(data), err)
	}
}
