// SPDX-License-Identifier: Apache-2.0

package agent

import (
	"context"
	"fmt"
	"log/slog"
	"net"
	"net/netip"
	"path/filepath"
	"sync"
	"time"

	"github.com/davit-dpu/davit/firmware/mailbox"
	"github.com/davit-dpu/davit/firmware/mailbox/door"
	"github.com/davit-dpu/davit/firmware/spec"
	"github.com/davit-dpu/davit/firmware/state"
)

// doorRunner keeps one listening door open.
type doorRunner struct {
	name      string
	server    *door.Server
	listen    func(context.Context) (net.Listener, error)
	address   netip.Addr // that it listens on; zero for a door that is not of a network
	log       *slog.Logger
	condition state.Cell[spec.Condition]
}

// openDoors makes the servers; run opens their listeners. A door is added
// here: a name, a server, and how it listens.
func (a *agent) openDoors(context.Context) error {
	bus, err := door.NewServer(door.Config{Door: mailbox.Door{Name: "bus"}, Mailbox: a.mailbox, Log: a.log})
	if err != nil {
		return err
	}
	a.busDoor = bus
	local, err := door.NewServer(door.Config{Door: mailbox.Door{Name: "unix"}, Mailbox: a.mailbox, Log: a.log})
	if err != nil {
		return err
	}
	socket := filepath.Join(a.cfg.RunDir, "mailbox.sock")
	a.doors = append(a.doors, &doorRunner{name: "unix", server: local, log: a.log,
		listen: func(context.Context) (net.Listener, error) { return door.ListenUnix(socket) }})
	address := a.config.Management.Listen
	if address != "" {
		identity, binding, err := door.Identity()
		if err != nil {
			return fmt.Errorf("tls identity: %w", err)
		}
		server, err := door.NewServer(door.Config{
			Door: mailbox.Door{Name: "tls", Binding: binding}, Mailbox: a.mailbox, Log: a.log, TLS: identity,
		})
		if err != nil {
			return err
		}
		at, err := netip.ParseAddrPort(address)
		if err != nil {
			return fmt.Errorf("tls door: %w", err)
		}
		a.doors = append(a.doors, &doorRunner{name: "tls", server: server, address: at.Addr(), log: a.log,
			listen: func(ctx context.Context) (net.Listener, error) { return door.ListenTCP(ctx, address) }})
	}
	for _, d := range a.doors {
		d.condition.Set(spec.Condition{Phase: spec.PhasePending, Reason: "not open yet", Since: a.started})
	}
	return nil
}

// run keeps the door listening until ctx ends; tried gets one message after the
// first attempt, however it went: a port that is taken must not keep the agent
// from being ready for the other doors.
func (d *doorRunner) run(ctx context.Context, tried chan<- struct{}) {
	var once sync.Once
	for ctx.Err() == nil {
		l, err := d.listen(ctx)
		if err == nil {
			d.set(spec.PhaseReady, "listens on "+l.Addr().String())
		}
		once.Do(func() { tried <- struct{}{} })
		if err == nil {
			err = d.server.Serve(ctx, l)
		}
		if ctx.Err() != nil {
			return
		}
		d.set(spec.PhaseFailed, fmt.Sprint(err))
		d.log.Error("door", "door", d.name, "err", err)
		pause(ctx, time.Second)
	}
}

func (d *doorRunner) set(p spec.Phase, reason string) {
	d.condition.Set(spec.Condition{Phase: p, Reason: reason, Since: time.Now()})
}

// current is the door's condition now. A door listens before its address is
// there (door.ListenTCP), and goes on when it is lost; nobody reaches it then.
func (d *doorRunner) current() spec.Condition {
	c, _ := d.condition.Get()
	if c.Phase == spec.PhaseReady && d.address.IsValid() && !door.Present(d.address) {
		c.Phase, c.Reason = spec.PhasePending, c.Reason+", an address that the card does not have now"
	}
	return c
}
