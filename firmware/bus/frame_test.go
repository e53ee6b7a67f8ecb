// SPDX-License-Identifier: Apache-2.0

package bus

import (
	"bytes"
	"encoding/hex"
	"errors"
	"io"
	"math/rand/v2"
	"testing"
	"testing/iotest"
)

func TestFrameKnownAnswer(t *testing.T) {
	t.Parallel()
	got := hex.EncodeToString(appendFrame(nil, frame{kind: frameData, session: 0x1122334455667788, channel: 5, seq: 9, payload: []byte("hi")}))
	want := "4456423101070000" + "8877665544332211" + "05000000" + "02000000" + "09000000"
	if got[:len(want)] != want {
		t.Errorf("header %s, want %s…", got, want)
	}
	if len(got) != 2*(HeaderSize+2+4) {
		t.Errorf("frame of %d bytes", len(got)/2)
	}
}

func TestFrameRoundTrip(t *testing.T) {
	t.Parallel()
	for _, f := range []frame{
		{kind: frameHello, flags: flagRequest, payload: hello{min: 1, current: 2, role: Host, nonce: 3, build: "x"}.append(nil)},
		{kind: frameAccept, session: ^uint64(0), channel: ^uint32(0), seq: ^uint32(0)},
		{kind: frameData, session: 1, channel: 2, seq: 3, payload: bytes.Repeat([]byte{7}, MaxPayload)},
	} {
		b := appendFrame(nil, f)
		got, rest, err := parseHeader(b)
		if err != nil {
			t.Fatal(err)
		}
		if got.payload, err = checkPayload(b[HeaderSize : HeaderSize+rest]); err != nil {
			t.Fatal(err)
		}
		if got.kind != f.kind || got.flags != f.flags || got.session != f.session || got.channel != f.channel || got.seq != f.seq || !bytes.Equal(got.payload, f.payload) {
			t.Errorf("got %+v, want %+v", got, f)
		}
		for i := range b {
			bad := bytes.Clone(b)
			bad[i] ^= 0x10
			if _, rest, err := parseHeader(bad); err == nil {
				if _, err = checkPayload(bad[HeaderSize : HeaderSize+rest]); err == nil {
					t.Fatalf("a change of byte %d of %d is not noticed", i, len(b))
				}
			}
			if i > 64 {
				break
			}
		}
	}
}

func TestHelloRoundTrip(t *testing.T) {
	t.Parallel()
	h := hello{min: 1, current: 7, role: Card, nonce: 1 << 60, echo: 5, pool: 1 << 33, build: "davitd 1.2"}
	got, err := parseHello(append(h.append(nil), "fields of a later version"...))
	if err != nil || got != h {
		t.Errorf("got %+v, %v", got, err)
	}
	for name, bad := range map[string]hello{
		"no nonce":        {min: 1, current: 1, role: Card},
		"no role":         {min: 1, current: 1, nonce: 1},
		"versions":        {min: 2, current: 1, role: Card, nonce: 1},
		"build unprinted": {min: 1, current: 1, role: Card, nonce: 1, build: "a\nb"},
	} {
		if _, err := parseHello(bad.append(nil)); err == nil {
			t.Errorf("%s: accepted", name)
		}
	}
}

// TestDecoderResynchronises is the property that restarts depend on: whatever
// was cut or garbled before, every frame behind a preamble arrives, and nothing
// is taken for a frame that was not sent.
func TestDecoderResynchronises(t *testing.T) {
	t.Parallel()
	for seed := range uint64(60) {
		rng := rand.New(rand.NewPCG(seed, 1))
		var stream []byte
		var want []uint32
		for seq := range uint32(20) {
			payload := make([]byte, rng.IntN(MaxPayload+1))
			for i := range payload {
				payload[i] = byte(rng.Uint32())
			}
			if rng.IntN(4) == 0 { // a payload that looks like a frame
				payload = appendFrame(nil, frame{kind: frameBye, seq: 1000, payload: payload[:len(payload)/2]})
			}
			b := appendFrame(nil, frame{kind: frameData, seq: seq, payload: payload})
			switch rng.IntN(3) {
			case 0: // cut at the end, then a new writer's preamble
				b = append(b[:1+rng.IntN(len(b)-1)], make([]byte, MaxFrame)...)
			case 1: // header damaged
				b[rng.IntN(HeaderSize)] ^= 1 << rng.IntN(8)
				b = append(b, make([]byte, MaxFrame)...)
			default:
				want = append(want, seq)
			}
			stream = append(stream, b...)
		}
		checkStream(t, seed, stream, want)
	}
}

