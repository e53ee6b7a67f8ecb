// SPDX-License-Identifier: Apache-2.0

package vcard

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"time"

	"golang.org/x/sync/errgroup"

	"github.com/davit-dpu/davit/firmware/bus"
	"github.com/davit-dpu/davit/firmware/control"
	"github.com/davit-dpu/davit/firmware/spec"
)

// listTimeout bounds a new host's answer to what runs there.
const listTimeout = 30 * time.Second

// What a host may say of VMMs, and how many doors its clients may open: every
// name it makes up is one more event for the controller, which is cut off when
// too many wait for it. The limits are the card's, not each session's: a host
// begins sessions as it likes.
const (
	reportBurst, reportsPerSec = 4 * control.MaxVMMs, 64
	doorBurst, doorsPerSec     = 4 * control.MaxDoors, 64
)

// errReports ends the session of a host that says too much of its VMMs.
var errReports = fmt.Errorf("%w: more than %d VMM reports a second", bus.ErrProtocol, reportsPerSec)

// link is one bus session.
type link struct {
	session *bus.Session
	orders  *bus.Orders
	ctx     context.Context // ends with the session
	tasks   *errgroup.Group // all that runs for it; use spawn

	mu   sync.Mutex
	over bool // guarded by mu; nothing more is started
}

// spawn runs fn as a part of the session; not at all when that is over.
func (l *link) spawn(fn func()) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if !l.over {
		l.tasks.Go(func() error { fn(); return nil })
	}
}

// awaitEnd is a task of its own, so that spawn never adds to a finished group.
func (l *link) awaitEnd() error {
	<-l.ctx.Done()
	l.mu.Lock()
	defer l.mu.Unlock()
	l.over = true
	return nil
}

// serveHost does everything that one session needs; nothing of it is left when
// it returns.
func (c *Card) serveHost(ctx context.Context, s *bus.Session) error {
	tasks, tctx := errgroup.WithContext(ctx)
	l := &link{session: s, ctx: tctx, tasks: tasks}
	l.orders = bus.NewOrders(s, func(st spec.VMMStatus) {
		if _, ok := c.reports.take(1); !ok {
			tasks.Go(func() error { return errReports })
			return
		}
		c.report(l, st)
	})
	tasks.Go(l.awaitEnd)
	tasks.Go(func() error { return l.orders.Run(tctx) })
	tasks.Go(func() error { return c.accept(l) })
	tasks.Go(func() error { return c.adopt(l) })
	err := tasks.Wait()
	c.mu.Lock()
	c.link = nil
	c.mu.Unlock()
	c.closeDoors("the bus session ended")
	if ended := context.Cause(ctx); ended != nil && !errors.Is(err, bus.ErrProtocol) {
		err = ended // the tasks may have seen no more than that the context ended
	}
	if errors.Is(err, bus.ErrProtocol) || errors.Is(err, bus.ErrGarbled) {
		c.alert("host broke the bus protocol", "err", err)
	}
	c.setHost(spec.PhasePending, "no host: "+err.Error(), nil)
	return err
}

// adopt learns what runs at the host. Only then the host counts as ready: a
// controller that saw a ready host without its VMMs would take them for dead.
func (c *Card) adopt(l *link) error {
	ctx, cancel := context.WithTimeout(l.ctx, listTimeout)
	defer cancel()
	list, err := l.orders.List(ctx)
	if err != nil {
		return err
	}
	if _, ok := c.reports.take(len(list)); !ok {
		return errReports
	}
	c.reconcile(l, list)
	p := l.session.Peer()
	c.mu.Lock()
	c.link = l
	c.mu.Unlock()
	c.setHost(spec.PhaseReady, "bus session is up", func(h *control.HostStatus) {
		h.Build, h.PoolSize = control.Text(p.Build, 128), spec.Bytes(p.PoolSize)
		h.Sessions++
	})
	return nil
}

// accept takes the channels that the host opens.
func (c *Card) accept(l *link) error {
	for {
		o, err := l.session.Accept(l.ctx)
		if err != nil {
			return err
		}
		switch o.Open.Kind {
		case bus.KindVhostUser:
			c.acceptFront(l, o)
		case bus.KindDoor:
			c.acceptDoor(o)
		default: // cannot be: the bus checks who opens what
			o.Refuse("not for the host to open")
		}
	}
}

// acceptFront connects a front end with its device, or refuses it. An honest
// host asks again and again, so that nothing is logged.
func (c *Card) acceptFront(l *link, o *bus.Offer) {
	c.mu.Lock()
	d := c.devices[o.Open.Instance+"/"+o.Open.Device]
	w, refusal := c.window, ""
	switch {
	case d == nil || d.removed:
		refusal = "no such device now"
	case d.listener != nil:
		refusal = "the device is not on the bus"
	case !d.serves(o.Open.Generation):
		refusal = "the device is for another start of the instance"
	}
	c.mu.Unlock()
	if refusal != "" {
		o.Refuse(refusal)
		return
	}
	ch := o.Accept()
	l.spawn(func() { d.serveBus(l, w, ch) })
}

// currentLink returns the present session, or ErrNoHost.
func (c *Card) currentLink() (*link, error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.link == nil {
		return nil, fmt.Errorf("%w: %s", control.ErrNoHost, c.host.Reason)
	}
	return c.link, nil
}

// within gives a request's context the end of the session too.
func (l *link) within(ctx context.Context) (context.Context, context.CancelFunc) {
	ctx, cancel := context.WithCancelCause(ctx)
	stop := context.AfterFunc(l.ctx, func() { cancel(context.Cause(l.ctx)) })
	return ctx, func() { stop(); cancel(nil) }
}

// hostError turns what happened to an order into a decision. ErrHost is the
// host's own word; ErrNoHost leaves open what became of the order.
func hostError(l *link, err error) error {
	var refused *bus.HostError
	switch {
	case errors.As(err, &refused):
		return fmt.Errorf("%w: %w", control.ErrHost, err)
	case l.ctx.Err() != nil || l.session.Err() != nil || errors.Is(err, bus.ErrClosed): // the orders end before ctx does
		return fmt.Errorf("%w: the session ended: %w", control.ErrNoHost, err)
	case errors.Is(err, context.Canceled) || errors.Is(err, context.DeadlineExceeded):
		return err
	}
	return fmt.Errorf("%w: %w", control.ErrHost, err)
}
