// SPDX-License-Identifier: Apache-2.0

package audit

import (
	"bytes"
	"crypto/sha256"
	"errors"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"
)

// sample makes a log of some records and returns its bytes and where each
// frame ends.
func sample(t testing.TB) ([]byte, []int) {
	t.Helper()
	return build(t, []Entry{
		{Time: noon, Kind: KindSegment, Ref: 1}, {Time: noon, Kind: KindOpen}, command(1),
		{Time: noon, Kind: KindDone, Ref: 3, Code: "ok", Receipt: Digest{7}},
		{Time: noon, Kind: KindRefused, Command: Digest{5}, Door: "bus", Code: "bad-signature"}, command(2),
	})
}

func build(t testing.TB, entries []Entry) ([]byte, []int) {
	t.Helper()
	c, err := newCodec()
	if err != nil {
		t.Fatal(err)
	}
	l := &Log{codec: c}
	out := []byte(magic)
	var ends []int
	for _, e := range entries {
		rec := Record{Index: l.chain.Last + 1, Prev: l.chain.Head, Entry: e}
		frame, hash, err := l.frame(rec)
		if err != nil {
			t.Fatal(err)
		}
		if err := l.chain.add(rec, hash); err != nil {
			t.Fatal(err)
		}
		out = append(out, frame...)
		ends = append(ends, len(out))
	}
	return out, ends
}

func writeSegment(t *testing.T, content []byte) Config {
	t.Helper()
	cfg := testConfig(t.TempDir())
	if err := os.WriteFile(filepath.Join(cfg.Dir, "audit-0000000000000001.log"), content, 0o600); err != nil {
		t.Fatal(err)
	}
	return cfg
}

// A power cut leaves any prefix of the record being written, or that prefix
// followed by blocks that were never written.
func TestPowerCutAtEveryByte(t *testing.T) {
	t.Parallel()
	whole, ends := sample(t)
	for cut := 0; cut <= len(whole); cut++ {
		good, records := 0, 0
		for i, end := range ends {
			if end <= cut {
				good, records = end, i+1
			}
		}
		checkCut(t, whole[:cut], cut, good, records)
		for _, zeros := range []int{5, 5000} {
			checkCut(t, append(slices.Clone(whole[:cut]), make([]byte, zeros)...), cut, good, records)
		}
	}
}

func checkCut(t *testing.T, content []byte, cut, good, records int) {
	t.Helper()
	cfg := writeSegment(t, content)
	l, err := openLog(cfg, unsynced)
	if records == 0 {
		// Segments appear whole: this is no power cut.
		if !errors.Is(err, ErrCorrupt) {
			t.Fatalf("cut at %d: Open gives %v, want ErrCorrupt", cut, err)
		}
		return
	}
	if err != nil {
		t.Fatalf("cut at %d of %d: Open: %v", cut, len(content), err)
	}
	_, got := export(t, l)
	if err := l.Close(); err != nil {
		t.Fatal(err)
	}
	want := records + 1 // and the open record
	if torn := len(content) - good; torn > 0 {
		want++
		r := got[records]
		if r.Kind != KindTorn || r.Count != uint64(torn) || r.Command != sha256.Sum256(content[good:]) {
			t.Fatalf("cut at %d of %d: record %+v does not tell of %d torn bytes", cut, len(content), r, torn)
		}
	}
	if len(got) != want || got[want-1].Kind != KindOpen {
		t.Fatalf("cut at %d of %d: %d records, want %d ending in open", cut, len(content), len(got), want)
	}
	if l, err = openLog(cfg, unsynced); err != nil {
		t.Fatal(err)
	}
	chain, again := export(t, l)
	if err := l.Close(); err != nil {
		t.Fatal(err)
	}
	if len(again) != want+1 || chain.Torn != 0 {
		t.Fatalf("cut at %d: second opening has %d records, want %d", cut, len(again), want+1)
	}
}

