// SPDX-License-Identifier: Apache-2.0

package boot

import (
	"errors"
	"os"
	"path/filepath"
	"testing"

	"github.com/davit-dpu/davit/firmware/measure"
	"github.com/davit-dpu/davit/firmware/spec"
)

// What is measured is what was read ahead; a second time, and for a file that
// nobody read ahead, it is what the file holds now.
func TestReadAheadIsWhatIsMeasured(t *testing.T) {
	t.Parallel()
	m := testMachine(t, spec.Development)
	dir := t.TempDir()
	m.cfg.Self, m.cfg.Agent = filepath.Join(dir, "init"), filepath.Join(dir, "davitd")
	m.cfg.Vcard, m.cfg.CardConfig = filepath.Join(dir, "vcard"), filepath.Join(dir, "absent")
	for _, path := range []string{m.cfg.Self, m.cfg.Agent, m.cfg.Vcard} {
		check(t, os.WriteFile(path, []byte("early"), 0o600))
	}
	if _, err := stepCapture(t.Context(), m); err != nil {
		t.Fatal(err)
	}
	// The last one in order: the others have been read when it has.
	if c, err := m.captures.take(m.cfg.CardConfig); !errors.Is(err, os.ErrNotExist) || c != nil {
		t.Errorf("took a file that is not there: %v", err)
	}
	check(t, os.WriteFile(m.cfg.Agent, []byte("late"), 0o600))
	var err error
	m.meter, err = measure.OpenUnanchored(m.cfg.EventLog)
	check(t, err)
	for _, want := range []string{"early", "late"} {
		files, err := m.files(t.Context(), measure.KindProgram, m.cfg.Agent)
		check(t, err)
		if got, err := files[0].Read(); err != nil || string(got) != want {
			t.Errorf("measured %q, %v, want %q", got, err, want)
		}
		check(t, files[0].Close())
	}
	if files, err := m.files(t.Context(), measure.KindProgram, m.cfg.Vcard, m.cfg.CardConfig); err == nil || files != nil {
		t.Error("measured some of several files, of which one is not there")
	}
	if _, err := stepCloseLog(t.Context(), m); err != nil || len(m.captures) != 0 {
		t.Errorf("%d files are left over, %v", len(m.captures), err)
	}
}
