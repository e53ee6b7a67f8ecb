// SPDX-License-Identifier: Apache-2.0

package vcard

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"os"
	"sync"
	"time"

	"github.com/davit-dpu/davit/firmware/bus"
	"github.com/davit-dpu/davit/firmware/control"
	"github.com/davit-dpu/davit/firmware/spec"
)

// Config is what a Card is made of.
type Config struct {
	Build   string           // version text, shown to controller and host
	Sandbox []spec.Check     // how the process is confined, for HelloReply
	Log     *slog.Logger     // required; what hosts and guests trigger is rate-limited before it
	Now     func() time.Time // default time.Now
}

// Card is one virtual card. It implements control.Handler.
type Card struct {
	cfg     Config
	log     *slog.Logger
	noise   *slog.Logger // for lines that a host or guest can trigger
	started time.Time
	server  *control.Server
	reports *bucket // of VMMs by the host, see reportBurst
	opens   *bucket // of doors by the host's clients, see doorBurst

	// life ends with Run. All goroutines of the card are in wg and end with it.
	life context.Context
	end  context.CancelFunc
	wg   sync.WaitGroup

	mu       sync.Mutex
	closing  bool                   // guarded by mu; no new devices or bus
	attached bool                   // guarded by mu; AttachBus was accepted
	host     control.HostStatus     // guarded by mu
	window   *window                // guarded by mu; nil before AttachBus, then constant
	link     *link                  // guarded by mu; nil without a bus session
	devices  map[string]*device     // guarded by mu; by Device.Key
	starting map[string]memoryRange // guarded by mu; instances with a StartVMM under way
	vmms     map[string]*vmm        // guarded by mu; by control.VMMKey
	consoles map[string]*console    // guarded by mu; by instance
	doors    map[uint64]*door       // guarded by mu
	lastDoor uint64                 // guarded by mu

	snapshot  *control.Status // guarded by mu; what statusPage pages through
	snapshots uint64          // guarded by mu; number of the snapshot
}

var _ control.Handler = (*Card)(nil)

// New makes a card without devices and without a host.
func New(cfg Config) *Card {
	if cfg.Now == nil {
		cfg.Now = time.Now
	}
	c := &Card{
		cfg: cfg, log: cfg.Log, noise: slog.New(limitLog(cfg.Log.Handler(), cfg.Now)), started: cfg.Now(),
		devices: map[string]*device{}, starting: map[string]memoryRange{}, vmms: map[string]*vmm{},
		consoles: map[string]*console{}, doors: map[uint64]*door{},
		reports: newBucket(cfg.Now, reportBurst, reportsPerSec), opens: newBucket(cfg.Now, doorBurst, doorsPerSec),
	}
	c.host.Condition = spec.Condition{Phase: spec.PhasePending, Reason: "no bus attached yet", Since: c.started}
	c.life, c.end = context.WithCancel(context.Background())
	c.server = control.NewServer(c, cfg.Log)
	return c
}

// Run serves controllers on ln, and everything they set up, until ctx ends or a
// controller asks for Shutdown. All devices are drained and all volumes flushed
// when it returns.
func (c *Card) Run(ctx context.Context, ln *net.UnixListener) error {
	c.log.Info("vcard serves", "build", c.cfg.Build)
	err := c.server.Serve(ctx, ln)
	c.end()
	drained := c.removeAll(context.Background())
	c.wg.Wait()
	c.log.Info("vcard ends")
	return errors.Join(err, drained, c.closeWindow())
}

// closeWindow unmaps the window, which nobody uses any more.
func (c *Card) closeWindow() error {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.window == nil {
		return nil
	}
	return c.window.close()
}

// Welcome implements control.Handler.
func (c *Card) Welcome() control.HelloReply {
	return control.HelloReply{Build: control.Text(c.cfg.Build, 128), Started: c.started, Sandbox: c.cfg.Sandbox}
}

// Gone implements control.Handler: doors are conversations with the controller
// that has gone.
func (c *Card) Gone() { c.closeDoors("the card's agent has gone") }

