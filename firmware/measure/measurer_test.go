// SPDX-License-Identifier: Apache-2.0

package measure

import (
	"context"
	"errors"
	"os"
	"path/filepath"
	"testing"

	"github.com/davit-dpu/davit/firmware/eventlog"
	"github.com/davit-dpu/davit/firmware/tpm"
	"github.com/davit-dpu/davit/firmware/tpm/tpmtest"
)

type fixture struct {
	t    *testing.T
	emu  *tpmtest.Emulator
	tpm  *tpm.TPM
	path string
}

func setUp(t *testing.T) *fixture {
	t.Helper()
	emu := tpmtest.Start(t)
	f := &fixture{t: t, emu: emu, path: filepath.Join(t.TempDir(), "eventlog")}
	f.openTPM()
	return f
}

func (f *fixture) openTPM() {
	f.t.Helper()
	opened, err := tpm.Open(f.emu.Socket)
	if err != nil {
		f.t.Fatal(err)
	}
	f.t.Cleanup(func() { opened.Close() })
	f.tpm = opened
}

func (f *fixture) open() *Measurer {
	f.t.Helper()
	m, err := Open(f.t.Context(), f.tpm, f.path, nil)
	if err != nil {
		f.t.Fatal(err)
	}
	f.t.Cleanup(func() { m.Close() })
	return m
}

// replays fails the test unless the log on disk gives the TPM's values.
func (f *fixture) replays(events int) {
	f.t.Helper()
	data, err := os.ReadFile(f.path)
	if err != nil {
		f.t.Fatal(err)
	}
	log, err := eventlog.Parse(data)
	if err != nil {
		f.t.Fatal(err)
	}
	if log.Len() != events {
		f.t.Errorf("%d events, want %d", log.Len(), events)
	}
	for _, bank := range f.tpm.Banks() {
		want, err := log.Replay(bank)
		if err != nil {
			f.t.Fatal(err)
		}
		got, err := f.tpm.ReadPCRs(f.t.Context(), bank, tablePCRs()...)
		if err != nil {
			f.t.Fatal(err)
		}
		if pcr, differ := difference(bank, want, got); differ {
			f.t.Errorf("pcr %d of %v = %x, replay gives %x", pcr, bank, got[pcr], want[pcr])
		}
	}
}

func TestMeasure(t *testing.T) {
	t.Parallel()
	f := setUp(t)
	m := f.open()
	dir := t.TempDir()
	program := filepath.Join(dir, "davitd")
	if err := os.WriteFile(program, []byte("program"), 0o700); err != nil {
		t.Fatal(err)
	}
	got, err := m.File(t.Context(), KindProgram, program)
	if err != nil {
		t.Fatal(err)
	}
	defer got.Close()
	if content, err := got.Read(); err != nil || string(content) != "program" {
		t.Errorf("content %q, %v", content, err)
	}
	if err := m.Bytes(t.Context(), KindLifecycle, "lifecycle", []byte("production")); err != nil {
		t.Fatal(err)
	}
	f.replays(2)
	err = m.Snapshot(func(log []byte) error {
		parsed, err := eventlog.Parse(log)
		if err != nil {
			return err
		}
		events := parsed.Events()
		first, err := events[0].Measurement()
		if err != nil {
			return err
		}
		if events[0].PCR != 8 || first.Kind != "program" || first.Items[0].Name != program || first.Items[0].Digest != got.Digest {
			t.Errorf("first event %+v in pcr %d", first, events[0].PCR)
		}
		if events[1].PCR != 14 {
			t.Errorf("second event in pcr %d, want 14", events[1].PCR)
		}
		return nil
	})
	if err != nil {
		t.Error(err)
	}
}

func TestOpenWithoutTPM(t *testing.T) {
	t.Parallel()
	path := filepath.Join(t.TempDir(), "log")
	if m, err := Open(t.Context(), nil, path, nil); !errors.Is(err, ErrNoTPM) || m != nil {
		t.Errorf("Open without TPM = %v, %v, want %v", m, err, ErrNoTPM)
	}
	m, err := OpenUnanchored(path)
	if err != nil {
		t.Fatal(err)
	}
	if m.Anchored() {
		t.Errorf("a measurer without TPM says it is anchored")
	}
	if err := m.Bytes(t.Context(), KindConfig, "config", nil); err != nil {
		t.Error(err)
	}
	if err := m.Close(); err != nil {
		t.Error(err)
	}
	if err := m.Bytes(t.Context(), KindConfig, "config", nil); !errors.Is(err, ErrClosed) {
		t.Errorf("Bytes after Close = %v, want %v", err, ErrClosed)
	}
	if err := m.Snapshot(func([]byte) error { return nil }); !errors.Is(err, ErrClosed) {
		t.Errorf("Snapshot after Close = %v, want %v", err, ErrClosed)
	}
}

func TestRefusals(t *testing.T) {
	t.Parallel()
	f := setUp(t)
	m := f.open()
	if err := m.Bytes(t.Context(), "nonsense", "x", nil); !errors.Is(err, ErrUnknownKind) {
		t.Errorf("Bytes of an unknown kind = %v, want %v", err, ErrUnknownKind)
	}
	if err := m.Bytes(t.Context(), KindConfig, "", nil); err == nil {
		t.Errorf("Bytes without a name succeeds")
	}
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if err := m.Bytes(ctx, KindConfig, "x", nil); !errors.Is(err, context.Canceled) {
		t.Errorf("Bytes with an ended context = %v, want %v", err, context.Canceled)
	}
	if other, err := Open(t.Context(), f.tpm, f.path, nil); !errors.Is(err, eventlog.ErrBusy) || other != nil {
		t.Errorf("second Open = %v, %v, want %v", other, err, eventlog.ErrBusy)
	}
	f.replays(0)
}

func TestExtendFails(t *testing.T) {
	t.Parallel()
	f := setUp(t)
	m := f.open()
	if err := m.Bytes(t.Context(), KindConfig, "one", nil); err != nil {
		t.Fatal(err)
	}
	f.emu.Stop()
	if err := m.Bytes(t.Context(), KindConfig, "two", nil); !errors.Is(err, ErrBroken) {
		t.Errorf("Bytes with the TPM gone = %v, want %v", err, ErrBroken)
	}
	if !marked(t, f.path) {
		t.Errorf("the log is not marked")
	}
	plain := filepath.Join(t.TempDir(), "plain")
	if err := os.WriteFile(plain, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	if got, err := m.File(t.Context(), KindConfig, plain); !errors.Is(err, ErrBroken) || got != nil {
		t.Errorf("File after that = %v, %v, want %v", got, err, ErrBroken)
	}
}
