// SPDX-License-Identifier: Apache-2.0

package agent

import (
	"context"
	"io"
	"log/slog"
	"net"
	"net/netip"
	"strings"
	"testing"

	"github.com/davit-dpu/davit/firmware/mailbox"
	"github.com/davit-dpu/davit/firmware/mailbox/door"
	"github.com/davit-dpu/davit/firmware/spec"
)

// TestDoorWaitsForNoAddress: a door opens at the first attempt, whether or not
// its address (192.0.2.1 is nobody's, RFC 5737) is there, and status says which.
func TestDoorWaitsForNoAddress(t *testing.T) {
	for _, tt := range []struct {
		name, address string
		phase         spec.Phase
		reason        string
	}{
		{"there", "127.0.0.1", spec.PhaseReady, "listens on 127.0.0.1:"},
		{"not yet there", "192.0.2.1", spec.PhasePending, "an address that the card does not have now"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			log := slog.New(slog.NewTextHandler(io.Discard, nil))
			server, err := door.NewServer(door.Config{Door: mailbox.Door{Name: "tls"}, Mailbox: new(mailbox.Mailbox), Log: log})
			if err != nil {
				t.Fatal(err)
			}
			d := &doorRunner{name: "tls", server: server, address: netip.MustParseAddr(tt.address), log: log,
				listen: func(ctx context.Context) (net.Listener, error) { return door.ListenTCP(ctx, tt.address+":0") }}
			ctx, cancel := context.WithCancel(t.Context())
			tried, done := make(chan struct{}, 1), make(chan struct{})
			go func() {
				defer close(done)
				d.run(ctx, tried)
			}()
			<-tried
			if c := d.current(); c.Phase != tt.phase || !strings.Contains(c.Reason, tt.reason) {
				t.Errorf("got %s: %s, want %s with %q", c.Phase, c.Reason, tt.phase, tt.reason)
			}
			cancel()
			<-done
		})
	}
}
