// SPDX-License-Identifier: Apache-2.0

package mailbox

import "errors"

// Code is the outcome that a receipt states. The names are part of the
// protocol: they are never renamed and never get another meaning.
type Code string

// Outcomes.
const (
	OK       Code = "ok"       // executed; the receipt holds the result
	Accepted Code = "accepted" // a stream has begun; another receipt follows it
	Failed   Code = "failed"   // executed, and the operation reported an error
)

// Refusals: nothing was executed. They are listed in the order of the checks.
const (
	TooLarge       Code = "too-large"             // more than MaxCommand bytes
	Malformed      Code = "malformed"             // not exactly the form that this protocol has
	BadAlgorithm   Code = "unsupported-algorithm" // neither EdDSA, ES256 nor ES384
	UnknownKey     Code = "unknown-key"           // no key with this id in the keyring
	BadSignature   Code = "bad-signature"         // not signed by that key
	WrongCard      Code = "wrong-card"            // meant for another card
	WrongLifecycle Code = "wrong-lifecycle"       // meant for another lifecycle
	NotYetValid    Code = "not-yet-valid"         // before not-before
	Expired        Code = "expired"               // after not-after
	NoSuchNonce    Code = "no-such-nonce"         // not issued by this card since it started, or too old
	Replayed       Code = "replayed"              // the nonce was used by an earlier command
	NotAllowed     Code = "not-allowed"           // no role of the key allows the op
	UnknownOp      Code = "unknown-op"            // this card has no such op
	BadArgs        Code = "bad-args"              // the op does not take these arguments
	NoStream       Code = "no-stream"             // the op needs a stream and this door has none
	Busy           Code = "busy"                  // too much at once; may be sent again as it is
	AuditFailed    Code = "audit-failed"          // the record could not be kept, so nothing was done
	Unsigned       Code = "unsigned"              // an unsigned request for an op that is not public
)

// Codes lists every code, refusals in the order in which they are checked.
func Codes() []Code {
	return []Code{
		OK, Accepted, Failed, TooLarge, Malformed, BadAlgorithm, UnknownKey, BadSignature, WrongCard, WrongLifecycle,
		NotYetValid, Expired, NoSuchNonce, Replayed, NotAllowed, UnknownOp, BadArgs, NoStream, Busy, AuditFailed, Unsigned,
	}
}

// Refused reports whether the code says that nothing was executed.
func (c Code) Refused() bool { return c != OK && c != Accepted && c != Failed }

// Refusal is the error of a command that was not executed.
type Refusal struct {
	Code Code
	Text string // for people; tells nothing that the sender may not know
}

// Error implements error.
func (r *Refusal) Error() string {
	if r.Text == "" {
		return string(r.Code)
	}
	return string(r.Code) + ": " + r.Text
}

// Is makes errors.Is(err, &Refusal{Code: Expired}) compare codes only.
func (r *Refusal) Is(target error) bool {
	var other *Refusal
	return errors.As(target, &other) && other.Code == r.Code && (other.Text == "" || other.Text == r.Text)
}

func refuse(code Code, text string) *Refusal { return &Refusal{Code: code, Text: text} }
