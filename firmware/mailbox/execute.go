// SPDX-License-Identifier: Apache-2.0

package mailbox

import (
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"runtime/debug"
	"strings"
	"unicode/utf8"

	"github.com/davit-dpu/davit/firmware/audit"
)

// maxResult bounds an op's result so that the receipt stays within MaxReceipt.
const maxResult = MaxReceipt - 8<<10

// maxReceiptText bounds the text of a receipt in bytes.
const maxReceiptText = 1024

// outcome is what came of an op.
type outcome struct {
	code   Code
	text   string
	result []byte
}

// answer executes a public request and makes its receipt.
func (m *Mailbox) answer(ctx context.Context, a *attempt, cmd *Command, op *Op) (Code, []byte, error) {
	free, err := m.public.take(ctx, a.door.Name)
	if err != nil {
		return m.refused(a, err)
	}
	defer free()
	out := m.run(ctx, cmd, op)
	index := m.open.add(a.entry(m.cfg.Now(), audit.KindPublic, out.code, out.text))
	receipt, err := m.receipt(a, out.code, out.text, out.result, index)
	return out.code, receipt, err
}

// execute takes the last checks of a signed command, those that change
// something, and then runs it:
//
//	slot → nonce used → "accepted" on the disk → run → receipt → "done" on the disk
//
// A power cut before "accepted" leaves a command that was not executed and
// whose nonce died with this process. A power cut after it leaves a record
// without an outcome, and the same dead nonce.
func (m *Mailbox) execute(ctx context.Context, a *attempt, cmd *Command, op *Op) (Code, []byte, error) {
	slots := m.running
	if op.Stream != nil {
		slots = m.streams // open consoles must not keep a stop command waiting
	}
	select {
	case slots <- struct{}{}:
		defer func() { <-slots }()
	default:
		return m.refused(a, refuse(Busy, "too many commands are being executed"))
	}
	if err := cmd.use(); err != nil {
		return m.refused(a, err)
	}
	index, err := m.cfg.Audit.Append(a.entry(m.cfg.Now(), audit.KindAccepted, Accepted, a.why))
	if err != nil {
		m.cfg.Log.Error("mailbox: record command; it is not executed", "op", cmd.op, "key", cmd.key, "err", err)
		return m.refused(a, refuse(AuditFailed, "the command could not be recorded and was not executed"))
	}
	cmd.audit = index
	m.cfg.Log.Info("mailbox: command", "op", cmd.op, "key", cmd.key, "door", cmd.door, "audit", index)
	var out outcome
	if op.Stream != nil {
		out = m.runStream(ctx, a, cmd, op)
	} else {
		out = m.run(ctx, cmd, op)
	}
	return m.finish(a, cmd, out)
}

// finish makes the receipt of an executed command and records both.
func (m *Mailbox) finish(a *attempt, cmd *Command, out outcome) (Code, []byte, error) {
	receipt, err := m.receipt(a, out.code, out.text, out.result, cmd.audit)
	entry := a.entry(m.cfg.Now(), audit.KindDone, out.code, out.text)
	entry.Ref = cmd.audit
	if err != nil {
		entry.Reason = strings.TrimSpace(entry.Reason + " (the receipt could not be signed)")
	} else {
		entry.Receipt = sha256.Sum256(receipt)
	}
	// The command has been executed: its receipt goes out even if the outcome
	// cannot be recorded. The next command will be refused then.
	if _, auditErr := m.cfg.Audit.Append(entry); auditErr != nil {
		m.cfg.Log.Error("mailbox: record outcome", "op", cmd.op, "audit", cmd.audit, "code", out.code, "err", auditErr)
	}
	m.cfg.Log.Info("mailbox: done", "op", cmd.op, "audit", cmd.audit, "code", out.code, "text", out.text)
	return out.code, receipt, err
}

// run calls the handler and encodes its result.
func (m *Mailbox) run(ctx context.Context, cmd *Command, op *Op) (out outcome) {
	defer m.recovered(cmd, &out)
	value, err := op.Handle(ctx, cmd)
	if err != nil {
		return failed(err)
	}
	if value == nil {
		return outcome{code: OK}
	}
	result, err := encode(value)
	if err == nil {
		err = resultDialect.check(result)
	}
	if err == nil && len(result) > maxResult {
		err = fmt.Errorf("it has %d bytes, more than %d", len(result), maxResult)
	}
	if err != nil {
		m.cfg.Log.Error("mailbox: encode result", "op", cmd.op, "err", err)
		return failed(fmt.Errorf("executed, but the result cannot be sent: %w", err))
	}
	return outcome{code: OK, result: result}
}

// runStream sends the accepted receipt and calls the stream handler.
func (m *Mailbox) runStream(ctx context.Context, a *attempt, cmd *Command, op *Op) (out outcome) {
	defer m.recovered(cmd, &out)
	receipt, err := m.receipt(a, Accepted, "", nil, cmd.audit)
	if err != nil {
		return failed(err)
	}
	if err := a.link.Receipt(receipt); err != nil {
		return failed(errors.New("the requester is gone"))
	}
	ctx, stream := a.link.Stream(ctx)
	if err := op.Stream(ctx, cmd, stream); err != nil {
		return failed(err)
	}
	return outcome{code: OK}
}

// recovered turns a panic in a handler, which is a bug, into a failed command:
// one op's bug must not take the card's only door away.
func (m *Mailbox) recovered(cmd *Command, out *outcome) {
	if p := recover(); p != nil {
		m.cfg.Log.Error("mailbox: panic in op", "op", cmd.op, "panic", p, "stack", string(debug.Stack()))
		*out = failed(errors.New("internal error"))
	}
}

func failed(err error) outcome { return outcome{code: Failed, text: clip(err.Error())} }

// clip bounds a text for a receipt.
func clip(s string) string {
	s = strings.ToValidUTF8(s, "�")
	if len(s) <= maxReceiptText {
		return s
	}
	cut := maxReceiptText
	for !utf8.RuneStart(s[cut]) {
		cut--
	}
	return s[:cut] + "…"
}
