// SPDX-License-Identifier: Apache-2.0

package mailbox

import (
	"bytes"
	"crypto"
	"crypto/sha256"
	"errors"
	"fmt"
	"time"
	"unicode/utf8"

	"github.com/fxamacker/cbor/v2"
	"github.com/veraison/go-cose"

	"github.com/davit-dpu/davit/firmware/spec"
)

const version = 1

// Limits of the fields of a command, in bytes.
const (
	maxCard        = 128
	maxOp          = 64
	maxText        = 256
	maxClientNonce = 64
	NonceSize      = 32 // of the nonces that cards issue
)

// Request is what a requester wants to have done.
type Request struct {
	Card      string // identity of the card that shall do it
	Op        string
	Args      any    // a struct or map of the op's arguments; nil for none
	Nonce     []byte // issued by the card
	NotBefore time.Time
	NotAfter  time.Time
	Requester string // who asks, for the record
	Reason    string // why, for the record
	Lifecycle spec.Lifecycle
}

// payload is the signed content of a command. Keys are never renumbered or
// reused; see docs/mailbox.md for how it may grow.
type payload struct {
	Version   uint64          `cbor:"1,keyasint"`
	Card      string          `cbor:"2,keyasint"`
	Op        string          `cbor:"3,keyasint"`
	Args      cbor.RawMessage `cbor:"4,keyasint,omitempty"`
	Nonce     []byte          `cbor:"5,keyasint"`
	NotBefore int64           `cbor:"6,keyasint"`
	NotAfter  int64           `cbor:"7,keyasint"`
	Requester string          `cbor:"8,keyasint,omitempty"`
	Reason    string          `cbor:"9,keyasint,omitempty"`
	Lifecycle string          `cbor:"10,keyasint"`
}

// plain is an unsigned request for a public op.
type plain struct {
	Type    string          `cbor:"0,keyasint"`
	Version uint64          `cbor:"1,keyasint"`
	Card    string          `cbor:"2,keyasint,omitempty"`
	Op      string          `cbor:"3,keyasint"`
	Args    cbor.RawMessage `cbor:"4,keyasint,omitempty"`
	Nonce   []byte          `cbor:"5,keyasint,omitempty"` // the requester's, comes back in the receipt
}

// Sign makes a command. keyID is the id under which the card knows the key.
func Sign(key crypto.Signer, keyID string, r Request) ([]byte, error) {
	args, err := encodeArgs(r.Args)
	if err != nil {
		return nil, fmt.Errorf("sign %s: %w", r.Op, err)
	}
	p := payload{
		Version: version, Card: r.Card, Op: r.Op, Args: args, Nonce: r.Nonce,
		NotBefore: r.NotBefore.Unix(), NotAfter: r.NotAfter.Unix(),
		Requester: r.Requester, Reason: r.Reason, Lifecycle: string(r.Lifecycle),
	}
	if err := p.validate(); err != nil {
		return nil, fmt.Errorf("sign %s: %w", r.Op, err)
	}
	body, err := encode(p)
	if err != nil {
		return nil, fmt.Errorf("sign %s: %w", r.Op, err)
	}
	command, err := sealWith(key, keyID, CommandType, body)
	if err != nil {
		return nil, fmt.Errorf("sign %s: %w", r.Op, err)
	}
	if len(command) > MaxCommand {
		return nil, fmt.Errorf("sign %s: command has %d bytes, more than %d", r.Op, len(command), MaxCommand)
	}
	return command, nil
}

// PublicRequest makes an unsigned request for a public op. The nonce, at most
// 64 bytes of the requester's choice, comes back in the receipt and proves that
// the receipt is not older than the request. An empty card means any card.
func PublicRequest(card, op string, args any, nonce []byte) ([]byte, error) {
	raw, err := encodeArgs(args)
	if err != nil {
		return nil, fmt.Errorf("request %s: %w", op, err)
	}
	p := plain{Type: RequestType, Version: version, Card: card, Op: op, Args: raw, Nonce: nonce}
	if err := p.validate(); err != nil {
		return nil, fmt.Errorf("request %s: %w", op, err)
	}
	request, err := encode(p)
	if err != nil {
		return nil, fmt.Errorf("request %s: %w", op, err)
	}
	if len(request) > MaxCommand {
		return nil, fmt.Errorf("request %s: %d bytes, more than %d", op, len(request), MaxCommand)
	}
	return request, nil
}

// encodeArgs encodes arguments and makes sure that a card will read them.
func encodeArgs(args any) (cbor.RawMessage, error) {
	if args == nil {
		return nil, nil
	}
	raw, err := encode(args)
	if err != nil {
		return nil, fmt.Errorf("arguments: %w", err)
	}
	if err := commandDialect.check(raw); err != nil {
		return nil, fmt.Errorf("arguments: %w", err)
	}
	return raw, validArgs(raw)
}

// validArgs wants a map or nothing.
func validArgs(raw cbor.RawMessage) error {
	if len(raw) > 0 && raw[0]>>5 != majorMap {
		return errors.New("arguments are not a map")
	}
	return nil
}

func (p *payload) validate() error {
	if len(p.Nonce) != NonceSize {
		return fmt.Errorf("nonce has %d bytes, want %d", len(p.Nonce), NonceSize)
	}
	if p.NotAfter < p.NotBefore {
		return errors.New("not-after lies before not-before")
	}
	if p.Card == "" {
		return errors.New("no card is named")
	}
	if p.Lifecycle == "" || len(p.Lifecycle) > maxOp {
		return errors.New("no lifecycle is named")
	}
	if err := validText("requester", p.Requester); err != nil {
		return err
	}
	if err := validText("reason", p.Reason); err != nil {
		return err
	}
	return validCommon(p.Version, p.Card, p.Op, p.Args)
}

