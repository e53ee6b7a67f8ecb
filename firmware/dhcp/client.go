// SPDX-License-Identifier: Apache-2.0

package dhcp

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"math/rand/v2"
	"time"

	"github.com/insomniacslk/dhcp/dhcpv4"
	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"github.com/davit-dpu/davit/firmware/spec"
	"github.com/davit-dpu/davit/firmware/state"
)

// linkRetry is how long to wait after a kernel error before the next attempt.
const linkRetry = 5 * time.Second

// Config says what the client is to do.
type Config struct {
	Interface  string // empty: the first physical Ethernet interface with carrier
	Hostname   string // told to the server; empty: nothing is
	ResolvConf string // file for the name servers; empty: none is written
	Log        *slog.Logger
}

// Client keeps the management interface's lease. Make it with New.
type Client struct {
	cfg    Config
	status state.Cell[spec.Lease]

	// Of Run's goroutine:
	shown spec.Lease
	set   *Lease // the lease that the kernel has from us
}

// New checks the configuration.
func New(cfg Config) (*Client, error) {
	if cfg.Log == nil {
		return nil, errors.New("dhcp client needs a Log")
	}
	if cfg.Hostname != "" && !validDomain(cfg.Hostname) {
		return nil, fmt.Errorf("dhcp client: hostname %q is none", cfg.Hostname)
	}
	c := &Client{cfg: cfg}
	c.show(link{name: cfg.Interface}, nil, spec.Condition{Phase: spec.PhasePending, Reason: "not started yet", Since: time.Now()})
	return c, nil
}

// Status gives link, address and lease as they are, and a channel that is
// closed at the next change. Phase is ready only while an address is set.
func (c *Client) Status() (spec.Lease, <-chan struct{}) { return c.status.Get() }

// Run keeps a lease until ctx ends, and returns nil then. The address stays.
// What fails is reported by Status, and tried again.
func (c *Client) Run(ctx context.Context) error {
	for {
		err := c.session(ctx)
		if ctx.Err() != nil {
			return nil
		}
		c.show(link{name: c.cfg.Interface}, c.set, c.condition(spec.PhaseFailed, err.Error()))
		t := time.NewTimer(linkRetry)
		select {
		case <-t.C:
		case <-ctx.Done():
			t.Stop()
			return nil
		}
	}
}

// session lasts as long as the kernel tells us of its interfaces.
func (c *Client) session(ctx context.Context) error {
	done := make(chan struct{})
	defer close(done)
	events := make(chan netlink.LinkUpdate, 32)
	failed := make(chan error, 1)
	err := netlink.LinkSubscribeWithOptions(events, done, netlink.LinkSubscribeOptions{
		ErrorCallback: func(err error) {
			select {
			case failed <- err:
			default:
			}
		},
	})
	if err != nil {
		return fmt.Errorf("watch interfaces: %w", err)
	}
	w := &watcher{events: events, failed: failed}
	for ctx.Err() == nil {
		l, err := c.waitLink(ctx, w)
		if err != nil {
			return err
		}
		if ctx.Err() == nil {
			if err := c.serve(ctx, w, l); err != nil {
				return err
			}
		}
	}
	return nil
}

var errWatch = errors.New("watch interfaces: the kernel ended it")

// watcher is the kernel's link events.
type watcher struct {
	events <-chan netlink.LinkUpdate
	failed <-chan error
}

// next waits for an event, for d, or for ctx.
func (w *watcher) next(ctx context.Context, d time.Duration) error {
	t := time.NewTimer(d)
	defer t.Stop()
	select {
	case <-ctx.Done():
	case <-t.C:
	case _, ok := <-w.events:
		if !ok {
			return errWatch
		}
	case err := <-w.failed:
		return fmt.Errorf("watch interfaces: %w", err)
	}
	return nil
}

// waitLink waits for the management interface to be there and to have carrier.
func (c *Client) waitLink(ctx context.Context, w *watcher) (link, error) {
	for ctx.Err() == nil {
		l, err := pickLink(c.cfg.Interface)
		if err == nil && l.up {
			return l, nil
		}
		if err == nil {
			err = fmt.Errorf("interface %s: no carrier", l.name)
		}
		if l.name == "" {
			l.name = c.cfg.Interface
		}
		c.show(l, nil, c.condition(spec.PhasePending, err.Error()))
		if err := w.next(ctx, linkRetry); err != nil {
			return link{}, err
		}
	}
	return link{}, nil
}

// service is one interface being served.
type service struct {
	*Client
	m    *machine
	link link
	sock *socket // nil while no answer is waited for
}

