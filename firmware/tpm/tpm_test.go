// SPDX-License-Identifier: Apache-2.0

package tpm

import (
	"bytes"
	"context"
	"crypto"
	"crypto/ecdsa"
	"crypto/sha256"
	"errors"
	"os"
	"path/filepath"
	"slices"
	"sync"
	"testing"

	"github.com/google/go-tpm/tpm2"

	"github.com/davit-dpu/davit/firmware/eventlog"
	"github.com/davit-dpu/davit/firmware/tpm/tpmtest"
)

func openTest(t *testing.T) (*TPM, *tpmtest.Emulator) {
	t.Helper()
	e := tpmtest.Start(t)
	return reopen(t, e), e
}

func reopen(t *testing.T, e *tpmtest.Emulator) *TPM {
	t.Helper()
	tpm, err := Open(e.Socket)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { tpm.Close() })
	return tpm
}

func TestOpenRefuses(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	plain := filepath.Join(dir, "plain")
	if err := os.WriteFile(plain, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	if tpm, err := Open(filepath.Join(dir, "none")); !errors.Is(err, ErrNoTPM) || tpm != nil {
		t.Errorf("Open of nothing = %v, %v, want %v", tpm, err, ErrNoTPM)
	}
	if tpm, err := Open(plain); err == nil || errors.Is(err, ErrNoTPM) || tpm != nil {
		t.Errorf("Open of a plain file = %v, %v, want another error", tpm, err)
	}
}

func TestExtendAllBanks(t *testing.T) {
	t.Parallel()
	tpm, _ := openTest(t)
	ctx := t.Context()
	banks := tpm.Banks()
	if !slices.Contains(banks, eventlog.SHA256) || len(banks) < 2 {
		t.Fatalf("banks = %v, want SHA-256 and more", banks)
	}
	want := map[eventlog.Alg][]byte{}
	for _, text := range []string{"one", "two"} {
		digests := eventlog.DigestsOf([]byte(text), banks...)
		if err := tpm.Extend(ctx, 8, digests...); err != nil {
			t.Fatal(err)
		}
		for _, d := range digests {
			if want[d.Alg] == nil {
				want[d.Alg] = eventlog.Initial(d.Alg, 8)
			}
			want[d.Alg] = d.Alg.Sum(want[d.Alg], d.Sum)
		}
	}
	for _, bank := range banks {
		got, err := tpm.ReadPCRs(ctx, bank, 8, 9, 17)
		if err != nil {
			t.Fatal(err)
		}
		if !bytes.Equal(got[8], want[bank]) {
			t.Errorf("pcr 8 of %v = %x, want %x", bank, got[8], want[bank])
		}
		for _, pcr := range []int{9, 17} {
			if !bytes.Equal(got[pcr], eventlog.Initial(bank, pcr)) {
				t.Errorf("pcr %d of %v = %x, want its initial value", pcr, bank, got[pcr])
			}
		}
	}
}

func TestReadAllPCRs(t *testing.T) {
	t.Parallel()
	tpm, _ := openTest(t)
	var all []int
	for n := eventlog.NumPCRs - 1; n >= 0; n-- {
		all = append(all, n)
	}
	got, err := tpm.ReadPCRs(t.Context(), eventlog.SHA256, all...)
	if err != nil {
		t.Fatal(err)
	}
	if len(got) != len(all) {
		t.Errorf("got %d values, want %d", len(got), len(all))
	}
}

func TestExtendRefuses(t *testing.T) {
	t.Parallel()
	tpm, _ := openTest(t)
	whole := eventlog.DigestsOf([]byte("x"), tpm.Banks()...)
	short := slices.Clone(whole)
	short[0].Sum = short[0].Sum[1:]
	for name, test := range map[string]struct {
		pcr     int
		digests []eventlog.Digest
		want    error
	}{
		"a bank left out":   {8, whole[1:], ErrNoBank},
		"a bank twice":      {8, append(slices.Clone(whole), whole[0]), ErrNoBank},
		"no digests":        {8, nil, ErrNoBank},
		"a short digest":    {8, short, ErrNoBank},
		"an unknown bank":   {8, append(slices.Clone(whole[1:]), eventlog.Digest{Alg: 0x12, Sum: make([]byte, 32)}), ErrNoBank},
		"a negative number": {-1, whole, nil},
		"a number too high": {24, whole, nil},
	} {
		err := tpm.Extend(t.Context(), test.pcr, test.digests...)
		if err == nil || (test.want != nil && !errors.Is(err, test.want)) {
			t.Errorf("%s: Extend = %v, want %v", name, err, test.want)
		}
	}
	values, err := tpm.ReadPCRs(t.Context(), eventlog.SHA256, 8)
	if err != nil {
		t.Fatal(err)
	}
	if !bytes.Equal(values[8], eventlog.Initial(eventlog.SHA256, 8)) {
		t.Errorf("a refused extend changed the PCR")
	}
	if _, err := tpm.ReadPCRs(t.Context(), 0x12, 8); !errors.Is(err, ErrNoBank) {
		t.Errorf("ReadPCRs of an unknown bank = %v, want %v", err, ErrNoBank)
	}
	if _, err := tpm.ReadPCRs(t.Context(), eventlog.SHA256, 24); err == nil {
		t.Errorf("ReadPCRs of pcr 24 succeeds")
	}
}

func TestKeysOutliveReset(t *testing.T) {
	t.Parallel()
	tpm, emulator := openTest(t)
	type keys struct {
		ak, receipt Public
		id          CardID
	}
	read := func(tpm *TPM) keys {
		t.Helper()
		ak, err := tpm.AK(t.Context())
		if err != nil {
			t.Fatal(err)
		}
		receipt, err := tpm.ReceiptKey(t.Context())
		if err != nil {
			t.Fatal(err)
		}
		ek, err := tpm.Endorsement(t.Context())
		if err != nil {
			t.Fatal(err)
		}
		if ek.Certificate != nil {
			t.Errorf("a TPM without certificate has one")
		}
		return keys{ak.Public(), receipt.TPMPublic(), ek.CardID()}
	}
	before := read(tpm)
	if bytes.Equal(before.ak.Area, before.receipt.Area) {
		t.Errorf("attestation key and receipt key are the same")
	}
	emulator.Reset()
	after := read(reopen(t, emulator))
	if !bytes.Equal(before.ak.Area, after.ak.Area) || !bytes.Equal(before.receipt.Area, after.receipt.Area) || before.id != after.id {
		t.Errorf("keys differ after a reset:\n%v\n%v", before, after)
	}
	other, _ := openTest(t)
	if got := read(other); got.id == before.id || bytes.Equal(got.ak.Area, before.ak.Area) {
		t.Errorf("another TPM has the same keys")
	}
}

// A process that was killed leaves its keys loaded in a TPM without resource
// manager; its successors must not run out of memory for theirs.
func TestOpenFlushesPredecessor(t *testing.T) {
	t.Parallel()
	e := tpmtest.Start(t)
	for range 4 {
		tpm, err := Open(e.Socket)
		if err != nil {
			t.Fatal(err)
		}
		if _, err := tpm.AK(t.Context()); err != nil {
			t.Fatal(err)
		}
		if _, err := tpm.ReceiptKey(t.Context()); err != nil {
			t.Fatal(err)
		}
		if _, err := tpm.Endorsement(t.Context()); err != nil {
			t.Fatal(err)
		}
		// not closed
	}
}

func TestSign(t *testing.T) {
	t.Parallel()
	tpm, _ := openTest(t)
	key, err := tpm.ReceiptKey(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	digest := sha256.Sum256([]byte("receipt"))
	sig, err := key.Sign(nil, digest[:], crypto.SHA256)
	if err != nil {
		t.Fatal(err)
	}
	if !ecdsa.VerifyASN1(key.Public().(*ecdsa.PublicKey), digest[:], sig) {
		t.Errorf("signature does not verify")
	}
	if _, err := key.Sign(nil, digest[:], crypto.SHA384); err == nil {
		t.Errorf("Sign of a digest said to be SHA-384 succeeds")
	}
	if _, err := key.Sign(nil, digest[:31], crypto.SHA256); err == nil {
		t.Errorf("Sign of a short digest succeeds")
	}
}

// The attestation key must not sign what the TPM did not state.
func TestAKIsRestricted(t *testing.T) {
	t.Parallel()
	tpm, _ := openTest(t)
	ak, err := tpm.AK(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	digest := sha256.Sum256([]byte("\xffTCG forged"))
	if sig, err := (&Key{tpm, ak.key}).Sign(nil, digest[:], crypto.SHA256); err == nil {
		t.Errorf("attestation key signs foreign bytes: %x", sig)
	}
}

func TestQuoteAndCertify(t *testing.T) {
	t.Parallel()
	tpm, _ := openTest(t)
	ak, err := tpm.AK(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	key, err := tpm.ReceiptKey(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	qualifying := []byte("qualifying data of 32 bytes here")
	quote, err := ak.Quote(t.Context(), qualifying, 0, 8, 15)
	if err != nil {
		t.Fatal(err)
	}
	attest := verify(t, ak, quote)
	if !bytes.Equal(attest.ExtraData.Buffer, qualifying) || attest.Type != tpm2.TPMSTAttestQuote {
		t.Errorf("quote is of type %v for %x", attest.Type, attest.ExtraData.Buffer)
	}
	cert, err := ak.Certify(t.Context(), key, qualifying)
	if err != nil {
		t.Fatal(err)
	}
	attest = verify(t, ak, cert)
	info, err := attest.Attested.Certify()
	if err != nil {
		t.Fatal(err)
	}
	if !bytes.Equal(info.Name.Buffer, key.TPMPublic().Name) {
		t.Errorf("certified %x, want %x", info.Name.Buffer, key.TPMPublic().Name)
	}
}

func verify(t *testing.T, ak *AK, a Attestation) *tpm2.TPMSAttest {
	t.Helper()
	sig, err := tpm2.Unmarshal[tpm2.TPMTSignature](a.Signature)
	if err != nil {
		t.Fatal(err)
	}
	pair, err := sig.Signature.ECDSA()
	if err != nil {
		t.Fatal(err)
	}
	digest := sha256.Sum256(a.Statement)
	der := derOf(t, pair.SignatureR.Buffer, pair.SignatureS.Buffer)
	if !ecdsa.VerifyASN1(ak.key.key, digest[:], der) {
		t.Fatal("signature does not verify")
	}
	attest, err := tpm2.Unmarshal[tpm2.TPMSAttest](a.Statement)
	if err != nil {
		t.Fatal(err)
	}
	return attest
}

func TestContextAndClose(t *testing.T) {
	t.Parallel()
	tpm, _ := openTest(t)
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if _, err := tpm.ReadPCRs(ctx, eventlog.SHA256, 0); !errors.Is(err, context.Canceled) {
		t.Errorf("ReadPCRs with an ended context = %v, want %v", err, context.Canceled)
	}
	ak, err := tpm.AK(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	for range 2 {
		if err := tpm.Close(); err != nil {
			t.Errorf("Close = %v", err)
		}
	}
	if _, err := ak.Quote(t.Context(), nil, 0); !errors.Is(err, ErrClosed) {
		t.Errorf("Quote after Close = %v, want %v", err, ErrClosed)
	}
	if _, err := tpm.AK(t.Context()); !errors.Is(err, ErrClosed) {
		t.Errorf("AK after Close = %v, want %v", err, ErrClosed)
	}
}

// A context ends the wait for a TPM that another call holds.
func TestContextEndsWait(t *testing.T) {
	t.Parallel()
	tpm, _ := openTest(t)
	unlock, err := tpm.lock(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	defer unlock()
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan error)
	go func() { _, err := tpm.ReadPCRs(ctx, eventlog.SHA256, 0); done <- err }()
	cancel()
	if err := <-done; !errors.Is(err, context.Canceled) {
		t.Errorf("ReadPCRs = %v, want %v", err, context.Canceled)
	}
}

func TestConcurrentUse(t *testing.T) {
	t.Parallel()
	tpm, _ := openTest(t)
	var wg sync.WaitGroup
	for range 4 {
		wg.Go(func() {
			key, err := tpm.ReceiptKey(t.Context())
			if err != nil {
				t.Error(err)
				return
			}
			digest := sha256.Sum256(nil)
			if _, err := key.Sign(nil, digest[:], crypto.SHA256); err != nil {
				t.Error(err)
			}
			if err := tpm.Extend(t.Context(), 9, eventlog.DigestsOf(nil, tpm.Banks()...)...); err != nil {
				t.Error(err)
			}
		})
	}
	wg.Wait()
}

func TestGoneTPM(t *testing.T) {
	t.Parallel()
	tpm, e := openTest(t)
	e.Stop()
	if err := tpm.Extend(t.Context(), 9, eventlog.DigestsOf(nil, tpm.Banks()...)...); err == nil {
		t.Errorf("Extend of a TPM that is gone succeeds")
	}
}
