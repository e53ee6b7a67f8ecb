// SPDX-License-Identifier: Apache-2.0

package audit

import (
	"bytes"
	"errors"
	"io"
	"log/slog"
	"os"
	"path/filepath"
	"runtime"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"golang.org/x/sys/unix"
)

var noon = time.Date(2026, 3, 1, 12, 0, 0, 0, time.UTC)

func testConfig(dir string) Config {
	return Config{
		Dir: dir, Now: func() time.Time { return noon },
		Log: slog.New(slog.NewTextHandler(io.Discard, nil)),
	}
}

func mustOpen(t *testing.T, cfg Config) *Log {
	t.Helper()
	l, err := Open(cfg)
	if err != nil {
		t.Fatalf("Open: %v", err)
	}
	t.Cleanup(func() {
		if err := l.Close(); err != nil {
			t.Errorf("Close: %v", err)
		}
	})
	return l
}

func mustAppend(t *testing.T, l *Log, entries ...Entry) uint64 {
	t.Helper()
	var last uint64
	for _, e := range entries {
		index, err := l.Append(e)
		if err != nil {
			t.Fatalf("Append: %v", err)
		}
		last = index
	}
	return last
}

func command(n byte) Entry {
	return Entry{
		Time: noon.Add(time.Duration(n) * time.Second), Kind: KindAccepted, Command: Digest{n, 1}, Op: "instance.stop",
		Key: "0123456789abcdef", Door: "tls", Code: "accepted", Reason: "maintenance",
	}
}

// export reads the whole log back through Verify.
func export(t *testing.T, l *Log) (Chain, []Record) {
	t.Helper()
	var b bytes.Buffer
	if err := l.Export(&b); err != nil {
		t.Fatalf("Export: %v", err)
	}
	var records []Record
	chain, err := Verify(&b, func(r Record) error {
		records = append(records, r)
		return nil
	})
	if err != nil {
		t.Fatalf("Verify: %v", err)
	}
	return chain, records
}

func TestAppendAndReopen(t *testing.T) {
	t.Parallel()
	cfg := testConfig(filepath.Join(t.TempDir(), "audit"))
	l := mustOpen(t, cfg)
	first := mustAppend(t, l, command(1))
	mustAppend(t, l, Entry{Time: noon, Kind: KindDone, Ref: first, Code: "ok", Receipt: Digest{9}}, command(2))
	index, head, err := l.Head()
	if err != nil || index != 5 {
		t.Fatalf("Head: index %d, err %v; want 5, nil", index, err)
	}
	if err := l.Close(); err != nil {
		t.Fatal(err)
	}
	if _, err := l.Append(command(3)); !errors.Is(err, ErrClosed) {
		t.Errorf("Append after Close: %v, want ErrClosed", err)
	}

	l = mustOpen(t, cfg)
	chain, records := export(t, l)
	if chain.Last != 6 || len(records) != 6 || chain.First != 1 {
		t.Fatalf("chain after reopening: %+v with %d records", chain, len(records))
	}
	if records[5].Prev != head {
		t.Error("the record after reopening does not continue the head before")
	}
	if got := records[2].Entry; got != (Entry{Time: noon.Add(time.Second), Kind: KindAccepted, Command: Digest{1, 1}, Op: "instance.stop", Key: "0123456789abcdef", Door: "tls", Code: "accepted", Reason: "maintenance"}) {
		t.Errorf("record 3: %+v", got)
	}
	open := records[5]
	if open.Kind != KindOpen || open.Count != 1 || !strings.Contains(open.Reason, "[5]") {
		t.Errorf("open record %+v does not name the command without an outcome, record 5", open)
	}
}

func TestOneWriter(t *testing.T) {
	t.Parallel()
	cfg := testConfig(t.TempDir())
	mustOpen(t, cfg)
	if l, err := Open(cfg); !errors.Is(err, ErrInUse) || l != nil {
		t.Errorf("second Open: %v, %v; want ErrInUse", l, err)
	}
}

func TestConfigRefused(t *testing.T) {
	t.Parallel()
	for name, change := range map[string]func(*Config){
		"no folder":     func(c *Config) { c.Dir = "" },
		"no logger":     func(c *Config) { c.Log = nil },
		"one segment":   func(c *Config) { c.Segments = 1 },
		"tiny segments": func(c *Config) { c.SegmentBytes = 100 },
	} {
		cfg := testConfig(t.TempDir())
		change(&cfg)
		if _, err := Open(cfg); err == nil {
			t.Errorf("%s: opened", name)
		}
	}
}

func TestFailedFsyncEndsTheLog(t *testing.T) {
	t.Parallel()
	cfg := testConfig(t.TempDir())
	var broken atomic.Bool
	l, err := openLog(cfg, disk{writeAt: (*os.File).WriteAt, sync: func(f *os.File) error {
		if broken.Load() {
			return unix.EIO
		}
		return f.Sync()
	}})
	if err != nil {
		t.Fatal(err)
	}
	broken.Store(true)
	if _, err := l.Append(command(1)); !errors.Is(err, unix.EIO) {
		t.Errorf("Append: %v, want EIO", err)
	}
	broken.Store(false)
	if _, err := l.Append(command(2)); !errors.Is(err, unix.EIO) {
		t.Errorf("Append after a failed fsync: %v, want the same refusal", err)
	}
	if l.Err() == nil {
		t.Error("Err is nil after a failed fsync")
	}
	if err := l.Close(); err != nil {
		t.Fatal(err)
	}
	mustOpen(t, cfg)
}

