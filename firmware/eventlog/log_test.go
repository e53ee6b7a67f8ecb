// SPDX-License-Identifier: Apache-2.0

package eventlog

import (
	"bytes"
	"encoding/binary"
	"encoding/hex"
	"errors"
	"os"
	"reflect"
	"slices"
	"testing"
)

// sample is a log with two banks, as firmware writes it.
func sample(t testing.TB) *Log {
	t.Helper()
	l, err := New(SHA1, SHA256)
	if err != nil {
		t.Fatal(err)
	}
	for i, pcr := range []uint32{0, 7, 0, 8} {
		data := []byte{byte(i)}
		if err := l.Append(Event{PCR: pcr, Type: 0x80000001, Digests: DigestsOf(data, SHA1, SHA256), Data: data}); err != nil {
			t.Fatal(err)
		}
	}
	return l
}

func TestRoundTrip(t *testing.T) {
	t.Parallel()
	want := sample(t)
	got, err := Parse(want.Encode())
	if err != nil {
		t.Fatal(err)
	}
	if !reflect.DeepEqual(got, want) {
		t.Errorf("got %+v, want %+v", got, want)
	}
}

// The header of our logs, written down by hand from the profile.
func TestHeaderBytes(t *testing.T) {
	t.Parallel()
	l, err := New(SHA256)
	if err != nil {
		t.Fatal(err)
	}
	want := "00000000" + "03000000" + "0000000000000000000000000000000000000000" + "26000000" +
		"5370656320494420" + "4576656e74303300" + // "Spec ID Event03\0"
		"00000000" + "00" + "02" + "00" + "02" + "01000000" + "0b00" + "2000" + "05" + "6461766974"
	if got := hex.EncodeToString(l.Encode()); got != want {
		t.Errorf("got  %s\nwant %s", got, want)
	}
}

func TestParseRefuses(t *testing.T) {
	t.Parallel()
	whole := sample(t).Encode()
	header := len(whole) - 4*(12+2+20+2+32+4+1)
	put := func(offset int, v uint32) []byte {
		b := bytes.Clone(whole)
		binary.LittleEndian.PutUint32(b[offset:], v)
		return b
	}
	set := func(offset int, v byte) []byte {
		b := bytes.Clone(whole)
		b[offset] = v
		return b
	}
	for name, test := range map[string]struct {
		data []byte
		want error
	}{
		"nothing":                     {nil, ErrTruncated},
		"half a header":               {whole[:20], ErrTruncated},
		"a byte short":                {whole[:len(whole)-1], ErrTruncated},
		"a byte more":                 {append(bytes.Clone(whole), 0), ErrTruncated},
		"header of another pcr":       {put(0, 1), ErrMalformed},
		"header of another type":      {put(4, 1), ErrMalformed},
		"header with a digest":        {set(8, 1), ErrMalformed},
		"4 GiB of header":             {put(28, 0xffffffff), ErrTooLarge},
		"header a byte too long":      {put(28, uint32(header-32+1)), ErrMalformed},
		"SHA-1 format":                {set(32+13, '2'), ErrMalformed},
		"no algorithms":               {put(32+24, 0), ErrMalformed},
		"4 G algorithms":              {put(32+24, 0xffffffff), ErrMalformed},
		"algorithm of another length": {set(32+24+4+2, 21), ErrMalformed},
		"algorithm twice":             {set(32+24+4+4, byte(SHA1)), ErrMalformed},
		"event of pcr 24":             {put(header, 24), ErrMalformed},
		"event with one digest":       {put(header+8, 1), ErrMalformed},
		"event with 4 G digests":      {put(header+8, 0xffffffff), ErrMalformed},
		"digest not announced":        {set(header+12, 0x0c), ErrMalformed},
		"digest twice":                {set(header+12+22, byte(SHA1)), ErrMalformed},
		"4 GiB of event data":         {put(header+12+22+34, 0xffffffff), ErrTooLarge},
		"more than the largest log":   {make([]byte, MaxSize+1), ErrTooLarge},
	} {
		l, err := Parse(test.data)
		if !errors.Is(err, test.want) || l != nil {
			t.Errorf("%s: Parse = %v, %v, want %v", name, l, err, test.want)
		}
	}
}

