// SPDX-License-Identifier: Apache-2.0

package mailbox

import (
	"context"
	"crypto"
	"crypto/sha256"
	"errors"
	"fmt"
	"log/slog"
	"time"

	"github.com/veraison/go-cose"

	"github.com/davit-dpu/davit/firmware/audit"
	"github.com/davit-dpu/davit/firmware/spec"
)

// Defaults of Config.
const (
	DefaultNonceTTL = 5 * time.Minute
	DefaultUsed     = 4096
	DefaultRunning  = 16
	DefaultStreams  = 16
	DefaultPublic   = 4
)

// Auditor keeps records. Append returns once the record survives a power cut.
// *audit.Log is one.
type Auditor interface {
	Append(audit.Entry) (uint64, error)
}

// Door says where a command came in.
type Door struct {
	Name    string // for the record: "tls", "bus", "unix"
	Binding []byte // SHA-256 of the door's TLS SubjectPublicKeyInfo, or nil; goes into each receipt
}

// Link is the connection to the requester of one command, given by the door.
type Link interface {
	// Authenticated is called, at most once and before any receipt, when the
	// command is known to come from somebody who may command this card: it is
	// signed by a key of the keyring, for this card and for now, and its nonce is
	// fresh. It is never called for a public request that is not signed.
	Authenticated()

	// Receipt sends a receipt. If a stream is open, its end is sent first.
	Receipt(receipt []byte) error

	// Stream opens the stream, after the Accepted receipt. The returned context
	// ends when the connection does.
	Stream(ctx context.Context) (context.Context, Stream)
}

// Config is what a mailbox works with.
type Config struct {
	Card      string         // identity of this card, which commands must name
	Lifecycle spec.Lifecycle // of this card
	Keyring   *Keyring
	Ops       []Op
	Receipt   crypto.Signer // signs receipts; ECDSA P-256, resident in the TPM
	ReceiptID string        // key id in receipts; "": KeyID of the key
	Audit     Auditor
	Log       *slog.Logger
	Now       func() time.Time // nil: time.Now

	NonceTTL time.Duration // how long a nonce can be used; 0: DefaultNonceTTL
	Used     int           // used nonces kept, which bounds commands in one NonceTTL; 0: DefaultUsed
	Running  int           // signed commands executed at the same time; 0: DefaultRunning
	Streams  int           // of those with a stream, which do not count above; 0: DefaultStreams
	Public   int           // public requests executed at the same time for each door; 0: DefaultPublic
}

// Mailbox checks commands, executes them and answers with receipts. It is safe
// for concurrent use.
type Mailbox struct {
	cfg     Config
	ops     map[string]*Op
	signer  cose.Signer
	nonces  *nonces
	running chan struct{} // a token for each signed command being executed
	streams chan struct{} // the same for those with a stream
	public  doorSlots
	open    openRecords
}

// New makes a mailbox. Everything that it needs is checked here, not when the
// first command comes.
func New(cfg Config) (*Mailbox, error) {
	cfg.fill()
	switch {
	case cfg.Card == "" || len(cfg.Card) > maxCard:
		return nil, fmt.Errorf("mailbox: card identity: want 1 to %d bytes", maxCard)
	case cfg.Lifecycle == "":
		return nil, errors.New("mailbox: no lifecycle")
	case cfg.Keyring == nil, cfg.Receipt == nil, cfg.Audit == nil, cfg.Log == nil:
		return nil, errors.New("mailbox: keyring, receipt key, audit log or logger is missing")
	}
	m := &Mailbox{cfg: cfg, running: make(chan struct{}, cfg.Running), streams: make(chan struct{}, cfg.Streams)}
	m.nonces = newNonces(cfg.Now, cfg.NonceTTL, cfg.Used)
	m.public.limit = cfg.Public
	m.open = openRecords{audit: cfg.Audit, log: cfg.Log, now: cfg.Now, tokens: openBurst, refilled: cfg.Now()}
	var err error
	if m.ops, err = opTable(append([]Op{m.challengeOp()}, cfg.Ops...)); err != nil {
		return nil, fmt.Errorf("mailbox: %w", err)
	}
	if m.signer, err = newSigner(cfg.Receipt); err != nil {
		return nil, fmt.Errorf("mailbox: receipt key: %w", err)
	}
	if m.cfg.ReceiptID == "" {
		if m.cfg.ReceiptID, err = KeyID(cfg.Receipt.Public()); err != nil {
			return nil, fmt.Errorf("mailbox: receipt key: %w", err)
		}
	}
	return m, nil
}