func (p *plain) validate() error {
	if p.Type != RequestType {
		return fmt.Errorf("content type is not %s", RequestType)
	}
	if len(p.Nonce) > maxClientNonce {
		return fmt.Errorf("nonce has %d bytes, more than %d", len(p.Nonce), maxClientNonce)
	}
	return validCommon(p.Version, p.Card, p.Op, p.Args)
}

func validCommon(v uint64, card, op string, args cbor.RawMessage) error {
	if v != version {
		return fmt.Errorf("version %d, this side knows %d", v, version)
	}
	if len(card) > maxCard {
		return fmt.Errorf("card identity has %d bytes, more than %d", len(card), maxCard)
	}
	if !validOp(op) {
		return fmt.Errorf("op: want 1 to %d characters a-z, 0-9, dot and dash", maxOp)
	}
	return validArgs(args)
}

func validText(what, s string) error {
	if len(s) > maxText || !utf8.ValidString(s) {
		return fmt.Errorf("%s: want at most %d bytes of UTF-8", what, maxText)
	}
	return nil
}

func validOp(op string) bool {
	for i := range len(op) {
		c := op[i]
		if (c < 'a' || c > 'z') && (c < '0' || c > '9') && c != '.' && c != '-' {
			return false
		}
	}
	return op != "" && len(op) <= maxOp
}

// decodeExact decodes and makes sure that nothing was lost or read loosely:
// encoding v again gives the same bytes.
func decodeExact(data []byte, v any) error {
	if err := decodeStrict(data, v); err != nil {
		return err
	}
	again, err := encode(v)
	if err != nil {
		return err
	}
	if !bytes.Equal(again, data) {
		return errors.New("a field has another type or form than it should")
	}
	return nil
}

// Unverified is a command whose form was checked and whose signature was not.
// Nothing may be done because of it.
type Unverified struct {
	envelope *envelope
	digest   Digest
}

// Parse checks the form of a command. The error is a *Refusal: TooLarge,
// Malformed or BadAlgorithm.
func Parse(command []byte) (*Unverified, error) {
	if len(command) > MaxCommand {
		return nil, tooLarge()
	}
	e, err := openEnvelope(command, CommandType)
	if errors.Is(err, errAlgorithm) {
		return nil, refuse(BadAlgorithm, err.Error())
	}
	if err != nil {
		return nil, refuse(Malformed, err.Error())
	}
	return &Unverified{envelope: e, digest: sha256.Sum256(command)}, nil
}

func tooLarge() *Refusal {
	return refuse(TooLarge, fmt.Sprintf("more than %d bytes", MaxCommand))
}

// KeyID returns the id of the key that is said to have signed the command.
func (u *Unverified) KeyID() string { return u.envelope.keyID }

// Digest returns the SHA-256 of the command.
func (u *Unverified) Digest() Digest { return u.digest }

// verify checks the signature, and only then reads what was signed.
func (u *Unverified) verify(v cose.Verifier) (*payload, error) {
	// This compares the header's algorithm with the key's, too.
	body, err := u.envelope.verify(v)
	if err != nil {
		return nil, refuse(BadSignature, "")
	}
	var p payload
	if err := decodeExact(body, &p); err != nil {
		return nil, refuse(Malformed, "payload: "+err.Error())
	}
	if err := p.validate(); err != nil {
		return nil, refuse(Malformed, "payload: "+err.Error())
	}
	return &p, nil
}

// parsePlain reads an unsigned request. The error is a *Refusal.
func parsePlain(request []byte) (*plain, error) {
	if len(request) > MaxCommand {
		return nil, tooLarge()
	}
	var p plain
	if err := decodeExact(request, &p); err != nil {
		return nil, refuse(Malformed, err.Error())
	}
	if err := p.validate(); err != nil {
		return nil, refuse(Malformed, err.Error())
	}
	return &p, nil
}

// Command has passed every check that its op demands. Only a Mailbox makes
// one, and handlers take nothing else.
type Command struct {
	op     string
	args   any
	key    string
	door   string
	why    string
	digest Digest
	nonce  []byte // of a public request
	audit  uint64
	use    func() error // uses up the card's nonce
	after  []func()
}

// Op returns the name of the operation.
func (c *Command) Op() string { return c.op }

// Signed reports whether the command was signed; it is for all ops that are
// not public.
func (c *Command) Signed() bool { return c.key != "" }

// Key returns the id of the key that signed, or "" for a public request.
func (c *Command) Key() string { return c.key }

// Door returns the name of the door that it came through.
func (c *Command) Door() string { return c.door }

// Why returns who asks and why, in the requester's words.
func (c *Command) Why() string { return c.why }

// Digest returns the SHA-256 of the command as received.
func (c *Command) Digest() Digest { return c.digest }

// ClientNonce returns the requester's nonce of a public request, nil for
// none. It must not be changed.
func (c *Command) ClientNonce() []byte { return c.nonce }

// AuditIndex returns the index of the audit record of the command's
// acceptance; 0 for a public request.
func (c *Command) AuditIndex() uint64 { return c.audit }

// AfterReceipt calls f once the receipt of a signed command was sent, or could
// not be. It is for ops like a reboot, after which nothing can be sent.
func (c *Command) AfterReceipt(f func()) { c.after = append(c.after, f) }
