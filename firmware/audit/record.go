// SPDX-License-Identifier: Apache-2.0

package audit

import (
	"bytes"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"strings"
	"time"
	"unicode/utf8"

	"github.com/fxamacker/cbor/v2"
)

// Kind says what a record is about.
type Kind string

// Kinds of records. KindSegment, KindTorn and KindOpen are written by the log itself.
const (
	KindSegment  Kind = "segment"  // first record of a segment; Ref: oldest record kept
	KindTorn     Kind = "torn"     // a power cut tore the record that was being written; Count: bytes, Command: their SHA-256
	KindOpen     Kind = "open"     // the log was opened; Count: commands without an outcome, Reason names them
	KindAccepted Kind = "accepted" // a command passed every check and is about to run
	KindDone     Kind = "done"     // its outcome; Ref: index of the accepted record
	KindRefused  Kind = "refused"  // a command was refused and not run
	KindPublic   Kind = "public"   // an unsigned read-only request was answered
	KindSummary  Kind = "summary"  // Count unauthenticated requests beyond the budget; Command: SHA-256 over their digests in order
)

// Limits of a record. Longer texts are clipped by Append, visibly.
const (
	MaxBody   = 4096 // bytes of an encoded record
	maxName   = 128  // bytes of op, key id, door and code
	maxReason = 1024 // bytes of the reason
)

const version = 1

// Digest is a SHA-256 hash.
type Digest [sha256.Size]byte

// String gives the digest in hexadecimal.
func (d Digest) String() string { return hex.EncodeToString(d[:]) }

// IsZero reports whether the digest is unset.
func (d Digest) IsZero() bool { return d == Digest{} }

// Entry is what the caller of Append gives; empty fields are left out.
type Entry struct {
	Time    time.Time // kept with millisecond precision, UTC
	Kind    Kind
	Command Digest // SHA-256 of the command's bytes as received
	Op      string
	Key     string // id of the key that signed the command
	Door    string
	Code    string // refusal code, or the outcome
	Reason  string
	Receipt Digest // SHA-256 of the receipt's bytes as sent
	Ref     uint64
	Count   uint64
}

// Record is an Entry with its place in the chain.
type Record struct {
	Index uint64 // from 1, without gaps
	Prev  Digest // hash of the record before
	Entry
}

// wire is the CBOR form of a Record. Fields are never renumbered or reused.
type wire struct {
	Version uint64 `cbor:"1,keyasint"`
	Index   uint64 `cbor:"2,keyasint"`
	Prev    []byte `cbor:"3,keyasint"`
	Time    int64  `cbor:"4,keyasint"`
	Kind    string `cbor:"5,keyasint"`
	Command []byte `cbor:"6,keyasint,omitempty"`
	Op      string `cbor:"7,keyasint,omitempty"`
	Key     string `cbor:"8,keyasint,omitempty"`
	Door    string `cbor:"9,keyasint,omitempty"`
	Code    string `cbor:"10,keyasint,omitempty"`
	Reason  string `cbor:"11,keyasint,omitempty"`
	Receipt []byte `cbor:"12,keyasint,omitempty"`
	Ref     uint64 `cbor:"13,keyasint,omitempty"`
	Count   uint64 `cbor:"14,keyasint,omitempty"`
}

// codec holds the two CBOR modes. It is made where it is needed, once per log
// or verification, so that the package has no start-up code.
type codec struct {
	enc cbor.EncMode
	dec cbor.DecMode
}

func newCodec() (codec, error) {
	enc, err := cbor.CoreDetEncOptions().EncMode()
	if err != nil {
		return codec{}, fmt.Errorf("prepare record encoder: %w", err)
	}
	dec, err := cbor.DecOptions{
		DupMapKey:         cbor.DupMapKeyEnforcedAPF,
		IndefLength:       cbor.IndefLengthForbidden,
		TagsMd:            cbor.TagsForbidden,
		ExtraReturnErrors: cbor.ExtraDecErrorUnknownField,
		MaxNestedLevels:   4,
		MaxArrayElements:  16,
		MaxMapPairs:       32,
	}.DecMode()
	if err != nil {
		return codec{}, fmt.Errorf("prepare record decoder: %w", err)
	}
	return codec{enc: enc, dec: dec}, nil
}

func (c codec) encode(r Record) ([]byte, error) {
	body, err := c.enc.Marshal(wire{
		Version: version, Index: r.Index, Prev: r.Prev[:], Time: r.Time.UnixMilli(), Kind: string(r.Kind),
		Command: optional(r.Command), Op: r.Op, Key: r.Key, Door: r.Door, Code: r.Code, Reason: r.Reason,
		Receipt: optional(r.Receipt), Ref: r.Ref, Count: r.Count,
	})
	if err != nil {
		return nil, fmt.Errorf("encode record %d: %w", r.Index, err)
	}
	if len(body) > MaxBody {
		return nil, fmt.Errorf("encode record %d: %d bytes, more than %d", r.Index, len(body), MaxBody)
	}
	return body, nil
}

// decode accepts exactly what encode produces: whatever decodes but encodes
// differently is refused, so there is one form of each record.
func (c codec) decode(body []byte) (Record, error) {
	var w wire
	if err := c.dec.Unmarshal(body, &w); err != nil {
		return Record{}, fmt.Errorf("decode record: %w", err)
	}
	if w.Version != version {
		return Record{}, fmt.Errorf("decode record: version %d, this program knows %d", w.Version, version)
	}
	r := Record{Index: w.Index, Entry: Entry{
		Time: time.UnixMilli(w.Time).UTC(), Kind: Kind(w.Kind), Op: w.Op, Key: w.Key, Door: w.Door,
		Code: w.Code, Reason: w.Reason, Ref: w.Ref, Count: w.Count,
	}}
	err := errors.Join(digest("hash of the record before", w.Prev, &r.Prev, true),
		digest("command digest", w.Command, &r.Command, false),
		digest("receipt digest", w.Receipt, &r.Receipt, false))
	if err != nil {
		return Record{}, fmt.Errorf("decode record %d: %w", w.Index, err)
	}
	if r.Kind == "" || r.Index == 0 {
		return Record{}, fmt.Errorf("decode record %d: no kind or no index", w.Index)
	}
	again, err := c.encode(r)
	if err != nil {
		return Record{}, err
	}
	if !bytes.Equal(again, body) {
		return Record{}, fmt.Errorf("decode record %d: not in deterministic form", w.Index)
	}
	return r, nil
}

func optional(d Digest) []byte {
	if d.IsZero() {
		return nil
	}
	return d[:]
}

func digest(what string, from []byte, to *Digest, required bool) error {
	if len(from) == 0 && !required {
		return nil
	}
	if len(from) != len(to) {
		return fmt.Errorf("%s has %d bytes, want %d", what, len(from), len(to))
	}
	copy(to[:], from)
	return nil
}

// clip makes an entry that always fits: texts may come from hostile requests,
// and no request may be able to keep its own record from being written.
func (e Entry) clip() Entry {
	for _, s := range []*string{&e.Op, &e.Key, &e.Door, &e.Code} {
		*s = clipText(*s, maxName)
	}
	e.Reason = clipText(e.Reason, maxReason)
	return e
}

func clipText(s string, limit int) string {
	s = strings.ToValidUTF8(s, "�")
	if len(s) <= limit {
		return s
	}
	const mark = "…"
	cut := limit - len(mark)
	for cut > 0 && !utf8.RuneStart(s[cut]) {
		cut--
	}
	return s[:cut] + mark
}
