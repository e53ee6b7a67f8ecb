// SPDX-License-Identifier: Apache-2.0

package supervise

import (
	"errors"
	"fmt"
	"time"
)

// Policy bounds restarts.
type Policy struct {
	// MinBackoff is the wait before the first restart; it doubles with each
	// further one up to MaxBackoff.
	MinBackoff, MaxBackoff time.Duration
	// Stable is how long a child must have been up for its end to count as the
	// first failure again: backoff and budget start anew.
	Stable time.Duration
	// At most Burst restarts happen within any Window.
	Burst  int
	Window time.Duration
	// CoolDown is the wait once the budget is used up, after which it starts
	// anew. Zero gives up instead.
	CoolDown time.Duration
}

// DefaultPolicy is for the card's own programs: quick at first, at most ten
// restarts a minute, giving up after that.
var DefaultPolicy = Policy{
	MinBackoff: 100 * time.Millisecond,
	MaxBackoff: 5 * time.Second,
	Stable:     time.Minute,
	Burst:      10,
	Window:     time.Minute,
}

// Validate says what is wrong with a policy.
func (p Policy) Validate() error {
	switch {
	case p.MinBackoff <= 0:
		return errors.New("restart policy: MinBackoff must be positive")
	case p.MaxBackoff < p.MinBackoff:
		return errors.New("restart policy: MaxBackoff is less than MinBackoff")
	case p.Burst < 0:
		return errors.New("restart policy: Burst is negative")
	case p.Window <= 0 || p.Stable <= 0:
		return errors.New("restart policy: Window and Stable must be positive")
	case p.CoolDown < 0:
		return errors.New("restart policy: CoolDown is negative")
	}
	return nil
}

// Action is what a Decision wants.
type Action int

// Actions.
const (
	Restart Action = iota // start again after Decision.After
	Cool                  // the same, and the budget was used up
	GiveUp                // never again
)

// Decision is what to do after a child ended.
type Decision struct {
	Action Action
	After  time.Duration
	Reason string
}

// History remembers the restarts of one child. The zero History is ready.
type History struct {
	restarts []time.Time // within the window, oldest first
	inRow    int         // restarts since the child was last stable
}

// Next decides about a child that started and ended at the given times, and
// counts the restart it decides for.
func (h *History) Next(p Policy, started, ended time.Time) Decision {
	if ended.Sub(started) >= p.Stable {
		*h = History{}
	}
	h.forget(ended.Add(-p.Window))
	if len(h.restarts) >= p.Burst {
		reason := fmt.Sprintf("%d restarts within %v are the limit", p.Burst, p.Window)
		if p.CoolDown == 0 {
			return Decision{Action: GiveUp, Reason: reason}
		}
		*h = History{}
		return Decision{Action: Cool, After: p.CoolDown, Reason: fmt.Sprintf("%s; next try in %v", reason, p.CoolDown)}
	}
	after := p.backoff(h.inRow)
	h.inRow++
	h.restarts = append(h.restarts, ended)
	return Decision{Action: Restart, After: after, Reason: fmt.Sprintf("restart %d of %d within %v, in %v",
		len(h.restarts), p.Burst, p.Window, after)}
}

func (h *History) forget(before time.Time) {
	n := 0
	for n < len(h.restarts) && !h.restarts[n].After(before) {
		n++
	}
	h.restarts = h.restarts[n:]
}

func (p Policy) backoff(inRow int) time.Duration {
	d := p.MinBackoff
	for range inRow {
		if d >= p.MaxBackoff/2 {
			return p.MaxBackoff
		}
		d *= 2
	}
	return min(d, p.MaxBackoff)
}