// Handle implements control.Handler.
func (c *Card) Handle(ctx context.Context, req control.Request, files *control.Files) (control.Reply, error) {
	switch r := req.(type) {
	case *control.AttachBus:
		return done(c.attachBus(r, files.Take(0), files.Take(1)))
	case *control.AddDevice:
		return done(c.addDevice(r, r.Take(files)))
	case *control.LimitDevice:
		return done(c.limitDevice(r))
	case *control.RemoveDevice:
		return done(c.removeDevice(ctx, r.Instance, r.Name))
	case *control.StartVMM:
		return c.startVMM(ctx, r, files)
	case *control.StopVMM:
		return done(c.stopVMM(ctx, r))
	case *control.ConsoleRead:
		return c.readConsole(ctx, r)
	case *control.ConsoleWrite:
		return done(c.writeConsole(ctx, r))
	case *control.DoorRead:
		return c.readDoor(ctx, r.Door)
	case *control.DoorWrite:
		return done(c.writeDoor(ctx, r))
	case *control.DoorClose:
		return done(c.closeDoor(r.Door))
	case *control.StatusRequest:
		return c.statusPage(r)
	case *control.Shutdown:
		return done(c.shutdown(ctx))
	}
	return nil, fmt.Errorf("%T: %w", req, control.ErrInvalid)
}

func done(err error) (control.Reply, error) {
	if err != nil {
		return nil, err
	}
	return &control.Done{}, nil
}

// statusPage answers from the snapshot of the request's first page, so that a
// host whose states change all the time cannot make the pages endless.
func (c *Card) statusPage(req *control.StatusRequest) (control.Reply, error) {
	if req.Snapshot == 0 {
		st := c.status()
		c.mu.Lock()
		defer c.mu.Unlock()
		c.snapshots++
		c.snapshot = st
		return control.Page(st, c.snapshots, req), nil
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.snapshot == nil || req.Snapshot != c.snapshots {
		return nil, fmt.Errorf("snapshot %d is gone: %w", req.Snapshot, control.ErrConflict)
	}
	return control.Page(c.snapshot, c.snapshots, req), nil
}

// status is the truth at this moment.
func (c *Card) status() *control.Status {
	c.mu.Lock()
	defer c.mu.Unlock()
	st := &control.Status{Host: c.host}
	for _, d := range c.devices {
		st.Devices = append(st.Devices, d.status())
	}
	for _, v := range c.vmms {
		st.VMMs = append(st.VMMs, v.status)
	}
	for id := range c.doors {
		st.Doors = append(st.Doors, id)
	}
	return st
}

// alert counts a violation and logs it, at a bounded rate.
func (c *Card) alert(what string, args ...any) {
	c.mu.Lock()
	c.host.Alerts++
	c.mu.Unlock()
	c.noise.Warn(what, args...)
}

// setHost changes the host's condition and tells the controller.
func (c *Card) setHost(phase spec.Phase, reason string, change func(*control.HostStatus)) {
	c.mu.Lock()
	c.host.Condition = spec.Condition{Phase: phase, Reason: control.Text(reason, control.MaxText), Since: c.cfg.Now().UTC()}
	if change != nil {
		change(&c.host)
	}
	h := c.host
	c.mu.Unlock()
	c.server.Publish(control.Event{Host: &h})
}

// attachBus starts the bus. It owns both files.
func (c *Card) attachBus(req *control.AttachBus, stream, file *os.File) error {
	defer stream.Close()
	w, err := mapWindow(req, file)
	if err != nil {
		return fmt.Errorf("attach bus: %w", err)
	}
	dial, stop, err := dialer(req.Listen, stream)
	if err != nil {
		return errors.Join(fmt.Errorf("attach bus: %w", err), w.close())
	}
	c.mu.Lock()
	refuse := error(nil)
	switch {
	case c.closing:
		refuse = control.ErrConflict
	case c.attached:
		refuse = control.ErrExists
	default:
		c.attached, c.window = true, w
	}
	c.mu.Unlock()
	if refuse != nil {
		return errors.Join(fmt.Errorf("attach bus: %w", refuse), stop(), w.close())
	}
	c.setHost(spec.PhasePending, "waiting for the host", func(h *control.HostStatus) {
		h.Attached, h.WindowBase, h.WindowSize = true, req.WindowBase, req.WindowSize
	})
	c.wg.Go(func() {
		cfg := bus.Config{
			Role: bus.Card, Build: c.cfg.Build, PoolSize: uint64(req.WindowBase + req.WindowSize),
			Log: c.noise,
		}
		_ = bus.Run(c.life, cfg, dial, c.serveHost) // ends with life; each session's end is logged and in HostStatus
		_ = stop()
	})
	return nil
}