func (c *Config) fill() {
	if c.Now == nil {
		c.Now = time.Now
	}
	if c.NonceTTL <= 0 {
		c.NonceTTL = DefaultNonceTTL
	}
	if c.Used <= 0 {
		c.Used = DefaultUsed
	}
	if c.Running <= 0 {
		c.Running = DefaultRunning
	}
	if c.Streams <= 0 {
		c.Streams = DefaultStreams
	}
	if c.Public <= 0 {
		c.Public = DefaultPublic
	}
}

// Close writes what is still to be recorded. No command may be given to the
// mailbox any more.
func (m *Mailbox) Close() { m.open.close() }

// attempt is one message on its way through the checks.
type attempt struct {
	door   Door
	digest Digest
	link   Link   // nil: the door carries no streams
	op     string // as asked for; verified only if key is set
	key    string // id of the key, once the signature is verified
	claim  string // id of the key that is said to have signed, until then
	nonce  []byte // of a public request
	why    string // requester and reason
}

// Submit takes a command or a public request and returns the receipt. Ops with
// a stream are refused; they need Serve. ctx bounds the execution: it should
// live as long as the agent, not as the requester's connection.
//
// The error, of which nothing is told to the requester, means that there is no
// receipt because it could not be signed.
func (m *Mailbox) Submit(ctx context.Context, door Door, message []byte) ([]byte, error) {
	a := attempt{door: door}
	var c collector
	if _, err := m.serve(ctx, &a, message, &c); err != nil {
		return nil, err
	}
	return c.receipt, nil
}

// Serve takes a command or a public request and sends the receipts, and the
// stream between them if the op has one, through the link. It returns the code
// of the last receipt. The error means that a receipt could not be signed or
// sent; the connection is of no more use then.
func (m *Mailbox) Serve(ctx context.Context, door Door, message []byte, link Link) (Code, error) {
	a := attempt{door: door, link: link}
	return m.serve(ctx, &a, message, link)
}

// sender is the part of a Link that is always there.
type sender interface{ Receipt([]byte) error }

// collector is the sender of Submit.
type collector struct{ receipt []byte }

func (c *collector) Receipt(receipt []byte) error {
	c.receipt = receipt
	return nil
}

func (m *Mailbox) serve(ctx context.Context, a *attempt, message []byte, to sender) (Code, error) {
	a.digest = sha256.Sum256(message)
	var code Code
	var receipt []byte
	var after []func()
	cmd, op, err := m.check(a, message)
	switch {
	case err != nil:
		code, receipt, err = m.refused(a, err)
	case !cmd.Signed():
		code, receipt, err = m.answer(ctx, a, cmd, op)
	default:
		code, receipt, err = m.execute(ctx, a, cmd, op)
		after = cmd.after
	}
	if err == nil {
		err = to.Receipt(receipt)
	}
	for _, f := range after {
		f()
	}
	if err != nil {
		return "", fmt.Errorf("answer command: %w", err)
	}
	return code, nil
}

// refused records a refusal and gives its receipt.
func (m *Mailbox) refused(a *attempt, cause error) (Code, []byte, error) {
	var r *Refusal
	if !errors.As(cause, &r) {
		return "", nil, cause
	}
	entry := a.entry(m.cfg.Now(), audit.KindRefused, r.Code, r.Text)
	var index uint64
	if a.key != "" {
		var err error
		if index, err = m.cfg.Audit.Append(entry); err != nil {
			m.cfg.Log.Error("mailbox: record refusal", "code", r.Code, "err", err)
		}
	} else {
		if a.claim != "" {
			entry.Reason = fmt.Sprintf("said to be signed by %q: %s", a.claim, entry.Reason)
		}
		index = m.open.add(entry)
	}
	receipt, err := m.receipt(a, r.Code, r.Text, nil, index)
	return r.Code, receipt, err
}

// entry begins an audit record about the attempt.
func (a *attempt) entry(now time.Time, kind audit.Kind, code Code, reason string) audit.Entry {
	return audit.Entry{
		Time: now, Kind: kind, Command: a.digest, Op: a.op, Key: a.key, Door: a.door.Name,
		Code: string(code), Reason: reason,
	}
}

// receipt makes a signed receipt.
func (m *Mailbox) receipt(a *attempt, code Code, text string, result []byte, index uint64) ([]byte, error) {
	body, err := encodeReceipt(&Receipt{
		Card: m.cfg.Card, Command: a.digest, Code: code, Text: text, Result: result, Time: m.cfg.Now(),
		AuditIndex: index, Nonce: a.nonce, Binding: a.door.Binding,
	})
	if err != nil {
		return nil, fmt.Errorf("encode receipt: %w", err)
	}
	receipt, err := seal(m.signer, m.cfg.ReceiptID, ReceiptType, body)
	if err != nil {
		return nil, fmt.Errorf("sign receipt: %w", err)
	}
	return receipt, nil
}