// serve runs the state machine on one interface until it is gone or ctx ends.
func (c *Client) serve(ctx context.Context, w *watcher, l link) error {
	s := &service{Client: c, m: newMachine(l.mac, c.cfg.Hostname, rand.Uint32, time.Now()), link: l}
	defer s.closeSocket()
	for {
		s.apply(time.Now())
		s.exchange(ctx)
		s.show(s.link, s.set, s.m.status)
		gone, err := s.next(ctx, w)
		if gone || err != nil || ctx.Err() != nil {
			return err
		}
	}
}

// next waits for the next thing to happen and hands it to the machine.
func (s *service) next(ctx context.Context, w *watcher) (gone bool, err error) {
	timer := time.NewTimer(time.Until(s.m.wake))
	defer timer.Stop()
	var messages <-chan *dhcpv4.DHCPv4
	if s.sock != nil {
		messages = s.sock.messages
	}
	select {
	case <-ctx.Done():
	case <-timer.C:
		s.m.timeout(time.Now())
	case p := <-messages:
		if err := s.m.receive(p, time.Now()); err != nil && !errors.Is(err, errNotForUs) {
			s.cfg.Log.Debug("dhcp message not used", "interface", s.link.name, "reason", err.Error())
		}
	case err := <-w.failed:
		return false, fmt.Errorf("watch interfaces: %w", err)
	case e, ok := <-w.events:
		if !ok {
			return false, errWatch
		}
		return s.linkEvent(e), nil
	}
	return false, nil
}

// linkEvent follows what happens to our interface; gone says that it is no
// longer there.
func (s *service) linkEvent(e netlink.LinkUpdate) (gone bool) {
	a := e.Attrs()
	if a.Index != s.link.index {
		return false
	}
	if e.Header.Type == unix.RTM_DELLINK {
		s.set = nil
		return true
	}
	up := hasCarrier(a)
	if up == s.link.up {
		return false
	}
	s.link.up = up
	if up {
		s.m.linkBack(time.Now())
	} else {
		s.m.report(time.Now(), spec.PhasePending, fmt.Sprintf("interface %s: no carrier", s.link.name))
	}
	return false
}

// apply makes the kernel's addresses those of the machine. An error starts
// again from the beginning, later.
func (s *service) apply(now time.Time) {
	if s.m.current == s.set {
		return
	}
	var err error
	if s.m.current == nil {
		err = clearLease(s.link)
	} else {
		err = setLease(s.link, s.m.current, now)
	}
	s.set = s.m.current
	if err == nil && s.set != nil && s.cfg.ResolvConf != "" {
		// Without name servers the address is still of use.
		if err := replaceFile(s.cfg.ResolvConf, resolvConf(s.set)); err != nil {
			s.cfg.Log.Warn("name servers not set", "reason", err.Error())
		}
	}
	if err != nil {
		err = errors.Join(err, clearLease(s.link))
		s.m.restart(now, now.Add(linkRetry), spec.PhaseFailed, err.Error())
		s.m.out = nil
		s.set = nil
	}
}

// exchange sends what the machine wants sent, and has a socket open while an
// answer is waited for.
func (s *service) exchange(ctx context.Context) {
	defer func() { s.m.out = nil }()
	if s.m.phase == phaseBound {
		s.closeSocket()
		return
	}
	if s.sock == nil && len(s.m.out) > 0 {
		sock, err := openSocket(s.link)
		if err != nil {
			s.fail(err)
			return
		}
		s.sock = sock
	}
	for _, o := range s.m.out {
		if err := s.sock.send(ctx, o); err != nil {
			s.fail(err)
		}
	}
}

func (s *service) closeSocket() {
	if s.sock != nil {
		s.sock.close()
		s.sock = nil
	}
}

// fail reports that a message could not be sent; the machine repeats it. An
// address that we have stays good.
func (s *service) fail(err error) {
	p := spec.PhaseFailed
	if s.set != nil {
		p = spec.PhaseReady
	}
	s.m.report(time.Now(), p, err.Error())
}

// condition keeps Since while the phase stays.
func (c *Client) condition(p spec.Phase, reason string) spec.Condition {
	since := time.Now()
	if c.shown.Phase == p {
		since = c.shown.Since
	}
	return spec.Condition{Phase: p, Reason: reason, Since: since}
}

// show publishes how it stands, and logs each change of phase.
func (c *Client) show(l link, lease *Lease, cond spec.Condition) {
	s := spec.Lease{Interface: l.name, Condition: cond}
	if lease != nil {
		s.Address, s.Server = lease.Address.String(), lease.Server.String()
		s.Obtained, s.Expires = lease.Obtained, lease.Expire
		if lease.Router.IsValid() {
			s.Router = lease.Router.String()
		}
	}
	if s == c.shown {
		return
	}
	if s.Phase != c.shown.Phase || s.Address != c.shown.Address {
		c.cfg.Log.Info("management network", "phase", string(s.Phase), "interface", s.Interface, "address", s.Address, "reason", s.Reason)
	}
	c.shown = s
	c.status.Set(s)
}