// unsynced saves the time: the power cut is in the content.
var unsynced = disk{sync: func(*os.File) error { return nil }, writeAt: (*os.File).WriteAt}

// No altered byte passes: it is corruption, or, where a length now reaches
// beyond the end, a visible tear.
func TestEveryAlteredByteIsFound(t *testing.T) {
	t.Parallel()
	whole, _ := sample(t)
	for i := range whole {
		for _, bit := range []byte{1, 0x80} {
			b := slices.Clone(whole)
			b[i] ^= bit
			chain, err := Verify(bytes.NewReader(b), nil)
			if err == nil && chain.Torn == 0 {
				t.Errorf("byte %d with bit %#x flipped verifies", i, bit)
			}
			if err != nil && !errors.Is(err, ErrCorrupt) {
				t.Errorf("byte %d: %v is not ErrCorrupt", i, err)
			}
		}
	}
}

func TestRemovedReorderedForked(t *testing.T) {
	t.Parallel()
	whole, ends := sample(t)
	frame := func(i int) []byte { return whole[ends[i-1]:ends[i]] }
	join := func(parts ...[]byte) []byte { return slices.Concat(parts...) }
	for name, b := range map[string][]byte{
		"record removed":      join(whole[:ends[2]], whole[ends[3]:]),
		"records swapped":     join(whole[:ends[1]], frame(3), frame(2), whole[ends[3]:]),
		"record repeated":     join(whole[:ends[3]], frame(3), whole[ends[3]:]),
		"log repeated":        join(whole, whole),
		"garbage after":       join(whole, []byte("garbage")),
		"nothing":             nil,
		"magic only":          []byte(magic),
		"magic twice":         join([]byte(magic), whole),
		"no magic":            whole[len(magic):],
		"not a log":           []byte("Mar  1 12:00:00 card kernel: hello\n"),
		"first record absent": join([]byte(magic), whole[ends[0]:]),
	} {
		want := ErrCorrupt
		chain, err := Verify(bytes.NewReader(b), nil)
		if name == "garbage after" {
			// "garb" as a length is beyond any record.
			if !errors.Is(err, want) {
				t.Errorf("%s: %v", name, err)
			}
			continue
		}
		if !errors.Is(err, want) || chain.Last != 0 {
			t.Errorf("%s: %+v, %v; want ErrCorrupt", name, chain, err)
		}
	}
}

// Two logs that part after a common beginning: a record of the one does not
// continue the other, though its number fits.
func TestForkIsFound(t *testing.T) {
	t.Parallel()
	a, ends := sample(t)
	c, err := newCodec()
	if err != nil {
		t.Fatal(err)
	}
	other, err := c.decode(a[ends[3]+lengthSize : ends[4]-sha256.Size])
	if err != nil {
		t.Fatal(err)
	}
	other.Code = "unknown-key"
	forged, _, err := (&Log{codec: c}).frame(other)
	if err != nil {
		t.Fatal(err)
	}
	b := slices.Concat(a[:ends[3]], forged)
	if _, err := Verify(bytes.NewReader(b), nil); err != nil {
		t.Fatalf("the other log by itself: %v", err)
	}
	if chain, err := Verify(bytes.NewReader(append(b, a[ends[4]:]...)), nil); !errors.Is(err, ErrCorrupt) {
		t.Errorf("spliced: %+v, %v; want ErrCorrupt", chain, err)
	}
}

func TestSegmentRecordsStandAtTheBeginning(t *testing.T) {
	t.Parallel()
	segment := Entry{Time: noon, Kind: KindSegment, Ref: 1}
	inside, _ := build(t, []Entry{segment, command(1), segment})
	without, _ := build(t, []Entry{command(1), command(2)})
	whole, ends := build(t, []Entry{segment, command(1), segment, command(2)})
	two := slices.Concat(whole[:ends[1]], []byte(magic), whole[ends[1]:])
	if _, err := Verify(bytes.NewReader(two), nil); err != nil {
		t.Errorf("two segments: %v", err)
	}
	// A segment appears with its first record: half of that is no power cut.
	half := two[:ends[2]]
	for name, b := range map[string][]byte{"inside": inside, "missing": without, "half": half} {
		if chain, err := Verify(bytes.NewReader(b), nil); !errors.Is(err, ErrCorrupt) {
			t.Errorf("%s: %+v, %v; want ErrCorrupt", name, chain, err)
		}
	}
}

