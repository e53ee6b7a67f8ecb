// SPDX-License-Identifier: Apache-2.0

package audit

import (
	"errors"
	"os"
	"path/filepath"
	"strings"
	"testing"
)

func TestRotationIsBounded(t *testing.T) {
	t.Parallel()
	cfg := testConfig(t.TempDir())
	cfg.SegmentBytes, cfg.Segments = 2*MaxBody, 3
	l := mustOpen(t, cfg)
	var last uint64
	for i := range 400 {
		last = mustAppend(t, l, command(byte(i)))
	}
	files, err := filepath.Glob(filepath.Join(cfg.Dir, "audit-*"))
	if err != nil || len(files) != 3 {
		t.Fatalf("%d segments kept (err %v), want 3", len(files), err)
	}
	for _, f := range files {
		if info, err := os.Stat(f); err != nil || info.Size() > cfg.SegmentBytes+MaxBody+64 {
			t.Errorf("%s: %v, err %v", f, info, err)
		}
	}
	chain, _ := export(t, l)
	if chain.First == 1 || chain.First != chain.Kept || chain.Last != last {
		t.Errorf("chain %+v, want the last three segments up to record %d", chain, last)
	}
	if err := l.Close(); err != nil {
		t.Fatal(err)
	}
	chain, _ = export(t, mustOpen(t, cfg))
	if chain.Last != last+1 {
		t.Errorf("after reopening the last record is %d, want %d", chain.Last, last+1)
	}
}

// rotated makes a closed log of three segments.
func rotated(t *testing.T) (Config, []string) {
	t.Helper()
	cfg := testConfig(t.TempDir())
	cfg.SegmentBytes, cfg.Segments = 2*MaxBody, 3
	l := mustOpen(t, cfg)
	for i := range 200 {
		mustAppend(t, l, command(byte(i)))
	}
	if err := l.Close(); err != nil {
		t.Fatal(err)
	}
	files, err := filepath.Glob(filepath.Join(cfg.Dir, "audit-*"))
	if err != nil || len(files) != 3 {
		t.Fatalf("%d segments, err %v", len(files), err)
	}
	return cfg, files
}

func TestDamagedFolderIsRefused(t *testing.T) {
	t.Parallel()
	for name, damage := range map[string]func(t *testing.T, files []string) error{
		"oldest segment removed": func(t *testing.T, f []string) error { return os.Remove(f[0]) },
		"middle segment removed": func(t *testing.T, f []string) error { return os.Remove(f[1]) },
		"segment renamed":        func(t *testing.T, f []string) error { return os.Rename(f[0], f[0][:len(f[0])-5]+"f.log") },
		"segment emptied":        func(t *testing.T, f []string) error { return os.Truncate(f[2], 0) },
		"newest cut too far":     func(t *testing.T, f []string) error { return os.Truncate(f[2], 40) },
		"older segment cut":      func(t *testing.T, f []string) error { return os.Truncate(f[1], 5000) },
		"foreign file": func(t *testing.T, f []string) error {
			return os.WriteFile(filepath.Join(filepath.Dir(f[0]), "notes.txt"), nil, 0o600)
		},
		"copy of a segment": func(t *testing.T, f []string) error {
			b, err := os.ReadFile(f[0])
			return errors.Join(err, os.WriteFile(filepath.Join(filepath.Dir(f[0]), "audit-ffffffffffffffff.log"), b, 0o600))
		},
	} {
		cfg, files := rotated(t)
		if err := damage(t, files); err != nil {
			t.Fatal(err)
		}
		if l, err := Open(cfg); !errors.Is(err, ErrCorrupt) || l != nil {
			t.Errorf("%s: Open gives %v, %v; want ErrCorrupt", name, l, err)
		} else if !strings.Contains(err.Error(), "move the folder away") {
			t.Errorf("%s: %q does not say what to do", name, err)
		}
	}
}

func TestNewestSegmentRemovedIsOnlyVisibleByAnchor(t *testing.T) {
	t.Parallel()
	cfg := testConfig(t.TempDir())
	cfg.SegmentBytes = 2 * MaxBody
	l := mustOpen(t, cfg)
	for i := range 200 {
		mustAppend(t, l, command(byte(i)))
	}
	newest := l.segments[len(l.segments)-1].path
	if err := errors.Join(l.Close(), os.Remove(newest)); err != nil {
		t.Fatal(err)
	}
	// Documented limit: a log that was cut at a record boundary verifies; the
	// head, anchored elsewhere, shows it.
	chain, _ := export(t, mustOpen(t, cfg))
	if chain.Last >= 200 {
		t.Errorf("last record %d: the newest segment was not removed", chain.Last)
	}
}

func TestPowerCutDuringRotation(t *testing.T) {
	t.Parallel()
	cfg, files := rotated(t)
	// The next segment was being written, and an old one was not yet removed.
	half := filepath.Join(cfg.Dir, "audit-00000000000fffff.log.half")
	if err := os.WriteFile(half, []byte("davit-aud"), 0o600); err != nil {
		t.Fatal(err)
	}
	cfg.Segments = 2
	l := mustOpen(t, cfg)
	if _, err := os.Stat(half); !errors.Is(err, os.ErrNotExist) {
		t.Error("the half-made segment is still there")
	}
	for i := range 100 {
		mustAppend(t, l, command(byte(i)))
	}
	if _, err := os.Stat(files[0]); !errors.Is(err, os.ErrNotExist) {
		t.Error("the oldest segment is still there")
	}
	export(t, l)
}
