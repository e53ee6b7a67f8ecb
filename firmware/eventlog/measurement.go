// SPDX-License-Identifier: Apache-2.0

package eventlog

import (
	"bytes"
	"encoding/binary"
	"fmt"
	"strings"

	"github.com/fxamacker/cbor/v2"
)

// Bounds of a [Measurement].
const (
	// MaxItems is the largest number of items in one measurement.
	MaxItems = 512
	// MaxName is the longest kind or item name, in bytes.
	MaxName = 512
)

// tagID is the taggedEventID of our events: "DAVT" in the log's byte order.
const tagID uint32 = 'D' | 'A'<<8 | 'V'<<16 | 'T'<<24

// brokenPrefix opens the data of the NoAction event by which a writer records
// that the log and the TPM have parted.
const brokenPrefix = "DavitBroken\x00"

// Item is one thing measured.
type Item struct {
	_ struct{} `cbor:",toarray"`
	// Name is a path or another name, UTF-8, up to MaxName bytes.
	Name string
	// Size is the content's length in bytes.
	Size uint64
	// Digest is the SHA-256 of the content.
	Digest [32]byte
}

// Measurement is what one event of the card says was measured: one kind of
// thing, and at least one item.
//
// As event data it is a TCG_PCClientTaggedEvent (PFP, "Tagged Event"):
//
//	u32 tag = "DAVT" | u32 size | deterministic CBOR {1: kind, 2: [[name, size, sha256], …]}
//
// and the event's digests are of all of these bytes, so that a replay vouches
// for the kind, the names and the content digests.
type Measurement struct {
	Kind  string `cbor:"1,keyasint"`
	Items []Item `cbor:"2,keyasint"`
}

// Event returns the event that records m in a PCR, with digests by algs.
func (m Measurement) Event(pcr int, algs ...Alg) (Event, error) {
	if err := m.check(); err != nil {
		return Event{}, err
	}
	body, err := encMode.Marshal(m)
	if err != nil {
		return Event{}, fmt.Errorf("encode measurement: %w", err)
	}
	data := binary.LittleEndian.AppendUint32(nil, tagID)
	data = binary.LittleEndian.AppendUint32(data, uint32(len(body)))
	data = append(data, body...)
	if len(data) > MaxEventData {
		return Event{}, fmt.Errorf("measurement of %d bytes: %w", len(data), ErrTooLarge)
	}
	return Event{PCR: uint32(pcr), Type: EventTag, Digests: DigestsOf(data, algs...), Data: data}, nil
}

// Measurement decodes an event that the card wrote. It refuses events whose
// data does not hash to their digests, and any encoding but the one that
// [Measurement.Event] makes ([ErrMalformed]). It is as trustworthy as a replay
// of the event's PCR.
func (e Event) Measurement() (Measurement, error) {
	m, err := e.measurement()
	if err != nil {
		return Measurement{}, fmt.Errorf("read measurement of pcr %d: %w", e.PCR, err)
	}
	return m, nil
}

func (e Event) measurement() (Measurement, error) {
	if e.Type != EventTag || len(e.Data) < 8 || binary.LittleEndian.Uint32(e.Data) != tagID {
		return Measurement{}, fmt.Errorf("event is not one of the card's: %w", ErrMalformed)
	}
	if !e.DataMatches() {
		return Measurement{}, fmt.Errorf("event data does not hash to the event's digest: %w", ErrMalformed)
	}
	body := e.Data[8:]
	if uint64(binary.LittleEndian.Uint32(e.Data[4:])) != uint64(len(body)) {
		return Measurement{}, fmt.Errorf("tagged event of wrong length: %w", ErrMalformed)
	}
	var m Measurement
	if err := decMode.Unmarshal(body, &m); err != nil {
		return Measurement{}, fmt.Errorf("%w: %w", ErrMalformed, err)
	}
	if err := m.check(); err != nil {
		return Measurement{}, err
	}
	if again, err := encMode.Marshal(m); err != nil || !bytes.Equal(again, body) {
		return Measurement{}, fmt.Errorf("encoding is not deterministic: %w", ErrMalformed)
	}
	return m, nil
}

func (m Measurement) check() error {
	if m.Kind == "" || len(m.Kind) > MaxName {
		return fmt.Errorf("kind of %d bytes: %w", len(m.Kind), ErrMalformed)
	}
	if len(m.Items) == 0 || len(m.Items) > MaxItems {
		return fmt.Errorf("%d items: %w", len(m.Items), ErrMalformed)
	}
	for _, it := range m.Items {
		if it.Name == "" || len(it.Name) > MaxName {
			return fmt.Errorf("item name of %d bytes: %w", len(it.Name), ErrMalformed)
		}
	}
	return nil
}

// BrokenEvent returns the event by which a writer records that it could not
// extend what it logged before. It is not extended itself and can be removed
// by whoever can write the log; the replay of such a log does not match anyway.
func BrokenEvent(pcr int, reason string, algs ...Alg) Event {
	e := Event{PCR: uint32(pcr), Type: NoAction, Data: []byte(brokenPrefix + strings.ToValidUTF8(reason, "?"))}
	for _, a := range algs {
		e.Digests = append(e.Digests, Digest{Alg: a, Sum: make([]byte, a.Size())})
	}
	return e
}

// Broken returns the reason if e is a [BrokenEvent], otherwise "" and false.
func (e Event) Broken() (string, bool) {
	if e.Type != NoAction {
		return "", false
	}
	reason, ok := bytes.CutPrefix(e.Data, []byte(brokenPrefix))
	return string(reason), ok
}

var (
	encMode = mustMode(cbor.CoreDetEncOptions().EncMode())
	decMode = mustMode(cbor.DecOptions{
		DupMapKey:         cbor.DupMapKeyEnforcedAPF,
		IndefLength:       cbor.IndefLengthForbidden,
		TagsMd:            cbor.TagsForbidden,
		ExtraReturnErrors: cbor.ExtraDecErrorUnknownField,
		MaxNestedLevels:   4,
		MaxArrayElements:  MaxItems,
		MaxMapPairs:       16,
	}.DecMode())
)

// mustMode unwraps a codec of constant options, which cannot fail but by a
// programming error that every test would show.
func mustMode[M any](mode M, err error) M {
	if err != nil {
		panic(fmt.Sprintf("eventlog: codec options: %v", err))
	}
	return mode
}
