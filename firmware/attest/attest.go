// SPDX-License-Identifier: Apache-2.0

package attest

import (
	"bytes"
	"context"
	"crypto"
	"crypto/x509"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"os"
	"sync"

	"github.com/davit-dpu/davit/firmware/eventlog"
	"github.com/davit-dpu/davit/firmware/evidence"
	"github.com/davit-dpu/davit/firmware/tpm"
)

// ErrNonce: the nonce is too short or too long for evidence.
var ErrNonce = errors.New("nonce is of no fit length")

// certifyLabel is the qualifying data of the receipt key's certification. It
// is not new for each document: where a key lives does not change, and the
// quote binds the key to the nonce.
const certifyLabel = "davit receipt key"

// maxTries bounds how often a quote is made again because a PCR that others
// extend (IMA's) moved between reading and quoting.
const maxTries = 8

// Log is the card's event log, held still: fn gets its bytes while nothing is
// logged or extended. measure.Measurer is one.
type Log interface {
	Snapshot(fn func(log []byte) error) error
}

// Config is what a Service works with.
type Config struct {
	// TPM is the card's, nil if there is none. It stays the caller's to close.
	TPM *tpm.TPM
	// NoTPM says why TPM is nil; it goes into the evidence.
	NoTPM string
	// KeyFile is where the software key is kept if there is no TPM.
	KeyFile string
	// CardLog is the card's event log, nil if nobody holds it.
	CardLog Log
	// CardLogFile is the file that is read instead if CardLog is nil: a card
	// whose log broke still shows it.
	CardLogFile string
	// FirmwareLogFile is where the kernel shows the firmware's event log.
	FirmwareLogFile string
	// BootReportFile is where init left its report.
	BootReportFile string
	// Logger gets one line for each thing that evidence lacks, when that is first
	// found: anybody may ask for evidence as often as the door allows.
	Logger *slog.Logger
}

// Service makes evidence and signs receipts. All methods may be called
// concurrently.
type Service struct {
	cfg    Config
	signer crypto.Signer
	spki   []byte // of the signer
	id     tpm.CardID
	lacks  sync.Map // what evidence went without, and was logged

	ak          *tpm.AK  // nil without TPM
	receipt     *tpm.Key // nil without TPM
	endorsement tpm.Endorsement
	certified   tpm.Attestation
}

// New loads the keys: the TPM's, and if there is no TPM the one in KeyFile,
// which is made at first use.
func New(ctx context.Context, cfg Config) (*Service, error) {
	s := &Service{cfg: cfg}
	var err error
	if cfg.TPM == nil {
		err = s.loadSoftwareKey()
	} else {
		err = s.loadKeys(ctx)
	}
	if err != nil {
		return nil, fmt.Errorf("load attestation keys: %w", err)
	}
	return s, nil
}

func (s *Service) loadKeys(ctx context.Context) error {
	var err error
	if s.endorsement, err = s.cfg.TPM.Endorsement(ctx); err != nil {
		return err
	}
	if s.ak, err = s.cfg.TPM.AK(ctx); err != nil {
		return err
	}
	if s.receipt, err = s.cfg.TPM.ReceiptKey(ctx); err != nil {
		return err
	}
	if s.certified, err = s.ak.Certify(ctx, s.receipt, []byte(certifyLabel)); err != nil {
		return err
	}
	if s.spki, err = x509.MarshalPKIXPublicKey(s.receipt.Public()); err != nil {
		return fmt.Errorf("encode receipt key: %w", err)
	}
	s.signer, s.id = s.receipt, s.endorsement.CardID()
	return nil
}

// Signer returns the key that signs receipts: ECDSA P-256 with SHA-256.
func (s *Service) Signer() crypto.Signer { return s.signer }

// CardID returns the card's id: that of the TPM's endorsement key, and without
// TPM the SHA-256 of the software key's SubjectPublicKeyInfo.
func (s *Service) CardID() tpm.CardID { return s.id }

// AttestationKey returns the TPM's name for the attestation key, for verifiers
// to pin; nil without TPM.
func (s *Service) AttestationKey() []byte {
	if s.ak == nil {
		return nil
	}
	return s.ak.Public().Name
}

