// SPDX-License-Identifier: Apache-2.0

package measure

import (
	"errors"
	"os"
	"testing"

	"github.com/davit-dpu/davit/firmware/eventlog"
)

// init measures, then hands over to the agent, which may be killed and come
// back any number of times.
func TestHandOver(t *testing.T) {
	t.Parallel()
	f := setUp(t)
	for n := range 3 {
		m := f.open()
		if err := m.Bytes(t.Context(), KindConfig, "config", []byte{byte(n)}); err != nil {
			t.Fatal(err)
		}
		if err := m.Close(); err != nil {
			t.Fatal(err)
		}
		f.replays(n + 1)
	}
}

// A process killed between log and extend leaves an event that the next one
// extends, once.
func TestCrashBeforeExtend(t *testing.T) {
	t.Parallel()
	f := setUp(t)
	m := f.open()
	if err := m.Bytes(t.Context(), KindConfig, "config", nil); err != nil {
		t.Fatal(err)
	}
	e, err := eventlog.Measurement{Kind: string(KindLifecycle), Items: []eventlog.Item{{Name: "lifecycle"}}}.Event(14, f.tpm.Banks()...)
	if err != nil {
		t.Fatal(err)
	}
	if err := m.file.Append(e); err != nil {
		t.Fatal(err)
	}
	if err := m.Close(); err != nil {
		t.Fatal(err)
	}
	for range 2 {
		if err := f.open().Close(); err != nil {
			t.Fatal(err)
		}
		f.replays(2)
	}
}

// A crash within the write of an event leaves a tail that is removed.
func TestCrashWithinWrite(t *testing.T) {
	t.Parallel()
	f := setUp(t)
	m := f.open()
	for _, name := range []string{"one", "two"} {
		if err := m.Bytes(t.Context(), KindConfig, name, nil); err != nil {
			t.Fatal(err)
		}
	}
	if err := m.Close(); err != nil {
		t.Fatal(err)
	}
	file, err := os.OpenFile(f.path, os.O_APPEND|os.O_WRONLY, 0)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := file.Write([]byte{14, 0, 0, 0, 6, 0}); err != nil {
		t.Fatal(err)
	}
	if err := file.Close(); err != nil {
		t.Fatal(err)
	}
	if err := f.open().Bytes(t.Context(), KindConfig, "three", nil); err != nil {
		t.Fatal(err)
	}
	f.replays(3)
}

func TestPartedLogIsRefused(t *testing.T) {
	t.Parallel()
	for name, part := range map[string]func(*testing.T, *fixture){
		"log lost":             func(t *testing.T, f *fixture) { removeFile(t, f.path) },
		"last event removed":   func(t *testing.T, f *fixture) { cutEvents(t, f.path, 1) },
		"two events to extend": func(t *testing.T, f *fixture) { f.emu.Reset(); f.openTPM() },
		"extended by others": func(t *testing.T, f *fixture) {
			if err := f.tpm.Extend(t.Context(), 14, eventlog.DigestsOf(nil, f.tpm.Banks()...)...); err != nil {
				t.Fatal(err)
			}
		},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			f := setUp(t)
			m := f.open()
			for _, name := range []string{"one", "two"} {
				if err := m.Bytes(t.Context(), KindConfig, name, nil); err != nil {
					t.Fatal(err)
				}
			}
			if err := m.Close(); err != nil {
				t.Fatal(err)
			}
			part(t, f)
			for _, when := range []string{"at first", "again"} {
				if m, err := Open(t.Context(), f.tpm, f.path, nil); !errors.Is(err, ErrBroken) || m != nil {
					t.Errorf("%s: Open = %v, %v, want %v", when, m, err, ErrBroken)
				}
			}
			if !marked(t, f.path) {
				t.Errorf("the log is not marked")
			}
		})
	}
}

// Events of the firmware in our PCRs (shim's, GRUB's) do not count as foreign.
func TestFirmwareLogBefore(t *testing.T) {
	t.Parallel()
	f := setUp(t)
	firmware, err := eventlog.New(f.tpm.Banks()...)
	if err != nil {
		t.Fatal(err)
	}
	for _, pcr := range []int{0, 14} {
		digests := eventlog.DigestsOf([]byte("firmware"), f.tpm.Banks()...)
		if err := firmware.Append(eventlog.Event{PCR: uint32(pcr), Type: 4, Digests: digests}); err != nil {
			t.Fatal(err)
		}
		if err := f.tpm.Extend(t.Context(), pcr, digests...); err != nil {
			t.Fatal(err)
		}
	}
	m, err := Open(t.Context(), f.tpm, f.path, firmware.Encode())
	if err != nil {
		t.Fatal(err)
	}
	if err := m.Bytes(t.Context(), KindConfig, "config", nil); err != nil {
		t.Error(err)
	}
	if err := m.Close(); err != nil {
		t.Error(err)
	}
	if m, err := Open(t.Context(), f.tpm, f.path, []byte("garbage")); err == nil || m != nil {
		t.Errorf("Open with a firmware log that is none = %v, %v, want an error", m, err)
	}
	if m, err := Open(t.Context(), f.tpm, f.path, nil); !errors.Is(err, ErrBroken) || m != nil {
		t.Errorf("Open without the firmware's log = %v, %v, want %v", m, err, ErrBroken)
	}
}

func removeFile(t *testing.T, path string) {
	t.Helper()
	if err := os.Remove(path); err != nil {
		t.Fatal(err)
	}
}

// cutEvents takes n events off the end of a log.
func cutEvents(t *testing.T, path string, n int) {
	t.Helper()
	data, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	log, err := eventlog.Parse(data)
	if err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(path, log.Before(log.Len()-n).Encode(), 0o600); err != nil {
		t.Fatal(err)
	}
}

func marked(t *testing.T, path string) bool {
	t.Helper()
	data, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	log, err := eventlog.Parse(data)
	if err != nil {
		t.Fatal(err)
	}
	for _, e := range log.Events() {
		if _, ok := e.Broken(); ok {
			return true
		}
	}
	return false
}
