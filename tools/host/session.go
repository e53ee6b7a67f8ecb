// SPDX-License-Identifier: Apache-2.0

package host

import (
	"context"
	"errors"
	"strings"

	"golang.org/x/sync/errgroup"

	"github.com/davit-dpu/davit/firmware/bus"
	"github.com/davit-dpu/davit/firmware/spec"
)

// serveSession does everything that one session with the card needs. When it
// returns nothing of the session is left; VMMs go on.
func (h *Host) serveSession(ctx context.Context, s *bus.Session) error {
	h.session.Set(s)
	defer h.session.Set(nil)
	events := make(chan spec.VMMStatus)
	// Before the card can ask for the list: what changes behind its answer must
	// not be taken for what it was told.
	list, changed := h.report.Get()
	g, ctx := errgroup.WithContext(ctx)
	g.Go(func() error { return bus.ServeOrders(ctx, s, h, events) })
	g.Go(func() error { return h.sendEvents(ctx, list, changed, events) })
	g.Go(func() error { return h.serveFronts(ctx, s) })
	g.Go(func() error { return h.serveRelays(ctx, s) })
	err := g.Wait()
	if errors.Is(err, context.Canceled) {
		return nil
	}
	return err
}

// sendEvents reports every change of a VMM's state since list, which changed
// belongs to. A card asks for the states at the beginning itself.
func (h *Host) sendEvents(ctx context.Context, list []spec.VMMStatus, changed <-chan struct{}, events chan<- spec.VMMStatus) error {
	type key struct {
		generation string
		state      spec.VMMState
	}
	sent := map[string]key{}
	for _, st := range list {
		sent[st.Instance] = key{st.Generation, st.State}
	}
	for {
		select {
		case <-changed:
		case <-ctx.Done():
			return ctx.Err()
		}
		list, changed = h.report.Get()
		for _, st := range list {
			k := key{st.Generation, st.State}
			if sent[st.Instance] == k {
				continue
			}
			sent[st.Instance] = k
			select {
			case events <- st:
			case <-ctx.Done():
				return ctx.Err()
			}
		}
	}
}

// serveFronts keeps a front for each disk of each VMM that runs.
func (h *Host) serveFronts(ctx context.Context, s *bus.Session) error {
	g, ctx := errgroup.WithContext(ctx)
	known := map[*vmm]bool{}
	for {
		all, changed := h.running.Get()
		current := map[*vmm]bool{}
		for _, v := range all {
			current[v] = true
			if known[v] {
				continue
			}
			for i := range v.order.Disks {
				f := newFront(h, s, v, i)
				g.Go(func() error { return f.run(ctx) })
			}
		}
		known = current
		select {
		case <-changed:
		case <-ctx.Done():
			return errors.Join(ctx.Err(), g.Wait())
		}
	}
}

// serveRelays accepts the channels that the card opens.
func (h *Host) serveRelays(ctx context.Context, s *bus.Session) error {
	g, ctx := errgroup.WithContext(ctx)
	for {
		o, err := s.Accept(ctx)
		if err != nil {
			return errors.Join(err, g.Wait())
		}
		v := h.lookup(o.Open.Instance, o.Open.Generation)
		if v == nil {
			o.Refuse("no such VMM runs here")
			continue
		}
		g.Go(func() error {
			if o.Open.Kind == bus.KindQMP {
				relayQMP(ctx, v, o)
			} else {
				v.console.relay(ctx, o.Accept())
			}
			return nil
		})
	}
}

// lookup finds a running VMM by what a channel names.
func (h *Host) lookup(instance, generation string) *vmm {
	h.mu.Lock()
	defer h.mu.Unlock()
	if v := h.vmms[instance]; v != nil && v.order.Generation == strings.ToLower(generation) {
		return v
	}
	return nil
}
