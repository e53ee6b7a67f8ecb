// SPDX-License-Identifier: Apache-2.0

package rig

import (
	"context"
	"fmt"
	"time"
)

// Step is one row of bringing the server up: what is done, and what then is
// known to be true, because Do proved it.
type Step struct {
	Name string
	Do   func(ctx context.Context) (proved string, err error)
	// Limit is the longest that Do may take.
	Limit time.Duration
}

// Event tells of a step that has begun (Took is 0) or ended.
type Event struct {
	Step   string
	Proved string
	Err    error
	Took   time.Duration
	Since  time.Duration // since the sequence began
}

// Run takes the steps in order, tells each to report when it begins and when
// it ends, and stops at the first error, which names the step.
func Run(ctx context.Context, steps []Step, report func(Event)) error {
	begin := time.Now()
	for _, s := range steps {
		started := time.Now()
		report(Event{Step: s.Name, Since: started.Sub(begin)})
		call, cancel := context.WithTimeoutCause(ctx, s.Limit, fmt.Errorf("it took more than %v", s.Limit))
		proved, err := s.Do(call)
		cancel()
		report(Event{Step: s.Name, Proved: proved, Err: err, Took: max(1, time.Since(started)), Since: time.Since(begin)})
		if err != nil {
			return fmt.Errorf("%s: %w", s.Name, err)
		}
	}
	return nil
}

// PowerOn are the steps from nothing to a card that is booting and a host that
// is waiting for it.
func (s *Server) PowerOn() []Step {
	return []Step{
		{"storage", func(ctx context.Context) (string, error) {
			return "the card's disk holds the image" + s.seedText(), s.makeStorage(ctx)
		}, time.Minute},
		{"tpm", func(ctx context.Context) (string, error) {
			return "swtpm answers with an endorsement key and its certificate", s.StartTPM(ctx)
		}, time.Minute},
		{"card", func(ctx context.Context) (string, error) {
			return fmt.Sprintf("powered on; firmware boots from %s", s.cfg.Boot), s.StartCard(ctx)
		}, time.Minute},
		{"hostd", func(ctx context.Context) (string, error) {
			return "runs, and waits for the card's word", s.StartHost(ctx)
		}, time.Minute},
	}
}

func (s *Server) seedText() string {
	if s.cfg.Seed.Dir == "" {
		return ""
	}
	return " and the operator's boot files and volumes"
}
