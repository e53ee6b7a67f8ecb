// SPDX-License-Identifier: Apache-2.0

package mailbox

import (
	"context"
	"errors"
	"fmt"
	"io"
	"time"
)

// Stream carries bytes between a running op and its requester. Read returns
// io.EOF when the requester has ended its side; Write waits for a slow
// requester. The context that the op gets is cancelled when the connection is
// lost.
type Stream interface {
	io.Reader
	io.Writer
}

// Op is one operation of the card. Exactly one of Handle and Stream is set.
// Ops are made with Handle and HandleStream, which decode the arguments.
type Op struct {
	Name   string
	Public bool // may be requested unsigned; such an op changes nothing and reveals no secret

	// Handle executes the command. Its result is encoded into the receipt; its
	// error makes the receipt say Failed, with the error's text.
	Handle func(ctx context.Context, c *Command) (any, error)

	// Stream executes the command with a stream to the requester. The last
	// receipt is sent when it returns.
	Stream func(ctx context.Context, c *Command, s Stream) error

	// args decodes arguments; an error refuses the command. Nil: there are none.
	args func(raw []byte) (any, error)
}

// Validator is implemented by arguments that have more rules than their types.
type Validator interface{ Validate() error }

// Handle makes an op whose arguments are a T, usually a struct. They are
// decoded strictly, before the command is accepted: unknown and repeated
// fields, other types and null are refused with BadArgs, and so is what the
// Validate method of T or *T, if there is one, returns an error for. Fields
// that are absent are left zero.
func Handle[T any](name string, do func(ctx context.Context, c *Command, args T) (any, error)) Op {
	return Op{
		Name: name,
		args: decodeArgs[T],
		Handle: func(ctx context.Context, c *Command) (any, error) {
			args, ok := c.args.(T)
			if !ok {
				return nil, fmt.Errorf("arguments are a %T", c.args)
			}
			return do(ctx, c, args)
		},
	}
}

// HandleStream is Handle for an op with a stream.
func HandleStream[T any](name string, do func(ctx context.Context, c *Command, args T, s Stream) error) Op {
	return Op{
		Name: name,
		args: decodeArgs[T],
		Stream: func(ctx context.Context, c *Command, s Stream) error {
			args, ok := c.args.(T)
			if !ok {
				return fmt.Errorf("arguments are a %T", c.args)
			}
			return do(ctx, c, args, s)
		},
	}
}

// AsPublic returns the op as one that may be requested unsigned.
func (o Op) AsPublic() Op {
	o.Public = true
	return o
}

func decodeArgs[T any](raw []byte) (any, error) {
	var args T
	if len(raw) > 0 {
		if err := decodeStrict(raw, &args); err != nil {
			return nil, err
		}
	}
	if v, ok := any(&args).(Validator); ok { // the method set of *T holds that of T
		if err := v.Validate(); err != nil {
			return nil, err
		}
	}
	return args, nil
}

func (o *Op) decode(raw []byte) (any, error) {
	if o.args != nil {
		return o.args(raw)
	}
	if len(raw) > 0 && string(raw) != "\xa0" {
		return nil, errors.New("the op takes none")
	}
	return nil, nil
}

// opTable builds the table of ops by name.
func opTable(ops []Op) (map[string]*Op, error) {
	table := make(map[string]*Op, len(ops))
	for i := range ops {
		op := ops[i]
		switch {
		case !validOp(op.Name):
			return nil, fmt.Errorf("op %q: want 1 to %d characters a-z, 0-9, dot and dash", op.Name, maxOp)
		case table[op.Name] != nil:
			return nil, fmt.Errorf("op %q is given twice", op.Name)
		case (op.Handle == nil) == (op.Stream == nil):
			return nil, fmt.Errorf("op %q: want either a handler or a stream handler", op.Name)
		case op.Public && op.Stream != nil:
			return nil, fmt.Errorf("op %q: a stream is never public", op.Name)
		}
		table[op.Name] = &op
	}
	return table, nil
}

// ChallengeOp is the public op that every mailbox has: it issues a nonce.
const ChallengeOp = "challenge"

// Challenge is the result of ChallengeOp: all that a requester needs to know
// to make a command for this card.
type Challenge struct {
	Card      string    `cbor:"card" json:"card"`
	Nonce     []byte    `cbor:"nonce" json:"nonce"`
	Expires   time.Time `cbor:"expires" json:"expires"`
	Time      time.Time `cbor:"time" json:"time"` // the card's clock, which validity windows are checked against
	Lifecycle string    `cbor:"lifecycle" json:"lifecycle"`
}

func (m *Mailbox) challengeOp() Op {
	return Handle(ChallengeOp, func(context.Context, *Command, struct{}) (any, error) {
		now := m.cfg.Now()
		return Challenge{
			Card: m.cfg.Card, Nonce: m.nonces.issue(), Expires: now.Add(m.cfg.NonceTTL), Time: now,
			Lifecycle: string(m.cfg.Lifecycle),
		}, nil
	}).AsPublic()
}
