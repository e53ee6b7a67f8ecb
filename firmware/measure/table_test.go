// SPDX-License-Identifier: Apache-2.0

package measure

import (
	"bytes"
	"testing"

	"github.com/davit-dpu/davit/firmware/eventlog"
)

func TestTable(t *testing.T) {
	t.Parallel()
	seenPCR, seenKind := map[int]bool{}, map[Kind]bool{}
	for _, row := range Table() {
		// Of the operating system's PCRs, 9 to 13 belong to what boots us, and 15 is kept free.
		if (row.PCR != 8 && row.PCR != 14) || seenPCR[row.PCR] {
			t.Errorf("pcr %d is not ours, or there twice", row.PCR)
		}
		seenPCR[row.PCR] = true
		if row.Holds == "" || row.Why == "" || len(row.Kinds) == 0 {
			t.Errorf("row of pcr %d is not filled in", row.PCR)
		}
		for _, k := range row.Kinds {
			if seenKind[k] {
				t.Errorf("kind %s is in two rows", k)
			}
			seenKind[k] = true
		}
	}
	for _, k := range []Kind{KindInit, KindProgram, KindModule, KindConfig, KindLifecycle} {
		if _, err := register(k); err != nil {
			t.Errorf("kind %s has no row", k)
		}
	}
	if !bytes.Equal(eventlog.Initial(eventlog.SHA256, 8), make([]byte, 32)) {
		t.Errorf("pcr 8 does not start at zero")
	}
}
