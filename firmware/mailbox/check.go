// SPDX-License-Identifier: Apache-2.0

package mailbox

import (
	"context"
	"crypto/hmac"
	"errors"
	"sync"
)

// check takes a message through all checks that change nothing, in the order
// that docs/mailbox.md gives. It returns a command and its op, or a *Refusal.
func (m *Mailbox) check(a *attempt, message []byte) (*Command, *Op, error) {
	if len(message) > MaxCommand {
		return nil, nil, tooLarge()
	}
	if len(message) > 0 && message[0] == tagSign1 {
		return m.checkSigned(a, message)
	}
	return m.checkPlain(a, message)
}

// checkSigned checks a command. Until the signature is verified, nothing but
// the envelope is looked at, and no answer depends on the policy.
func (m *Mailbox) checkSigned(a *attempt, message []byte) (*Command, *Op, error) {
	u, err := Parse(message)
	if err != nil {
		return nil, nil, err
	}
	a.claim = u.KeyID()
	key, known := m.cfg.Keyring.keys[u.KeyID()]
	if !known {
		return nil, nil, refuse(UnknownKey, "")
	}
	p, err := u.verify(key.verifier)
	if err != nil {
		var r *Refusal
		if errors.As(err, &r) && r.Code != BadSignature {
			a.key = u.KeyID() // well signed, badly made
		}
		return nil, nil, err
	}
	a.key, a.op, a.why = u.KeyID(), p.Op, why(p.Requester, p.Reason)
	if err := m.checkPlace(p); err != nil {
		return nil, nil, err
	}
	if err := m.nonces.check(p.Nonce); err != nil {
		return nil, nil, err
	}
	if a.link != nil {
		a.link.Authenticated()
	}
	op, err := m.allowedOp(key, p.Op)
	if err != nil {
		return nil, nil, err
	}
	cmd, err := m.newCommand(a, op, p.Args)
	if err != nil {
		return nil, nil, err
	}
	if op.Stream != nil && a.link == nil {
		return nil, nil, refuse(NoStream, "")
	}
	cmd.use = func() error { return m.nonces.use(p.Nonce) }
	return cmd, op, nil
}

// allowedOp finds the op, if the key may do it or anybody may. Ops that are not
// there are not allowed either, unless a role's pattern covers them.
func (m *Mailbox) allowedOp(key ringKey, name string) (*Op, error) {
	op := m.ops[name]
	public := op != nil && op.Public
	if !public && !key.allows(name) {
		return nil, refuse(NotAllowed, "no role of this key allows "+name)
	}
	if op == nil {
		return nil, refuse(UnknownOp, "")
	}
	return op, nil
}

// checkPlace checks that the command is for here and now.
func (m *Mailbox) checkPlace(p *payload) error {
	// The identity is no secret; comparing in constant time costs nothing.
	if !hmac.Equal([]byte(p.Card), []byte(m.cfg.Card)) {
		return refuse(WrongCard, "this is card "+m.cfg.Card)
	}
	if p.Lifecycle != string(m.cfg.Lifecycle) {
		return refuse(WrongLifecycle, "the card is in "+string(m.cfg.Lifecycle))
	}
	now := m.cfg.Now().Unix()
	if now < p.NotBefore {
		return refuse(NotYetValid, "")
	}
	if now > p.NotAfter {
		return refuse(Expired, "")
	}
	return nil
}

// checkPlain checks an unsigned request. An op that is not public is refused
// without telling whether there is one of that name.
func (m *Mailbox) checkPlain(a *attempt, message []byte) (*Command, *Op, error) {
	p, err := parsePlain(message)
	if err != nil {
		return nil, nil, err
	}
	a.op, a.nonce = p.Op, p.Nonce
	op := m.ops[p.Op]
	if op == nil || !op.Public {
		return nil, nil, refuse(Unsigned, "the op needs a signed command")
	}
	if p.Card != "" && p.Card != m.cfg.Card {
		return nil, nil, refuse(WrongCard, "this is card "+m.cfg.Card)
	}
	cmd, err := m.newCommand(a, op, p.Args)
	if err != nil {
		return nil, nil, err
	}
	cmd.nonce = p.Nonce
	return cmd, op, nil
}

// newCommand decodes the arguments.
func (m *Mailbox) newCommand(a *attempt, op *Op, raw []byte) (*Command, error) {
	args, err := op.decode(raw)
	if err != nil {
		return nil, refuse(BadArgs, clip(err.Error()))
	}
	return &Command{
		op: op.Name, args: args, key: a.key, door: a.door.Name, digest: a.digest, why: a.why,
	}, nil
}

func why(requester, reason string) string {
	if requester == "" || reason == "" {
		return requester + reason
	}
	return requester + ": " + reason
}

// doorSlots bounds how many public requests each door may have executed at the
// same time, so that one door's peers cannot keep another's waiting.
type doorSlots struct {
	limit int

	mu    sync.Mutex
	doors map[string]chan struct{} // guarded by mu
}

// take waits for a slot and returns the function that gives it back.
func (d *doorSlots) take(ctx context.Context, door string) (func(), error) {
	d.mu.Lock()
	slots, ok := d.doors[door]
	if !ok {
		if d.doors == nil {
			d.doors = map[string]chan struct{}{}
		}
		slots = make(chan struct{}, d.limit)
		d.doors[door] = slots
	}
	d.mu.Unlock()
	select {
	case slots <- struct{}{}:
		return func() { <-slots }, nil
	case <-ctx.Done():
		return nil, refuse(Busy, "the card is shutting down")
	}
}
