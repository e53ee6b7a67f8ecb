// SPDX-License-Identifier: Apache-2.0

package eventlog

import (
	"bytes"
	"crypto/sha256"
	"encoding/binary"
	"errors"
	"reflect"
	"strings"
	"testing"
)

func measurement() Measurement {
	return Measurement{Kind: "program", Items: []Item{
		{Name: "/davit/davitd", Size: 12, Digest: sha256.Sum256([]byte("davitd"))},
		{Name: "/davit/vcard", Size: 1 << 40, Digest: sha256.Sum256([]byte("vcard"))},
	}}
}

func TestMeasurementRoundTrip(t *testing.T) {
	t.Parallel()
	want := measurement()
	e, err := want.Event(8, SHA1, SHA256)
	if err != nil {
		t.Fatal(err)
	}
	if e.PCR != 8 || e.Type != EventTag || !e.DataMatches() {
		t.Errorf("event %+v", e)
	}
	got, err := e.Measurement()
	if err != nil {
		t.Fatal(err)
	}
	if !reflect.DeepEqual(got, want) {
		t.Errorf("got %+v, want %+v", got, want)
	}
}

func TestMeasurementRefuses(t *testing.T) {
	t.Parallel()
	good, err := measurement().Event(8, SHA256)
	if err != nil {
		t.Fatal(err)
	}
	// rehash makes digests fit the data again, as whoever may extend can.
	rehash := func(e *Event) { e.Digests = DigestsOf(e.Data, SHA256) }
	body := func(cbor string) func(*Event) {
		return func(e *Event) {
			e.Data = append(bytes.Clone(e.Data[:4]), 0, 0, 0, 0)
			binary.LittleEndian.PutUint32(e.Data[4:], uint32(len(cbor)))
			e.Data = append(e.Data, cbor...)
			rehash(e)
		}
	}
	item := "\x83\x61a\x00\x58\x20" + strings.Repeat("\x00", 32)
	for name, change := range map[string]func(*Event){
		"name swapped":           func(e *Event) { e.Data = bytes.Replace(e.Data, []byte("davitd"), []byte("ditdav"), 1) },
		"another type":           func(e *Event) { e.Type = 5 },
		"another tag":            func(e *Event) { e.Data[0] = 'X'; rehash(e) },
		"a byte more":            func(e *Event) { e.Data = append(e.Data, 0); rehash(e) },
		"no data":                func(e *Event) { e.Data = nil; rehash(e) },
		"nothing in it":          body(""),
		"no items":               body("\xa2\x01\x61k\x02\x80"),
		"no kind":                body("\xa2\x01\x60\x02\x81" + item),
		"an unknown key":         body("\xa3\x01\x61k\x02\x81" + item + "\x03\x00"),
		"a key twice":            body("\xa3\x01\x61k\x01\x61k\x02\x81" + item),
		"keys in another order":  body("\xa2\x02\x81" + item + "\x01\x61k"),
		"a longer encoding":      body("\xa2\x01\x78\x01k\x02\x81" + item),
		"an indefinite length":   body("\xa2\x01\x61k\x02\x9f" + item + "\xff"),
		"a short digest":         body("\xa2\x01\x61k\x02\x81\x83\x61a\x00\x41\x00"),
		"an item without a name": body("\xa2\x01\x61k\x02\x81\x83\x60\x00\x58\x20" + strings.Repeat("\x00", 32)),
		"4 G items":              body("\xa2\x01\x61k\x02\x9a\xff\xff\xff\xff"),
		"text that is not UTF-8": body("\xa2\x01\x61\xff\x02\x81" + item),
	} {
		e := good.clone()
		change(&e)
		if m, err := e.Measurement(); !errors.Is(err, ErrMalformed) || !reflect.DeepEqual(m, Measurement{}) {
			t.Errorf("%s: Measurement = %+v, %v, want %v", name, m, err, ErrMalformed)
		}
	}
	ok := good.clone()
	body("\xa2\x01\x61k\x02\x81" + item)(&ok)
	if _, err := ok.Measurement(); err != nil {
		t.Errorf("the table's valid body is refused: %v", err)
	}
}

func TestMeasurementBounds(t *testing.T) {
	t.Parallel()
	for name, m := range map[string]Measurement{
		"no items":       {Kind: "k"},
		"too many items": {Kind: "k", Items: make([]Item, MaxItems+1)},
		"no kind":        {Items: []Item{{Name: "a"}}},
		"no name":        {Kind: "k", Items: []Item{{}}},
		"a long name":    {Kind: "k", Items: []Item{{Name: strings.Repeat("a", MaxName+1)}}},
	} {
		if e, err := m.Event(8, SHA256); err == nil || e.Data != nil {
			t.Errorf("%s: Event = %v, %v, want an error", name, e, err)
		}
	}
}

func TestBroken(t *testing.T) {
	t.Parallel()
	l, err := New(SHA256)
	if err != nil {
		t.Fatal(err)
	}
	if err := l.Append(BrokenEvent(8, "TPM is gone\xff", SHA256)); err != nil {
		t.Fatal(err)
	}
	if got, ok := l.Events()[0].Broken(); got != "TPM is gone?" || !ok {
		t.Errorf("Broken = %q, %v", got, ok)
	}
	if _, ok := (Event{Type: EventTag, Data: []byte(brokenPrefix)}).Broken(); ok {
		t.Errorf("an extended event is taken for the mark")
	}
	if pcrs, err := l.Replay(SHA256); err != nil || len(pcrs) != 0 {
		t.Errorf("the mark is replayed: %v, %v", pcrs, err)
	}
}

func FuzzMeasurement(f *testing.F) {
	e, err := measurement().Event(8, SHA256)
	if err != nil {
		f.Fatal(err)
	}
	f.Add(e.Data)
	f.Fuzz(func(t *testing.T, data []byte) {
		e := Event{PCR: 8, Type: EventTag, Digests: DigestsOf(data, SHA256), Data: data}
		m, err := e.Measurement()
		if (err == nil) != (m.Kind != "") {
			t.Fatalf("Measurement = %+v, %v", m, err)
		}
		if err != nil {
			return
		}
		again, err := m.Event(8, SHA256)
		if err != nil || !bytes.Equal(again.Data, data) {
			t.Fatalf("encoded again: %x, %v, want %x", again.Data, err, data)
		}
	})
}
