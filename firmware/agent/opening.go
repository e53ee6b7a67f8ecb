// SPDX-License-Identifier: Apache-2.0

package agent

import (
	"context"
	"fmt"

	"github.com/davit-dpu/davit/firmware/control"
	"github.com/davit-dpu/davit/firmware/supervise"
)

// step is one part of the agent to be opened.
type step struct {
	name string
	open func(context.Context) error
}

// open takes steps in order, up to the first that fails.
func (a *agent) open(ctx context.Context, steps []step) error {
	for _, s := range steps {
		if err := s.open(ctx); err != nil {
			return fmt.Errorf("%s: %w", s.name, err)
		}
	}
	return nil
}

// awaitOpen waits until the agent is open: before, nothing is handed to a vcard.
func (l *vcardLink) awaitOpen(ctx context.Context, proc supervise.Process, client *control.Client) error {
	select {
	case <-l.opened:
		return nil
	case <-ctx.Done():
		return ctx.Err()
	case <-client.Done():
		return fmt.Errorf("connection ended: %w", client.Err())
	case <-proc.Done():
		return fmt.Errorf("process ended: %s", proc.Exit())
	}
}