func TestFullDiskIsTakenBack(t *testing.T) {
	t.Parallel()
	cfg := testConfig(t.TempDir())
	var full atomic.Bool
	l, err := openLog(cfg, disk{sync: (*os.File).Sync, writeAt: func(f *os.File, p []byte, offset int64) (int, error) {
		if !full.Load() {
			return f.WriteAt(p, offset)
		}
		n, err := f.WriteAt(p[:len(p)/2], offset)
		return n, errors.Join(err, unix.ENOSPC)
	}})
	if err != nil {
		t.Fatal(err)
	}
	for range 2 {
		full.Store(true)
		if _, err := l.Append(command(2)); !errors.Is(err, unix.ENOSPC) {
			t.Fatalf("Append to a full disk: %v, want ENOSPC", err)
		}
		full.Store(false)
		mustAppend(t, l, command(3))
	}
	full.Store(true)
	if _, err := l.Append(command(2)); !errors.Is(err, unix.ENOSPC) {
		t.Fatalf("Append to a full disk: %v, want ENOSPC", err)
	}
	if err := l.Close(); err != nil {
		t.Fatal(err)
	}
	_, records := export(t, mustOpen(t, cfg))
	for i, want := range []Kind{KindSegment, KindOpen, KindAccepted, KindAccepted, KindOpen} {
		if len(records) != 5 || records[i].Kind != want {
			t.Fatalf("records after a full disk: %+v", records)
		}
	}
}

// A segment is not closed while somebody waits for it to be on the disk.
func TestRotationWaitsForFsync(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		cfg := testConfig(t.TempDir())
		cfg.SegmentBytes = 2 * MaxBody
		var gated atomic.Bool
		gate := make(chan struct{})
		l, err := openLog(cfg, disk{writeAt: (*os.File).WriteAt, sync: func(f *os.File) error {
			if gated.CompareAndSwap(true, false) {
				<-gate
			}
			return f.Sync()
		}})
		if err != nil {
			t.Fatal(err)
		}
		big := command(1)
		big.Reason = strings.Repeat("x", maxReason)
		for l.size < cfg.SegmentBytes-maxReason {
			mustAppend(t, l, big)
		}
		gated.Store(true)
		results := make(chan error, 2)
		for range 2 { // the first fills the segment and is in fsync when the second comes
			go func() {
				_, err := l.Append(big)
				results <- err
			}()
			synctest.Wait()
		}
		close(gate)
		if err := errors.Join(<-results, <-results, l.Close()); err != nil {
			t.Error(err)
		}
	})
}

func TestConcurrentAppendsShareFsync(t *testing.T) {
	t.Parallel()
	cfg := testConfig(t.TempDir())
	var syncs atomic.Int64
	var gated atomic.Bool
	gate := make(chan struct{})
	l, err := openLog(cfg, disk{writeAt: (*os.File).WriteAt, sync: func(f *os.File) error {
		if gated.Load() {
			<-gate
		}
		syncs.Add(1)
		return f.Sync()
	}})
	if err != nil {
		t.Fatal(err)
	}
	before := syncs.Load()
	gated.Store(true)
	const writers = 64
	var wg sync.WaitGroup
	for i := range writers {
		wg.Go(func() {
			if _, err := l.Append(command(byte(i))); err != nil {
				t.Errorf("Append: %v", err)
			}
		})
	}
	// All but the one in fsync wait until the gate opens.
	for {
		l.mu.Lock()
		written := l.chain.Last
		l.mu.Unlock()
		if written == 2+writers {
			break
		}
		runtime.Gosched()
	}
	close(gate)
	wg.Wait()
	if n := syncs.Load() - before; n > 2 {
		t.Errorf("%d appends took %d fsyncs, want at most 2", writers, n)
	}
	if chain, _ := export(t, l); chain.Last != 2+writers {
		t.Errorf("last record %d, want %d", chain.Last, 2+writers)
	}
	if err := l.Close(); err != nil {
		t.Fatal(err)
	}
}

func TestAppendWhileRotating(t *testing.T) {
	t.Parallel()
	cfg := testConfig(t.TempDir())
	cfg.SegmentBytes = 2 * MaxBody
	l := mustOpen(t, cfg)
	var wg sync.WaitGroup
	for i := range 8 {
		wg.Go(func() {
			for range 50 {
				if _, err := l.Append(command(byte(i))); err != nil {
					t.Errorf("Append: %v", err)
					return
				}
			}
		})
	}
	wg.Wait()
	seen := 0
	_, records := export(t, l)
	for _, r := range records {
		if r.Kind == KindAccepted {
			seen++
		}
	}
	if seen != 400 {
		t.Errorf("%d records of 400 appends", seen)
	}
}
