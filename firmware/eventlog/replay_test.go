// SPDX-License-Identifier: Apache-2.0

package eventlog

import (
	"bytes"
	"crypto/sha256"
	"errors"
	"fmt"
	"os"
	"slices"
	"testing"
)

func TestReplay(t *testing.T) {
	t.Parallel()
	h := func(parts ...[]byte) []byte { s := sha256.Sum256(bytes.Join(parts, nil)); return s[:] }
	zero := make([]byte, 32)
	want := PCRs{
		0: h(h(zero, h([]byte{0})), h([]byte{2})),
		7: h(zero, h([]byte{1})),
		8: h(zero, h([]byte{3})),
	}
	got, err := sample(t).Replay(SHA256)
	if err != nil {
		t.Fatal(err)
	}
	checkPCRs(t, got, want)
	if _, err := sample(t).Replay(SHA384); !errors.Is(err, ErrNoBank) {
		t.Errorf("Replay in a bank that lacks = %v, want %v", err, ErrNoBank)
	}
}

func checkPCRs(t *testing.T, got, want PCRs) {
	t.Helper()
	if len(got) != len(want) {
		t.Errorf("got %d PCRs, want %d", len(got), len(want))
	}
	for n, v := range want {
		if !bytes.Equal(got[n], v) {
			t.Errorf("pcr %d = %x, want %x", n, got[n], v)
		}
	}
}

func TestReplayFromInitialValues(t *testing.T) {
	t.Parallel()
	l, err := New(SHA256)
	if err != nil {
		t.Fatal(err)
	}
	zeros := []Digest{{SHA256, make([]byte, 32)}}
	digest := DigestsOf([]byte("x"), SHA256)
	for _, e := range []Event{
		{PCR: 0, Type: NoAction, Digests: zeros, Data: []byte("StartupLocality\x00\x03")},
		{PCR: 5, Type: NoAction, Digests: digest, Data: []byte("of no effect")},
		{PCR: 0xffffffff, Type: NoAction, Digests: zeros},
		{PCR: 0, Type: EventTag, Digests: digest},
		{PCR: 0, Type: NoAction, Digests: zeros, Data: []byte("StartupLocality\x00\x04")}, // too late
		{PCR: 17, Type: EventTag, Digests: digest},
	} {
		if err := l.Append(e); err != nil {
			t.Fatal(err)
		}
	}
	locality := append(make([]byte, 31), 3)
	got, err := l.Replay(SHA256)
	if err != nil {
		t.Fatal(err)
	}
	checkPCRs(t, got, PCRs{
		0:  SHA256.Sum(locality, digest[0].Sum),
		17: SHA256.Sum(bytes.Repeat([]byte{0xff}, 32), digest[0].Sum),
	})
	if l, err = Parse(l.Encode()); err != nil || l.Len() != 6 {
		t.Errorf("Parse = %v events, %v, want 6", l.Len(), err)
	}
}

func TestJoin(t *testing.T) {
	t.Parallel()
	firmware := sample(t)
	ours, err := New(SHA384, SHA256, SHA1)
	if err != nil {
		t.Fatal(err)
	}
	data := []byte("ours")
	if err := ours.Append(Event{PCR: 8, Type: EventTag, Digests: DigestsOf(data, SHA384, SHA256, SHA1), Data: data}); err != nil {
		t.Fatal(err)
	}
	joined, err := Join(nil, firmware, ours)
	if err != nil {
		t.Fatal(err)
	}
	if got, want := joined.Algs(), []Alg{SHA1, SHA256}; !slices.Equal(got, want) {
		t.Errorf("algorithms %v, want %v", got, want)
	}
	for _, alg := range joined.Algs() {
		before, err := firmware.Replay(alg)
		if err != nil {
			t.Fatal(err)
		}
		got, err := joined.Replay(alg)
		if err != nil {
			t.Fatal(err)
		}
		if want := alg.Sum(before[8], alg.Sum(data)); !bytes.Equal(got[8], want) {
			t.Errorf("pcr 8 of %v = %x, want %x", alg, got[8], want)
		}
		again, err := joined.Before(joined.Len() - 1).Replay(alg)
		if err != nil {
			t.Fatal(err)
		}
		checkPCRs(t, again, before)
	}
	if _, err := Parse(joined.Encode()); err != nil {
		t.Errorf("the joined log does not parse: %v", err)
	}
}

func TestJoinRefuses(t *testing.T) {
	t.Parallel()
	other, err := New(SHA384)
	if err != nil {
		t.Fatal(err)
	}
	if l, err := Join(sample(t), other); !errors.Is(err, ErrNoBank) || l != nil {
		t.Errorf("Join of logs without a common bank = %v, %v, want %v", l, err, ErrNoBank)
	}
	if l, err := Join(nil, nil); err == nil || l != nil {
		t.Errorf("Join of no logs = %v, %v, want an error", l, err)
	}
}

func hexOf(b []byte) string { return fmt.Sprintf("%x", b) }

// The log of an emulated board: edk2 2022.11, systemd-stub 257, swtpm with four
// banks. The values are those that its TPM then had.
func TestReplayOfRealFirmware(t *testing.T) {
	t.Parallel()
	data, err := os.ReadFile("testdata/aavmf-uki.log")
	if err != nil {
		t.Fatal(err)
	}
	l, err := Parse(data)
	if err != nil {
		t.Fatal(err)
	}
	if l.Len() != 36 || len(l.Algs()) != 4 {
		t.Errorf("%d events in %v, want 36 in four banks", l.Len(), l.Algs())
	}
	got, err := l.Replay(SHA256)
	if err != nil {
		t.Fatal(err)
	}
	for pcr, want := range map[int]string{
		0:  "b2b9b886428d2cee4ab2d6537f38d55aef5a7e8780c518d55f4e6287e9113223",
		1:  "499825146d6fdc9b4733a38e690677352e67c763d740fd8f974c1fa7f0ffc262",
		4:  "06ab8d4091c95257b326f7106c383fabfb531d1c0da70b9f14fb89a35ecd4bd0",
		7:  "65caf8dd1e0ea7a6347b635d2b379c93b9a1351edc2afc3ecda700e534eb3068",
		9:  "c883cb6ff225256db18595076553cf0cabee183a2f63b56061af8b55247e6e73",
		11: "e85dc12d5e08daaff66d9726c746e5e737d81f96f17e104840bd31df35f907b1",
	} {
		if v := hexOf(got[pcr]); v != want {
			t.Errorf("pcr %d = %s, want %s", pcr, v, want)
		}
	}
	for _, pcr := range []int{8, 12, 14, 15} {
		if got[pcr] != nil {
			t.Errorf("firmware extended pcr %d", pcr)
		}
	}
}
