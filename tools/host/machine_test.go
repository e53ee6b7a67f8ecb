// SPDX-License-Identifier: Apache-2.0

package host

import (
	"log/slog"
	"os"
	"path/filepath"
	"testing"
)

func TestProbe(t *testing.T) {
	t.Parallel()
	cfg := testConfig(t)
	cfg.Log = slog.New(slog.DiscardHandler)
	m, err := probeMachine(t.Context(), cfg)
	if err != nil || m != (machine{arch: "x86_64", accel: AccelTCG, sandbox: true}) {
		t.Errorf("probed %+v, %v", m, err)
	}
	other := cfg
	other.QEMU = filepath.Join(filepath.Dir(cfg.QEMU), "qemu-system-riscv64")
	if m, err := probeMachine(t.Context(), other); err == nil || m != (machine{}) {
		t.Errorf("riscv64: %+v, %v", m, err)
	}
}

// TestAccelNote: the fake QEMU runs no guest, so KVM is never chosen; the
// answer is kept for this boot, and asked for again after the next.
func TestAccelNote(t *testing.T) {
	t.Parallel()
	cfg := testConfig(t)
	cfg.Log = slog.New(slog.DiscardHandler)
	if err := os.Mkdir(cfg.RunDir, 0o700); err != nil {
		t.Fatal(err)
	}
	path := filepath.Join(cfg.RunDir, "accel.json")
	if err := writeJSON(path, accelNote{Boot: "an earlier boot", QEMU: cfg.QEMU, Accel: AccelKVM}); err != nil {
		t.Fatal(err)
	}
	if a, err := chooseAccel(t.Context(), cfg, "x86_64"); a != AccelTCG || err != nil {
		t.Errorf("chose %s, %v", a, err)
	}
	var note accelNote
	if err := readJSON(path, &note); err != nil || note.Accel != AccelTCG {
		t.Fatalf("kept %+v, %v", note, err)
	}
	note.Accel = AccelKVM
	if err := writeJSON(path, note); err != nil {
		t.Fatal(err)
	}
	if a, err := chooseAccel(t.Context(), cfg, "x86_64"); a != AccelKVM || err != nil {
		t.Errorf("did not believe the note: %s, %v", a, err)
	}
}
