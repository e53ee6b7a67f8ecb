// SPDX-License-Identifier: Apache-2.0

package eventlog

import (
	"bytes"
	"errors"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/davit-dpu/davit/tools/packages"
)

func openTest(t *testing.T, path string, algs ...Alg) *File {
	t.Helper()
	f, err := OpenFile(path, algs...)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { f.Close() })
	return f
}

func event(t *testing.T, pcr int, kind string, algs ...Alg) Event {
	t.Helper()
	e, err := Measurement{Kind: kind, Items: []Item{{Name: "/" + kind, Size: 1, Digest: [32]byte{1}}}}.Event(pcr, algs...)
	if err != nil {
		t.Fatal(err)
	}
	return e
}

func TestFileGoesOn(t *testing.T) {
	t.Parallel()
	path := filepath.Join(t.TempDir(), "log")
	for i, kind := range []string{"a", "b", "c"} {
		f := openTest(t, path, SHA256, SHA384)
		if f.Log().Len() != i {
			t.Errorf("opened with %d events, want %d", f.Log().Len(), i)
		}
		if err := f.Append(event(t, 8, kind, SHA256, SHA384)); err != nil {
			t.Fatal(err)
		}
		onDisk, err := os.ReadFile(path)
		if err != nil {
			t.Fatal(err)
		}
		if !bytes.Equal(f.Encode(), onDisk) {
			t.Errorf("Encode differs from the file")
		}
		if _, err := Parse(onDisk); err != nil {
			t.Errorf("the file is no log: %v", err)
		}
		if err := f.Close(); err != nil {
			t.Error(err)
		}
	}
}

// Wherever a crash cuts the file off, the log goes on with the events before.
func TestFileCutAnywhere(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	path := filepath.Join(dir, "log")
	f := openTest(t, path, SHA256)
	ends := []int{len(f.Encode())}
	for _, kind := range []string{"a", "b"} {
		if err := f.Append(event(t, 8, kind, SHA256)); err != nil {
			t.Fatal(err)
		}
		ends = append(ends, len(f.Encode()))
	}
	whole := f.Encode()
	for cut := range len(whole) {
		cutPath := filepath.Join(dir, "cut")
		if err := os.WriteFile(cutPath, whole[:cut], 0o600); err != nil {
			t.Fatal(err)
		}
		f := openTest(t, cutPath, SHA256)
		events := 0
		for i, end := range ends {
			if cut >= end {
				events = i
			}
		}
		if got := f.Log().Len(); got != events {
			t.Errorf("cut at %d: %d events, want %d", cut, got, events)
		}
		if err := f.Append(event(t, 8, "next", SHA256)); err != nil {
			t.Fatal(err)
		}
		onDisk, err := os.ReadFile(cutPath)
		if err != nil {
			t.Fatal(err)
		}
		if l, err := Parse(onDisk); err != nil || l.Len() != events+1 {
			t.Errorf("cut at %d: after the next event: %v, %v", cut, l, err)
		}
		if err := f.Close(); err != nil {
			t.Error(err)
		}
	}
}

func TestFileRefuses(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	log := sample(t).Encode()
	bad := bytes.Clone(log)
	bad[len(log)-5-32] ^= 0xff // within the last digest: still parses
	bad[len(log)-5-32-2] ^= 0xff
	for name, test := range map[string]struct {
		content []byte
		algs    []Alg
		want    error
	}{
		"other algorithms": {log, []Alg{SHA256}, ErrNoBank},
		"another format":   {bytes.Repeat([]byte{1}, 200), []Alg{SHA256}, ErrMalformed},
		"a bad event":      {bad, []Alg{SHA1, SHA256}, ErrMalformed},
		"too large":        {make([]byte, MaxSize+1), []Alg{SHA256}, ErrTooLarge},
	} {
		path := filepath.Join(dir, strings.ReplaceAll(name, " ", "-"))
		if err := os.WriteFile(path, test.content, 0o600); err != nil {
			t.Fatal(err)
		}
		if f, err := OpenFile(path, test.algs...); !errors.Is(err, test.want) || f != nil {
			t.Errorf("%s: OpenFile = %v, %v, want %v", name, f, err, test.want)
		}
		if got, err := os.ReadFile(path); err != nil || !bytes.Equal(got, test.content) {
			t.Errorf("%s: a refused file was changed", name)
		}
	}
}

func TestFileHasOneWriter(t *testing.T) {
	t.Parallel()
	path := filepath.Join(t.TempDir(), "log")
	first := openTest(t, path, SHA256)
	if f, err := OpenFile(path, SHA256); !errors.Is(err, ErrBusy) || f != nil {
		t.Errorf("second OpenFile = %v, %v, want %v", f, err, ErrBusy)
	}
	if err := first.Close(); err != nil {
		t.Fatal(err)
	}
	openTest(t, path, SHA256)
}

// A write that fails leaves log and file as they were.
func TestFileWriteFails(t *testing.T) {
	t.Parallel()
	path := filepath.Join(t.TempDir(), "log")
	f := openTest(t, path, SHA256)
	before := f.Encode()
	readOnly, err := os.Open(path)
	if err != nil {
		t.Fatal(err)
	}
	whole := f.file
	f.file = readOnly
	if err := f.Append(event(t, 8, "a", SHA256)); err == nil {
		t.Errorf("Append to a file that cannot be written succeeds")
	}
	f.file = whole
	if err := readOnly.Close(); err != nil {
		t.Fatal(err)
	}
	if !bytes.Equal(f.Encode(), before) {
		t.Errorf("a failed Append changed the log")
	}
}

// Others' tools read our logs and replay them to the same values.
func TestToolsAgree(t *testing.T) {
	t.Parallel()
	cache, err := packages.Open(packages.Config{})
	if err != nil {
		t.Fatal(err)
	}
	set, err := cache.Ensure(t.Context(), nil, packages.TPM2Tools)
	if errors.Is(err, packages.ErrMissing) {
		t.Skipf("no other implementation to compare with: %v", err)
	}
	if err != nil {
		t.Fatal(err)
	}
	path := filepath.Join(t.TempDir(), "log")
	f := openTest(t, path, SHA1, SHA256)
	for pcr, kind := range map[int]string{8: "program", 14: "config", 15: "privileged"} {
		if err := f.Append(event(t, pcr, kind, SHA1, SHA256)); err != nil {
			t.Fatal(err)
		}
	}
	out, err := set.Command("tpm2_eventlog", path).CombinedOutput()
	if err != nil {
		t.Fatalf("tpm2_eventlog: %v\n%s", err, out)
	}
	text := strings.ToLower(string(out))
	for _, alg := range f.Log().Algs() {
		want, err := f.Log().Replay(alg)
		if err != nil {
			t.Fatal(err)
		}
		for pcr, v := range want {
			if line := hexOf(v); !strings.Contains(text, line) {
				t.Errorf("tpm2_eventlog does not give %s for pcr %d of %v:\n%s", line, pcr, alg, out)
			}
		}
	}
}
