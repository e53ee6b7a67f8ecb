// SPDX-License-Identifier: Apache-2.0

package evidence

import (
	"crypto/ecdsa"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"strings"
	"text/tabwriter"

	"github.com/davit-dpu/davit/firmware/eventlog"
)

// ErrNotTrusted: at least one claim failed.
var ErrNotTrusted = errors.New("evidence does not support what was expected")

// Verdict is the outcome for one claim.
type Verdict string

// The verdicts.
const (
	Passed Verdict = "passed"
	Failed Verdict = "failed"
	// Exempted: it failed, and the expectations say by name that this is accepted.
	Exempted Verdict = "exempted"
)

// Claim is one thing that was looked at; the package comment lists them.
type Claim struct {
	Name     string  `json:"name"`
	Verdict  Verdict `json:"verdict"`
	Expected string  `json:"expected"`
	Seen     string  `json:"seen"`
	// Reason says why the claim did not pass.
	Reason string `json:"reason,omitempty"`
}

// Event is an event of either log. Logged content is as trustworthy as
// Replayed and DataHashed say.
type Event struct {
	// Log is "firmware" or "card".
	Log string `json:"log"`
	PCR uint32 `json:"pcr"`
	// Type is never verified.
	Type string `json:"type"`
	// Digest is of SHA-256, in hexadecimal.
	Digest string `json:"digest"`
	// Replayed: the logs give the quoted value of this PCR, so the digest is
	// one that was extended, in this order.
	Replayed bool `json:"replayed"`
	// DataHashed: the data hashes to the digest.
	DataHashed bool `json:"dataHashed"`
	// Measured is what the card says it measured; nil for firmware events.
	Measured *Measured `json:"measured,omitempty"`
	// Data is the event's data as logged.
	Data []byte `json:"data,omitempty"`
}

// Measured is the content of one of the card's own events.
type Measured struct {
	Kind  string `json:"kind"`
	Items []Item `json:"items"`
}

// Item is one thing that the card measured.
type Item struct {
	Name string `json:"name"`
	Size uint64 `json:"size"`
	// Digest is the SHA-256 of the content, in hexadecimal.
	Digest string `json:"sha256"`
}

// Register is one PCR of the SHA-256 bank, values in hexadecimal.
type Register struct {
	PCR      int    `json:"pcr"`
	Quoted   string `json:"quoted"`
	Replayed string `json:"replayed"`
}

// Report is the outcome of an appraisal.
type Report struct {
	// Passed: every claim passed or was exempted.
	Passed bool `json:"passed"`
	// CardID and AttestationKey are what the document says of itself, in
	// hexadecimal: the id of the endorsement key, and the name of the
	// attestation key. They are proved only if their claims passed.
	CardID         string     `json:"cardId,omitempty"`
	AttestationKey string     `json:"attestationKey,omitempty"`
	Claims         []Claim    `json:"claims"`
	Registers      []Register `json:"registers,omitempty"`
	Events         []Event    `json:"events,omitempty"`
	// BootReport is as the card gave it.
	BootReport json.RawMessage `json:"bootReport,omitempty"`

	verified *Verified
}

// Verified is what a card proved. There is no way to get one but from a
// report that passed.
type Verified struct {
	// CardID is the SHA-256 of the endorsement key's public area. If
	// card.identity was exempted, it is only what the card says.
	CardID [32]byte
	// ReceiptKey verifies the card's receipts; nil if receipt.key was exempted.
	ReceiptKey *ecdsa.PublicKey
	// PCRs are the quoted values of the SHA-256 bank.
	PCRs eventlog.PCRs
}

// Verified returns what was proved, or [ErrNotTrusted] with the names of the
// claims that failed, and why.
func (r Report) Verified() (Verified, error) {
	if r.verified == nil {
		return Verified{}, fmt.Errorf("%w: failed: %s", ErrNotTrusted, strings.Join(r.failures(), ", "))
	}
	return *r.verified, nil
}

// failures are the names of claims that failed, each with its reason.
func (r Report) failures() []string {
	var out []string
	for _, c := range r.Claims {
		if c.Verdict == Failed {
			out = append(out, fmt.Sprintf("%s (%s)", c.Name, printable(c.Reason)))
		}
	}
	return out
}

func (r Report) names(v Verdict) []string {
	var out []string
	for _, c := range r.Claims {
		if c.Verdict == v {
			out = append(out, c.Name)
		}
	}
	return out
}

// shown is how much of a value the table prints.
const shown = 24

// WriteTable prints the claims for people, one a line, and the overall verdict.
func (r Report) WriteTable(w io.Writer) error {
	t := tabwriter.NewWriter(w, 0, 0, 2, ' ', 0)
	fmt.Fprintln(t, "CLAIM\tVERDICT\tEXPECTED\tSEEN\tREASON")
	for _, c := range r.Claims {
		fmt.Fprintf(t, "%s\t%s\t%s\t%s\t%s\n", c.Name, c.Verdict, short(c.Expected), short(c.Seen), printable(c.Reason))
	}
	if err := t.Flush(); err != nil {
		return fmt.Errorf("print report: %w", err)
	}
	_, err := fmt.Fprintln(w, r.summary())
	return err
}

// WriteEvents prints the joined event log for people, one event a line.
func (r Report) WriteEvents(w io.Writer) error {
	t := tabwriter.NewWriter(w, 0, 0, 2, ' ', 0)
	fmt.Fprintln(t, "PCR\tLOG\tREPLAYED\tDATA\tTYPE\tDIGEST\tMEASURED")
	for _, e := range r.Events {
		data := "unverified"
		if e.DataHashed && e.Replayed {
			data = "verified"
		}
		fmt.Fprintf(t, "%d\t%s\t%v\t%s\t%s\t%s\t%s\n", e.PCR, e.Log, e.Replayed, data, e.Type, short(e.Digest), e.Measured.short())
	}
	if err := t.Flush(); err != nil {
		return fmt.Errorf("print events: %w", err)
	}
	return nil
}

func (r Report) summary() string {
	failed, exempted := r.names(Failed), r.names(Exempted)
	switch {
	case !r.Passed:
		return fmt.Sprintf("FAILED: %d of %d claims: %s", len(failed), len(r.Claims), strings.Join(failed, ", "))
	case len(exempted) > 0:
		return fmt.Sprintf("passed, with %d claims exempted: %s", len(exempted), strings.Join(exempted, ", "))
	}
	return fmt.Sprintf("passed: all %d claims", len(r.Claims))
}

func (m *Measured) short() string {
	if m == nil || len(m.Items) == 0 {
		return ""
	}
	out := fmt.Sprintf("%s %s", m.Kind, m.Items[0].Name)
	if n := len(m.Items) - 1; n > 0 {
		out += fmt.Sprintf(" and %d more", n)
	}
	return printable(out)
}

func short(s string) string {
	if s = printable(s); len(s) > shown+1 && isHex(s) {
		return s[:shown] + "…"
	}
	return s
}

func isHex(s string) bool { return strings.Trim(s, "0123456789abcdef") == "" }

// printable takes out what could move a terminal's cursor: names in a log are
// whatever somebody wrote.
func printable(s string) string {
	return strings.Map(func(r rune) rune {
		if r < ' ' || (r >= 0x7f && r < 0xa0) || r == '\u2028' || r == '\u2029' || (r >= '\u202a' && r <= '\u202e') || (r >= '\u2066' && r <= '\u2069') {
			return '?'
		}
		return r
	}, s)
}
