// SPDX-License-Identifier: Apache-2.0

package supervise

import (
	"strings"
	"testing"
	"time"
)

var testPolicy = Policy{
	MinBackoff: time.Second,
	MaxBackoff: 5 * time.Second,
	Stable:     time.Minute,
	Burst:      4,
	Window:     time.Minute,
}

func TestHistory(t *testing.T) {
	t.Parallel()
	cooling := testPolicy
	cooling.CoolDown = 10 * time.Minute
	type run struct {
		up     time.Duration // how long the child was up
		action Action
		after  time.Duration
	}
	crash := func(action Action, after time.Duration) run { return run{0, action, after} }
	tests := map[string]struct {
		policy Policy
		runs   []run
	}{
		"gives up": {testPolicy, []run{
			crash(Restart, time.Second), crash(Restart, 2*time.Second), crash(Restart, 4*time.Second), crash(Restart, 5*time.Second), crash(GiveUp, 0),
		}},
		"cools down": {cooling, []run{
			crash(Restart, time.Second), crash(Restart, 2*time.Second), crash(Restart, 4*time.Second), crash(Restart, 5*time.Second),
			crash(Cool, 10*time.Minute), crash(Restart, time.Second),
		}},
		"stable run starts anew": {testPolicy, []run{
			crash(Restart, time.Second), crash(Restart, 2*time.Second), crash(Restart, 4*time.Second), crash(Restart, 5*time.Second),
			{time.Minute, Restart, time.Second}, crash(Restart, 2*time.Second),
		}},
		"slow failures stay within the window": {testPolicy, []run{
			{16 * time.Second, Restart, time.Second}, {16 * time.Second, Restart, 2 * time.Second}, {16 * time.Second, Restart, 4 * time.Second},
			{16 * time.Second, Restart, 5 * time.Second}, {16 * time.Second, Restart, 5 * time.Second}, {16 * time.Second, Restart, 5 * time.Second},
		}},
		"no restarts at all": {Policy{MinBackoff: 1, MaxBackoff: 1, Stable: 1, Window: 1}, []run{{0, GiveUp, 0}}},
	}
	for name, c := range tests {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			if err := c.policy.Validate(); err != nil {
				t.Fatal(err)
			}
			var h History
			now := time.Unix(1000, 0)
			for i, r := range c.runs {
				d := h.Next(c.policy, now, now.Add(r.up))
				if d.Action != r.action || d.After != r.after || d.Reason == "" {
					t.Fatalf("run %d: got %+v, want action %d after %v", i, d, r.action, r.after)
				}
				now = now.Add(r.up + d.After)
			}
		})
	}
}

// TestWindowBound states what a policy promises: however long a child lives
// (short of stable), no window holds more than Burst restarts.
func TestWindowBound(t *testing.T) {
	t.Parallel()
	p := testPolicy
	p.CoolDown = p.Window
	for up := time.Duration(0); up < p.Stable; up += 700 * time.Millisecond {
		var h History
		var restarts []time.Time
		now := time.Unix(1000, 0)
		for range 200 {
			d := h.Next(p, now, now.Add(up))
			now = now.Add(up)
			restarts = append(restarts, now)
			now = now.Add(d.After)
			n := 0
			for _, r := range restarts {
				if r.After(now.Add(-p.Window)) {
					n++
				}
			}
			if n > p.Burst+1 { // the one that began a cool-down is no restart yet
				t.Fatalf("up %v: %d restarts within %v", up, n, p.Window)
			}
		}
	}
}

func TestPolicyValidate(t *testing.T) {
	t.Parallel()
	if err := DefaultPolicy.Validate(); err != nil {
		t.Errorf("DefaultPolicy: %v", err)
	}
	for field, change := range map[string]func(*Policy){
		"MinBackoff": func(p *Policy) { p.MinBackoff = 0 },
		"MaxBackoff": func(p *Policy) { p.MaxBackoff = 0 },
		"Burst":      func(p *Policy) { p.Burst = -1 },
		"Window":     func(p *Policy) { p.Window = 0 },
		"CoolDown":   func(p *Policy) { p.CoolDown = -1 },
	} {
		p := testPolicy
		change(&p)
		if err := p.Validate(); err == nil || !strings.Contains(err.Error(), field) {
			t.Errorf("bad %s: error %v does not name it", field, err)
		}
	}
}
