// SPDX-License-Identifier: Apache-2.0

package agent

import (
	"context"
	"crypto/rand"
	"fmt"
	"strings"
	"time"

	"github.com/davit-dpu/davit/firmware/evidence"
	"github.com/davit-dpu/davit/firmware/measure"
	"github.com/davit-dpu/davit/firmware/spec"
)

const (
	appraiseEvery = 10 * time.Minute
	appraiseAfter = 5 * time.Second // at most: the vcard comes first, hosts wait for it
)

// selfExemptions are claims that a card cannot judge about itself: they need a
// verifier that knows other cards, TPM makers or releases.
var selfExemptions = []string{"ek.certificate", "pcr.reference", "ak.identity", "card.identity"}

// appraiseSelf proves from time to time that the card's logs replay to what
// its TPM quotes, so that status claims it only while it is so. It proves
// nothing to others: they ask for evidence themselves.
func (a *agent) appraiseSelf(ctx context.Context) {
	a.awaitVcard(ctx, appraiseAfter)
	for ctx.Err() == nil {
		check := a.appraiseOnce(ctx)
		if ctx.Err() != nil {
			return
		}
		if last, _ := a.selfAppraisal.Get(); last.Result != check.Result {
			a.log.Info("measured boot", "result", check.Result, "detail", check.Detail)
		}
		a.selfAppraisal.Set(check)
		pause(ctx, appraiseEvery)
	}
}

// awaitVcard waits until the vcard is ready, but no longer than limit.
func (a *agent) awaitVcard(ctx context.Context, limit time.Duration) {
	over := time.NewTimer(limit)
	defer over.Stop()
	for {
		c, changed := a.vcard.condition.Get()
		if c.Phase == spec.PhaseReady {
			return
		}
		select {
		case <-changed:
		case <-over.C:
			return
		case <-ctx.Done():
			return
		}
	}
}

func (a *agent) appraiseOnce(ctx context.Context) spec.Check {
	check := spec.Check{Name: "measured-boot", Result: "failed"}
	if a.tpm == nil {
		check.Result, check.Detail = "not-checked", "there is no TPM"
		return check
	}
	nonce := make([]byte, 32)
	rand.Read(nonce) // never returns an error
	raw, err := a.attest.Evidence(ctx, nonce)
	if err != nil {
		check.Detail = err.Error()
		return check
	}
	doc, err := evidence.Parse(raw)
	if err != nil {
		check.Detail = err.Error()
		return check
	}
	report := evidence.Appraise(doc, evidence.Expectations{Nonce: nonce, Registers: measure.Registers(), Exempt: selfExemptions, Now: time.Now()})
	var failed []string
	for _, c := range report.Claims {
		if c.Verdict == evidence.Failed {
			failed = append(failed, fmt.Sprintf("%s (%s)", c.Name, c.Reason))
		}
	}
	if len(failed) > 0 {
		check.Detail = strings.Join(failed, "; ")
		return check
	}
	check.Result, check.Detail = "passed", fmt.Sprintf("the logs replayed to the quoted PCRs at %s (%d claims)", time.Now().UTC().Format(time.RFC3339), len(report.Claims))
	return check
}