func checkStream(t *testing.T, seed uint64, stream []byte, want []uint32) {
	t.Helper()
	d := newDecoder(iotest.HalfReader(bytes.NewReader(stream)))
	var got []uint32
	for {
		f, _, err := d.next()
		if errors.Is(err, io.EOF) {
			break
		}
		if err != nil {
			t.Fatal(err)
		}
		if f.kind == frameData { // a frame inside a payload whose header was damaged is of no session
			got = append(got, f.seq)
		}
	}
	if len(got) != len(want) {
		t.Fatalf("seed %d: got frames %v, want %v", seed, got, want)
	}
	for i := range got {
		if got[i] != want[i] {
			t.Fatalf("seed %d: got frames %v, want %v", seed, got, want)
		}
	}
}

// TestDecoderIgnoresFramesInPayloads: a frame whose header is whole is skipped
// with all of its payload, however much that looks like frames.
func TestDecoderIgnoresFramesInPayloads(t *testing.T) {
	t.Parallel()
	inner := appendFrame(nil, frame{kind: frameBye, payload: []byte("forged")})
	outer := appendFrame(nil, frame{kind: frameData, payload: append(bytes.Repeat([]byte{1}, 100), inner...)})
	outer[HeaderSize] ^= 1 // the payload's CRC fails
	stream := append(outer, appendFrame(nil, frame{kind: framePing, payload: make([]byte, 8)})...)
	f, dropped, err := newDecoder(bytes.NewReader(stream)).next()
	if err != nil || f.kind != framePing || dropped != len(outer) {
		t.Errorf("got frame type %d after %d bytes, %v; want the ping after %d", f.kind, dropped, err, len(outer))
	}
}

func FuzzDecoder(f *testing.F) {
	f.Add(appendFrame(appendFrame(make([]byte, 9), frame{kind: frameData, payload: []byte("x")}), frame{kind: framePing, payload: make([]byte, 8)}))
	f.Add([]byte("DVB1\x01DVB1\x01DVB1"))
	f.Fuzz(func(t *testing.T, b []byte) {
		d := newDecoder(iotest.OneByteReader(bytes.NewReader(b)))
		total := 0
		for {
			fr, dropped, err := d.next()
			total += dropped
			if err != nil {
				if fr.payload != nil || fr.kind != 0 {
					t.Fatal("a frame together with an error")
				}
				break
			}
			wire := appendFrame(nil, fr)
			if !bytes.Contains(b, wire) {
				t.Fatalf("frame %+v was not in the input", fr)
			}
			total += len(wire)
		}
		if total > len(b) || len(d.buf) != 2*MaxFrame {
			t.Fatalf("%d bytes of %d accounted for, buffer of %d", total, len(b), len(d.buf))
		}
	})
}

func FuzzHello(f *testing.F) {
	f.Add(hello{min: 1, current: 1, role: Card, nonce: 1, build: "b"}.append(nil))
	f.Fuzz(func(t *testing.T, b []byte) {
		h, err := parseHello(b)
		if err != nil {
			if h != (hello{}) {
				t.Fatal("a hello together with an error")
			}
			return
		}
		if again, err := parseHello(h.append(nil)); err != nil || again != h {
			t.Fatalf("round trip: %+v, %v", again, err)
		}
	})
}
