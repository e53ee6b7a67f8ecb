// SPDX-License-Identifier: Apache-2.0

package eventlog

import (
	"bytes"
	"crypto/subtle"
	"errors"
	"fmt"
	"slices"
)

// Bounds of a log that is parsed or written. The largest firmware logs seen in
// the field are below 100 KiB, their largest event a forbidden-signature
// database of some 25 KiB.
const (
	// MaxSize is the largest encoded log, in bytes.
	MaxSize = 1 << 20
	// MaxEventData is the largest event data, in bytes.
	MaxEventData = 128 << 10
	// MaxEvents is the largest number of events.
	MaxEvents = 8192
	// MaxAlgs is the largest number of digest algorithms.
	MaxAlgs = 8
	// NumPCRs is the number of PCRs of a PC Client TPM: 0 to 23.
	NumPCRs = 24
)

// Errors of parsing and building logs.
var (
	// ErrTruncated: the log ends within an event.
	ErrTruncated = errors.New("event log is truncated")
	// ErrMalformed: the bytes are not a crypto-agile event log.
	ErrMalformed = errors.New("event log is malformed")
	// ErrTooLarge: a bound of this package is exceeded.
	ErrTooLarge = errors.New("event log exceeds its bounds")
	// ErrNoBank: the log has no digests of the algorithm asked for.
	ErrNoBank = errors.New("event log has no digests of this algorithm")
)

// EventType is a TCG event type (PFP, table "Events"). It is not verified by
// replay.
type EventType uint32

// The event types that this package gives a meaning to.
const (
	// NoAction events are not extended.
	NoAction EventType = 0x00000003
	// EventTag holds a TCG_PCClientTaggedEvent; ours are of this type.
	EventTag EventType = 0x00000006
)

// Event is one record of the log.
type Event struct {
	// PCR is the register extended, 0 to 23; anything for NoAction events.
	PCR uint32
	// Type is not verified by replay.
	Type EventType
	// Digests has one digest for each algorithm of the log, in its order.
	Digests []Digest
	// Data is verified by replay only if DataMatches.
	Data []byte
}

// Digest returns the event's digest by alg, nil if it has none.
func (e Event) Digest(alg Alg) []byte {
	for _, d := range e.Digests {
		if d.Alg == alg {
			return d.Sum
		}
	}
	return nil
}

// DataMatches reports whether the event was extended and its data hashes to
// its digests, each that can be computed here, and at least one. Then a
// matching replay vouches for the data too.
func (e Event) DataMatches() bool {
	if e.Type == NoAction {
		return false
	}
	checked := false
	for _, d := range e.Digests {
		if !d.Alg.Known() {
			continue
		}
		if subtle.ConstantTimeCompare(d.Alg.Sum(e.Data), d.Sum) != 1 {
			return false
		}
		checked = true
	}
	return checked
}

func (e Event) clone() Event {
	e.Data = bytes.Clone(e.Data)
	e.Digests = slices.Clone(e.Digests)
	for i := range e.Digests {
		e.Digests[i].Sum = bytes.Clone(e.Digests[i].Sum)
	}
	return e
}

// Log is a parsed log or one under construction. Its content is unverified
// until a replay of it matches a quote. It is not safe for concurrent use.
type Log struct {
	banks  []bank
	events []Event
	size   int
}

// bank is a digest algorithm with its length as the Spec ID event names it.
type bank struct {
	alg  Alg
	size int
}

// New returns an empty log for the given algorithms, at least one, all
// [Alg.Known] and distinct.
func New(algs ...Alg) (*Log, error) {
	if len(algs) == 0 || len(algs) > MaxAlgs {
		return nil, fmt.Errorf("new event log with %d algorithms: %w", len(algs), ErrTooLarge)
	}
	l := &Log{}
	for _, a := range algs {
		if !a.Known() || l.has(a) {
			return nil, fmt.Errorf("new event log with %v: unknown or repeated: %w", a, ErrNoBank)
		}
		l.banks = append(l.banks, bank{a, a.Size()})
	}
	l.size = len(l.header())
	return l, nil
}

// Algs returns the log's digest algorithms in order.
func (l *Log) Algs() []Alg {
	out := make([]Alg, len(l.banks))
	for i, b := range l.banks {
		out[i] = b.alg
	}
	return out
}

// Len returns the number of events, the Spec ID event not counted.
func (l *Log) Len() int { return len(l.events) }

// Events returns a copy of the events, the Spec ID event not included.
func (l *Log) Events() []Event {
	out := make([]Event, len(l.events))
	for i, e := range l.events {
		out[i] = e.clone()
	}
	return out
}

// Append adds an event. It must have exactly one digest for each algorithm of
// the log, in the log's order.
func (l *Log) Append(e Event) error {
	if err := l.check(e); err != nil {
		return fmt.Errorf("append event: %w", err)
	}
	size := l.size + len(encodeEvent(nil, e))
	if size > MaxSize || len(l.events) >= MaxEvents {
		return fmt.Errorf("append event %d: %w", len(l.events), ErrTooLarge)
	}
	l.events = append(l.events, e.clone())
	l.size = size
	return nil
}

func (l *Log) check(e Event) error {
	if e.PCR >= NumPCRs && e.Type != NoAction {
		return fmt.Errorf("pcr %d: %w", e.PCR, ErrMalformed)
	}
	if len(e.Data) > MaxEventData {
		return fmt.Errorf("%d bytes of event data: %w", len(e.Data), ErrTooLarge)
	}
	if len(e.Digests) != len(l.banks) {
		return fmt.Errorf("%d digests, want %d: %w", len(e.Digests), len(l.banks), ErrMalformed)
	}
	for i, d := range e.Digests {
		if d.Alg != l.banks[i].alg || len(d.Sum) != l.banks[i].size {
			return fmt.Errorf("digest %d is %v of %d bytes: %w", i, d.Alg, len(d.Sum), ErrMalformed)
		}
	}
	return nil
}

func (l *Log) has(a Alg) bool {
	return slices.ContainsFunc(l.banks, func(b bank) bool { return b.alg == a })
}