func TestVerifySumsUp(t *testing.T) {
	t.Parallel()
	whole, ends := sample(t)
	chain, err := Verify(bytes.NewReader(whole), nil)
	if err != nil {
		t.Fatal(err)
	}
	last := whole[ends[4]+lengthSize : ends[5]-sha256.Size]
	if chain.First != 1 || chain.Last != 6 || chain.Head != sha256.Sum256(last) || !slices.Equal(chain.Unfinished, []uint64{6}) {
		t.Errorf("chain %+v", chain)
	}
	stop := errors.New("enough")
	if _, err := Verify(bytes.NewReader(whole), func(Record) error { return stop }); !errors.Is(err, stop) {
		t.Errorf("error of visit: %v", err)
	}
}

func TestHostileTextIsClipped(t *testing.T) {
	t.Parallel()
	l := mustOpen(t, testConfig(t.TempDir()))
	long := strings.Repeat("é\xff\x00", 4000)
	mustAppend(t, l, Entry{Time: noon, Kind: KindRefused, Op: long, Key: long, Door: long, Code: long, Reason: long, Command: Digest{1}, Receipt: Digest{1}, Ref: 1 << 63, Count: 1 << 63})
	_, records := export(t, l)
	got := records[len(records)-1]
	for _, s := range []string{got.Op, got.Key, got.Door, got.Code} {
		if len(s) > maxName || !strings.HasSuffix(s, "…") {
			t.Errorf("text of %d bytes is not clipped to %d with a mark", len(s), maxName)
		}
	}
}

func TestRecordRoundTrip(t *testing.T) {
	t.Parallel()
	c, err := newCodec()
	if err != nil {
		t.Fatal(err)
	}
	for _, want := range []Record{
		{Index: 1, Entry: Entry{Time: noon, Kind: KindSegment, Ref: 1}},
		{Index: 1 << 62, Prev: Digest{1}, Entry: Entry{Time: time.UnixMilli(-5).UTC(), Kind: KindDone, Command: Digest{2}, Op: "o", Key: "k", Door: "d", Code: "c", Reason: "r", Receipt: Digest{3}, Ref: 4, Count: 5}},
	} {
		body, err := c.encode(want)
		if err != nil {
			t.Fatal(err)
		}
		got, err := c.decode(body)
		if err != nil || got != want {
			t.Errorf("got %+v, %v; want %+v", got, err, want)
		}
	}
}

func FuzzRecord(f *testing.F) {
	c, err := newCodec()
	if err != nil {
		f.Fatal(err)
	}
	whole, ends := sample(f)
	f.Add(whole[ends[1]+lengthSize : ends[2]-sha256.Size])
	f.Fuzz(func(t *testing.T, body []byte) {
		rec, err := c.decode(body)
		if (err != nil) != (rec == Record{}) {
			t.Fatalf("record %+v with error %v", rec, err)
		}
	})
}

func FuzzVerify(f *testing.F) {
	whole, ends := sample(f)
	f.Add(whole)
	f.Add(whole[:ends[3]+9])
	f.Fuzz(func(t *testing.T, b []byte) {
		chain, err := Verify(bytes.NewReader(b), nil)
		if (err != nil) != (chain.Last == 0) {
			t.Fatalf("chain %+v with error %v", chain, err)
		}
		if err != nil && !errors.Is(err, ErrCorrupt) {
			t.Fatalf("error %v is not ErrCorrupt", err)
		}
	})
}
