// SPDX-License-Identifier: Apache-2.0

package evidence

import (
	"bytes"
	"encoding/json"
	"errors"
	"os"
	"strings"
	"testing"
)

// Evidence that a card gave: edk2 and systemd-stub on the emulated board, the
// kernel's log, swtpm. Only what its verifier would have to know is exempted.
func TestRealEvidence(t *testing.T) {
	t.Parallel()
	data, err := os.ReadFile("testdata/aavmf-uki.cbor")
	if err != nil {
		t.Fatal(err)
	}
	u, err := Parse(data)
	if err != nil {
		t.Fatal(err)
	}
	expect := Expectations{
		Nonce:     bytes.Repeat([]byte{0x5a}, 32),
		Registers: map[string]int{"init": 8, "module": 8, "config": 14, "lifecycle": 14},
		Exempt:    []string{"ak.identity", "card.identity", "ek.certificate", "pcr.reference"},
	}
	r := Appraise(u, expect)
	checkFailed(t, r)
	if len(r.Events) != 40 {
		t.Errorf("%d events, want 40", len(r.Events))
	}
	var table, events strings.Builder
	if err := errors.Join(r.WriteTable(&table), r.WriteEvents(&events)); err != nil {
		t.Fatal(err)
	}
	if !strings.Contains(table.String(), "passed, with 4 claims exempted") || !strings.Contains(events.String(), "module /tpm_tis_core.ko and 1 more") {
		t.Errorf("report:\n%s\n%s", table.String(), events.String())
	}
}

// Whichever byte of real evidence is changed, either a claim fails, or what
// changed is something that the reports call unverified: the type or data of a
// firmware event that do not hash to its digest, or a log's header.
func TestRealEvidenceAltered(t *testing.T) {
	t.Parallel()
	data, err := os.ReadFile("testdata/aavmf-uki.cbor")
	if err != nil {
		t.Fatal(err)
	}
	expect := Expectations{
		Nonce:     bytes.Repeat([]byte{0x5a}, 32),
		Registers: map[string]int{"init": 8, "module": 8, "config": 14, "lifecycle": 14},
		Exempt:    []string{"ak.identity", "card.identity", "ek.certificate", "pcr.reference"},
	}
	trusted := func(u *Unverified) string {
		r := Appraise(u, expect)
		if !r.Passed {
			return ""
		}
		for i := range r.Events {
			if e := &r.Events[i]; e.Log == "firmware" {
				// Altered data may no longer hash; that is told, and no more.
				e.Type, e.Data, e.DataHashed = "", nil, false
			}
		}
		out, err := json.Marshal(r.Events)
		if err != nil {
			t.Fatal(err)
		}
		out = append(out, r.AttestationKey...)
		out = append(out, r.CardID...)
		return string(append(out, r.BootReport...))
	}
	want := trusted(mustParse(t, data))
	if want == "" {
		t.Fatal("the evidence does not pass as it is")
	}
	passed := 0
	for offset := 0; offset < len(data); offset += 29 {
		altered := bytes.Clone(data)
		altered[offset] ^= 0x11
		u, err := Parse(altered)
		if err != nil {
			continue
		}
		if got := trusted(u); got != "" {
			passed++
			if got != want {
				t.Errorf("with byte %d altered it passes and says:\n%s", offset, got)
			}
		}
	}
	if passed == 0 {
		t.Errorf("no altered byte passes: the test does not see unverified data any more")
	}
}

func TestReportJSON(t *testing.T) {
	t.Parallel()
	c := newCard(t)
	d := c.document()
	c.seal(&d)
	out, err := json.Marshal(Appraise(parsed(t, d), c.expectations()))
	if err != nil {
		t.Fatal(err)
	}
	var back Report
	if err := json.Unmarshal(out, &back); err != nil {
		t.Fatal(err)
	}
	if !back.Passed || len(back.Claims) == 0 || back.CardID == "" {
		t.Errorf("report %s", out)
	}
	if _, err := back.Verified(); !errors.Is(err, ErrNotTrusted) {
		t.Errorf("a report read from JSON counts as verified")
	}
}

func TestTableIsPrintable(t *testing.T) {
	t.Parallel()
	r := Report{Claims: []Claim{{Name: "tpm", Verdict: Failed, Seen: "\x1b[2Jevil\n\u202e"}}}
	var out strings.Builder
	if err := r.WriteTable(&out); err != nil {
		t.Fatal(err)
	}
	if strings.ContainsAny(out.String(), "\x1b\u202e") {
		t.Errorf("table %q", out.String())
	}
}
