// SPDX-License-Identifier: Apache-2.0

package mailbox

import (
	"crypto/sha256"
	"hash"
	"log/slog"
	"sync"
	"time"

	"github.com/davit-dpu/davit/firmware/audit"
)

// Budget of records about requests that nobody signed: a burst, and then one
// for each refill. What is beyond is counted and summed up.
const (
	openBurst    = 128
	openRefill   = 10 * time.Second
	summaryEvery = time.Minute
)

// openRecords records requests that nobody signed: public requests, and
// refusals before a signature was verified. Anybody can cause these, and the
// log is bounded, so they have a budget: otherwise whoever can reach a door
// could push the records about signed commands out of the log. Nothing goes
// unmentioned: a summary record holds the number of the others and a hash over
// their digests.
type openRecords struct {
	audit Auditor
	log   *slog.Logger
	now   func() time.Time

	mu       sync.Mutex
	tokens   int         // records that may be written now; guarded by mu
	refilled time.Time   // guarded by mu
	count    uint64      // requests not yet summed up; guarded by mu
	sum      hash.Hash   // over their digests; guarded by mu
	timer    *time.Timer // writes the summary; guarded by mu
}

// add records a request and returns the record's index; 0 if it will be part
// of a summary, or if the log takes no records. A public request is answered
// even then: a card whose log is broken must still be able to say so.
func (o *openRecords) add(e audit.Entry) uint64 {
	if !o.spend() {
		o.fold(Digest(e.Command))
		return 0
	}
	index, err := o.audit.Append(e)
	if err != nil {
		o.log.Error("mailbox: record request", "op", e.Op, "code", e.Code, "err", err)
		return 0
	}
	return index
}

// spend takes a token if there is one.
func (o *openRecords) spend() bool {
	o.mu.Lock()
	defer o.mu.Unlock()
	now := o.now()
	if gained := now.Sub(o.refilled) / openRefill; gained > 0 {
		o.tokens = min(openBurst, o.tokens+int(min(gained, openBurst)))
		o.refilled = o.refilled.Add(gained * openRefill)
	} else if now.Before(o.refilled) {
		o.refilled = now // the clock was set back
	}
	if o.tokens == 0 {
		return false
	}
	o.tokens--
	return true
}

// fold counts a request for the next summary.
func (o *openRecords) fold(digest Digest) {
	o.mu.Lock()
	defer o.mu.Unlock()
	if o.count == 0 {
		o.sum = sha256.New()
		o.timer = time.AfterFunc(summaryEvery, o.summarise)
	}
	o.count++
	o.sum.Write(digest[:])
}

// summarise writes the summary record.
func (o *openRecords) summarise() {
	o.mu.Lock()
	entry := audit.Entry{
		Time: o.now(), Kind: audit.KindSummary, Count: o.count,
		Reason: "requests that nobody signed, beyond the budget of records for them",
	}
	if o.count > 0 {
		o.sum.Sum(entry.Command[:0])
	}
	o.count = 0
	o.mu.Unlock()
	if entry.Count == 0 {
		return
	}
	if _, err := o.audit.Append(entry); err != nil {
		o.log.Error("mailbox: record summary", "count", entry.Count, "err", err)
	}
}

func (o *openRecords) close() {
	o.mu.Lock()
	if o.timer != nil {
		o.timer.Stop()
	}
	o.mu.Unlock()
	o.summarise()
}
