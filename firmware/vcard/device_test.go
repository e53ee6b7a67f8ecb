// SPDX-License-Identifier: Apache-2.0

package vcard

import (
	"context"
	"log/slog"
	"testing"

	"github.com/davit-dpu/davit/firmware/control"
	"github.com/davit-dpu/davit/firmware/spec"
	"github.com/davit-dpu/davit/firmware/vcard/vcardtest"
	"github.com/davit-dpu/davit/firmware/virtio/vhostuser"
)

// closedConn is a front end that has gone.
type closedConn struct{ vhostuser.Conn }

func (closedConn) Close() error { return nil }

// TestFrontEndGoesWhileItWaits: a front end that leaves while the one before it
// still drains must not leave the device "ready" with nobody there.
func TestFrontEndGoesWhileItWaits(t *testing.T) {
	t.Parallel()
	card, r := New(Config{Log: slog.New(slog.DiscardHandler)}), vcardtest.NewRig(t)
	d, err := card.newDevice(&control.AddDevice{Instance: "web", Name: "root", Queues: 1}, control.DeviceFiles{Volume: r.Volume(1 << 20)})
	if err != nil {
		t.Fatal(err)
	}
	defer d.close()
	old := &session{cancel: func(error) {}}
	d.enter(old)
	d.turn <- struct{}{}
	d.setCondition(old, spec.PhaseReady, "a front end runs 1 of 1 queues")
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	d.serve(ctx, closedConn{}, vhostuser.Options{})
	<-d.turn
	d.ended(ctx, old, context.Canceled)
	if d.condition.Phase != spec.PhasePending || len(d.sessions) != 0 {
		t.Errorf("condition %+v, sessions %v", d.condition, d.sessions)
	}
}
