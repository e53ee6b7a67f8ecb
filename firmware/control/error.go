// SPDX-License-Identifier: Apache-2.0

package control

import (
	"errors"
	"fmt"
)

// Decisions of either end. vcard's arrive as *Error, which matches them with
// errors.Is.
var (
	ErrClosed    = errors.New("control connection is closed")       // this side closed it, or it ended
	ErrProtocol  = errors.New("control protocol violation")         // the peer sent what it must not
	ErrVersion   = errors.New("no common control version")          // Hello failed
	ErrBusy      = errors.New("another controller is connected")    // and answers
	ErrInvalid   = errors.New("request is not valid")               // would never work
	ErrExists    = errors.New("exists already")                     // and is left as it is
	ErrNotFound  = errors.New("not found")                          // no such device, VMM, instance or door
	ErrNoHost    = errors.New("no host")                            // no bus session at present
	ErrConflict  = errors.New("conflicts with the present state")   // would work at another time
	ErrHost      = errors.New("the host refused or did not answer") // what the host said is in the text
	ErrCancelled = errors.New("request was cancelled")
	ErrInternal  = errors.New("vcard error")
)

// codes names each decision on the wire. Names are never reused.
var codes = []struct {
	code string
	err  error
}{
	{"version", ErrVersion},
	{"busy", ErrBusy},
	{"invalid", ErrInvalid},
	{"exists", ErrExists},
	{"not-found", ErrNotFound},
	{"no-host", ErrNoHost},
	{"conflict", ErrConflict},
	{"host", ErrHost},
	{"cancelled", ErrCancelled},
	{"internal", ErrInternal},
}

// Error is vcard's refusal of a request.
type Error struct {
	Code string `json:"code"` // one of a fixed set
	Text string `json:"text"` // at most MaxText printable characters
}

// Error gives the text and the decision.
func (e *Error) Error() string { return fmt.Sprintf("vcard: %s", e.Text) }

// Is matches the decision's sentinel.
func (e *Error) Is(target error) bool {
	for _, c := range codes {
		if c.code == e.Code {
			return c.err == target
		}
	}
	return false
}

func (e *Error) check() error {
	for _, c := range codes {
		if c.code == e.Code {
			return checkText("error text", e.Text, MaxText)
		}
	}
	return fmt.Errorf("error code %.20q is unknown", e.Code)
}

// wireError finds the decision in err; what is none of ours is internal.
func wireError(err error) *Error {
	e := &Error{Code: "internal", Text: Text(err.Error(), MaxText)}
	for _, c := range codes {
		if errors.Is(err, c.err) {
			e.Code = c.code
			break
		}
	}
	return e
}
