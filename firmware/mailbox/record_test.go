// SPDX-License-Identifier: Apache-2.0

package mailbox

import (
	"bytes"
	"crypto/sha256"
	"testing"
	"testing/synctest"
	"time"

	"github.com/davit-dpu/davit/firmware/audit"
)

// A flood of requests that nobody signed leaves a bounded number of records,
// and all the others in summaries.
func TestFloodIsSummedUp(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		f := newFixture(t, func(c *Config) { c.Now = time.Now })
		const flood = 1000
		sum := sha256.New()
		for i := range flood {
			message := []byte{0xff, byte(i), byte(i >> 8)}
			if r := f.submit(message); r.Code != Malformed {
				t.Fatal(r.Code)
			} else if r.AuditIndex == 0 {
				digest := sha256.Sum256(message)
				sum.Write(digest[:])
			}
		}
		if n := len(f.audit.all()); n != openBurst {
			t.Fatalf("%d records, want %d", n, openBurst)
		}
		time.Sleep(summaryEvery)
		synctest.Wait()
		records := f.audit.all()
		last := records[len(records)-1]
		if last.Kind != audit.KindSummary || last.Count != flood-openBurst || !bytes.Equal(last.Command[:], sum.Sum(nil)) {
			t.Fatalf("summary %+v", last)
		}
		if r := f.submit([]byte{0xff}); r.AuditIndex == 0 {
			t.Error("a minute later there is no room for a record")
		}
		f.box.Close()
		if n := len(f.audit.all()); n != openBurst+2 {
			t.Errorf("%d records after Close, want %d", n, openBurst+2)
		}
	})
}

func TestCloseWritesTheSummary(t *testing.T) {
	t.Parallel()
	f := newFixture(t, nil)
	for range openBurst + 5 {
		f.submit([]byte{0xff})
	}
	f.box.Close()
	records := f.audit.all()
	if last := records[len(records)-1]; last.Kind != audit.KindSummary || last.Count != 5 {
		t.Errorf("last record %+v", last)
	}
}