func TestAppendRefuses(t *testing.T) {
	t.Parallel()
	good := Event{PCR: 8, Type: EventTag, Digests: DigestsOf(nil, SHA1, SHA256)}
	for name, change := range map[string]func(*Event){
		"pcr 24":           func(e *Event) { e.PCR = 24 },
		"too much data":    func(e *Event) { e.Data = make([]byte, MaxEventData+1) },
		"a digest lacking": func(e *Event) { e.Digests = e.Digests[:1] },
		"digests swapped":  func(e *Event) { slices.Reverse(e.Digests) },
		"a short digest":   func(e *Event) { e.Digests[1].Sum = e.Digests[1].Sum[1:] },
	} {
		l := sample(t)
		before := l.Encode()
		e := good.clone()
		change(&e)
		if err := l.Append(e); err == nil {
			t.Errorf("%s: Append succeeds", name)
		}
		if !bytes.Equal(l.Encode(), before) {
			t.Errorf("%s: a refused event changed the log", name)
		}
	}
	for _, algs := range [][]Alg{nil, {SHA1, SHA1}, {0x12}} {
		if l, err := New(algs...); err == nil || l != nil {
			t.Errorf("New(%v) = %v, %v, want an error", algs, l, err)
		}
	}
}

func TestAppendBounds(t *testing.T) {
	t.Parallel()
	l, err := New(SHA256)
	if err != nil {
		t.Fatal(err)
	}
	e := Event{PCR: 8, Digests: DigestsOf(nil, SHA256), Data: make([]byte, MaxEventData)}
	for range MaxSize / MaxEventData {
		err = l.Append(e)
	}
	if !errors.Is(err, ErrTooLarge) {
		t.Errorf("Append to a full log = %v, want %v", err, ErrTooLarge)
	}
	if _, err := Parse(l.Encode()); err != nil {
		t.Errorf("a full log does not parse: %v", err)
	}
}

func TestDataMatches(t *testing.T) {
	t.Parallel()
	data := []byte("data")
	good := Event{PCR: 8, Type: EventTag, Digests: DigestsOf(data, SHA1, SHA256), Data: data}
	for name, test := range map[string]struct {
		change func(*Event)
		want   bool
	}{
		"as it is":           {func(*Event) {}, true},
		"other data":         {func(e *Event) { e.Data = []byte("date") }, false},
		"one digest differs": {func(e *Event) { e.Digests[0].Sum[0] ^= 1 }, false},
		"not extended":       {func(e *Event) { e.Type = NoAction }, false},
		"no known digest":    {func(e *Event) { e.Digests = []Digest{{Alg: 0x12, Sum: make([]byte, 32)}} }, false},
	} {
		e := good.clone()
		test.change(&e)
		if got := e.DataMatches(); got != test.want {
			t.Errorf("%s: DataMatches = %v, want %v", name, got, test.want)
		}
	}
}

func FuzzParse(f *testing.F) {
	f.Add([]byte{})
	f.Add(sample(f).Encode())
	if data, err := os.ReadFile("testdata/aavmf-uki.log"); err == nil {
		f.Add(data)
	}
	f.Fuzz(func(t *testing.T, data []byte) {
		l, err := Parse(data)
		if (err == nil) != (l != nil) {
			t.Fatalf("Parse = %v, %v", l, err)
		}
		if l == nil {
			return
		}
		again, err := Parse(l.Encode())
		if err != nil {
			t.Fatalf("encoded again: %v", err)
		}
		if !reflect.DeepEqual(again.Events(), l.Events()) || !reflect.DeepEqual(again.Algs(), l.Algs()) {
			t.Fatalf("encoded again it differs")
		}
		for _, a := range l.Algs() {
			pcrs, err := l.Replay(a)
			if (err == nil) != (pcrs != nil) {
				t.Fatalf("Replay = %v, %v", pcrs, err)
			}
		}
		for _, e := range l.Events() {
			if _, err := e.Measurement(); err == nil && !e.DataMatches() {
				t.Fatalf("a measurement without matching data")
			}
			e.Broken()
		}
	})
}