// Evidence returns an encoded [evidence.Document] for a nonce of
// [evidence.MinNonce] to [evidence.MaxNonce] bytes ([ErrNonce]). A log or boot
// report that is not there is left out; the appraisal then fails its claim.
func (s *Service) Evidence(ctx context.Context, nonce []byte) ([]byte, error) {
	if len(nonce) < evidence.MinNonce || len(nonce) > evidence.MaxNonce {
		return nil, fmt.Errorf("make evidence: %d bytes: %w", len(nonce), ErrNonce)
	}
	doc := evidence.Document{
		Version:     evidence.Version,
		Nonce:       bytes.Clone(nonce),
		ReceiptKey:  s.spki,
		FirmwareLog: s.read("firmware event log", s.cfg.FirmwareLogFile, eventlog.MaxSize),
		BootReport:  s.read("boot report", s.cfg.BootReportFile, evidence.MaxBootReport),
	}
	err := s.withLog(func(log []byte) error {
		doc.CardLog = bytes.Clone(log)
		return s.attest(ctx, &doc)
	})
	if err != nil {
		return nil, fmt.Errorf("make evidence: %w", err)
	}
	return doc.Encode()
}

func (s *Service) withLog(fn func(log []byte) error) error {
	if s.cfg.CardLog == nil {
		return fn(s.read("card event log", s.cfg.CardLogFile, eventlog.MaxSize))
	}
	return s.cfg.CardLog.Snapshot(fn)
}

// attest adds what the TPM states, or says why there is none.
func (s *Service) attest(ctx context.Context, doc *evidence.Document) error {
	if s.ak == nil {
		doc.NoTPM = s.cfg.NoTPM
		if doc.NoTPM == "" {
			doc.NoTPM = "no TPM"
		}
		return nil
	}
	doc.TPM = &evidence.TPM{
		AttestationKey: s.ak.Public().Area,
		EndorsementKey: s.endorsement.Public,
		Certificate:    s.endorsement.Certificate,
		Receipt:        evidence.CertifiedKey{Public: s.receipt.TPMPublic().Area, Certification: evidence.Signed(s.certified)},
	}
	binding := doc.Binding()
	for range maxTries {
		values, err := s.cfg.TPM.ReadPCRs(ctx, eventlog.SHA256, staticPCRs()...)
		if err != nil {
			return err
		}
		quote, err := s.ak.Quote(ctx, binding[:], staticPCRs()...)
		if err != nil {
			return err
		}
		after, err := s.cfg.TPM.ReadPCRs(ctx, eventlog.SHA256, staticPCRs()...)
		if err != nil {
			return err
		}
		if same(values, after) {
			doc.TPM.Quote, doc.TPM.PCRs = evidence.Signed(quote), listed(values)
			return nil
		}
	}
	return errors.New("the PCRs keep changing while they are quoted")
}

// staticPCRs are the PCRs that no software can reset.
func staticPCRs() []int {
	out := make([]int, 16)
	for i := range out {
		out[i] = i
	}
	return out
}

func same(a, b eventlog.PCRs) bool {
	for n, v := range a {
		if !bytes.Equal(v, b[n]) {
			return false
		}
	}
	return true
}

func listed(values eventlog.PCRs) map[uint64][]byte {
	out := map[uint64][]byte{}
	for n, v := range values {
		out[uint64(n)] = v
	}
	return out
}

// read returns a file's content, nil if it cannot be had: evidence must show
// what the card has, and the verifier decides whether that will do.
func (s *Service) read(what, path string, limit int) []byte {
	if path == "" {
		return nil
	}
	data, err := os.ReadFile(path)
	if err == nil && len(data) > 0 && len(data) <= limit {
		return data
	}
	if _, told := s.lacks.LoadOrStore(what, true); told {
		return nil
	}
	level := slog.LevelWarn
	if errors.Is(err, fs.ErrNotExist) {
		level = slog.LevelInfo
	}
	s.cfg.Logger.Log(context.Background(), level, "evidence goes without "+what, "path", path, "err", err, "bytes", len(data), "limit", limit)
	return nil
}
