// SPDX-License-Identifier: Apache-2.0

package vcard

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"os"
	"strings"

	"github.com/davit-dpu/davit/firmware/control"
	"github.com/davit-dpu/davit/firmware/disk"
	"github.com/davit-dpu/davit/firmware/spec"
	"github.com/davit-dpu/davit/firmware/virtio/vblk"
	"github.com/davit-dpu/davit/firmware/virtio/vhostuser"
)

// errRemoved is the reason that the session of a removed device ends with.
var errRemoved = errors.New("the device was removed")

// device is one volume as a virtio-blk device of one instance.
type device struct {
	card     *Card
	req      control.AddDevice // as asked for
	memory   memoryRange       // what its front ends may name; zero for a local one
	volume   disk.Volume
	blk      *vblk.Device
	noise    *slog.Logger
	listener *net.UnixListener // nil on the bus
	turn     chan struct{}     // cap 1: held while a session uses blk, and for ever by the removal
	gone     chan struct{}     // closed after the removal

	// guarded by card.mu:
	generation string // the VMM it serves; "" for any
	condition  spec.Condition
	failure    string // why it failed last; "" again once a queue runs
	removed    bool
	session    *session // the newest front end; nil without one
}

// session is one front end's use of a device.
type session struct {
	cancel context.CancelCauseFunc
}

// addDevice makes a device. It owns both files; listener is nil on the bus.
func (c *Card) addDevice(req *control.AddDevice, volume, listener *os.File) error {
	// Before the volume is opened: a controller that gives a device again has the
	// volume locked by the device that is there.
	c.mu.Lock()
	_, there := c.devices[req.Instance+"/"+req.Name]
	c.mu.Unlock()
	if there {
		err := errors.Join(volume.Close(), closeFile(listener))
		return errors.Join(fmt.Errorf("add device %s/%s: %w", req.Instance, req.Name, control.ErrExists), err)
	}
	d, err := c.newDevice(req, volume, listener)
	if err != nil {
		return fmt.Errorf("add device %s/%s: %w", req.Instance, req.Name, err)
	}
	if err := c.register(d); err != nil {
		return errors.Join(fmt.Errorf("add device %s/%s: %w", req.Instance, req.Name, err), d.close())
	}
	c.log.Info("device added", "instance", req.Instance, "device", req.Name, "size", d.volume.Info().Size, "readonly", req.ReadOnly, "memory", d.memory.String())
	c.publishDevice(d)
	if d.listener != nil {
		c.wg.Go(d.serveLocal)
	}
	return nil
}

func (c *Card) newDevice(req *control.AddDevice, volume, listener *os.File) (d *device, err error) {
	var ln *net.UnixListener
	if listener != nil {
		ln, err = streamListener(listener)
		_ = listener.Close()
		if err != nil {
			return nil, errors.Join(err, volume.Close())
		}
	}
	vol, err := disk.OpenFile(volume, req.ReadOnly)
	if err != nil {
		if errors.Is(err, disk.ErrInUse) {
			err = fmt.Errorf("%w: %w", control.ErrConflict, err)
		}
		return nil, errors.Join(err, closeListener(ln))
	}
	noise := slog.New(limitLog(c.cfg.Log.Handler(), c.cfg.Now)).With("instance", req.Instance, "device", req.Name)
	blk, err := vblk.New(vol, vblk.Options{Serial: req.Serial, Queues: req.Queues, Log: noise, Now: c.cfg.Now})
	if err != nil {
		return nil, errors.Join(fmt.Errorf("%w: %w", control.ErrInvalid, err), vol.Close(), closeListener(ln))
	}
	return &device{
		card: c, req: *req, memory: memoryRange{req.MemoryOffset, req.MemorySize}, volume: vol, blk: blk, noise: noise,
		listener: ln, turn: make(chan struct{}, 1), gone: make(chan struct{}), generation: req.Generation,
		condition: spec.Condition{Phase: spec.PhasePending, Reason: "no front end has connected", Since: c.cfg.Now().UTC()},
	}, nil
}

func closeFile(f *os.File) error {
	if f == nil {
		return nil
	}
	return f.Close()
}

func closeListener(ln *net.UnixListener) error {
	if ln == nil {
		return nil
	}
	return ln.Close()
}

func (d *device) close() error { return errors.Join(d.volume.Close(), closeListener(d.listener)) }

// register adds the device to the card if its memory range and name fit.
func (c *Card) register(d *device) error {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.closing {
		return fmt.Errorf("vcard is shutting down: %w", control.ErrConflict)
	}
	if _, ok := c.devices[d.key()]; ok {
		return control.ErrExists
	}
	if len(c.devices) >= control.MaxDevices {
		return fmt.Errorf("%d devices: %w", len(c.devices), control.ErrConflict)
	}
	if d.listener == nil {
		if err := c.fitsLocked(d.req.Instance, d.memory); err != nil {
			return err
		}
	}
	c.devices[d.key()] = d
	return nil
}

// fitsLocked refuses memory that is not in the window, not the instance's own,
// or overlaps another instance's.
func (c *Card) fitsLocked(instance string, r memoryRange) error {
	if c.window == nil {
		return fmt.Errorf("no bus attached: %w", control.ErrConflict)
	}
	if err := c.window.inside(r); err != nil {
		return fmt.Errorf("%w: %w", control.ErrInvalid, err)
	}
	check := func(owner string, other memoryRange) error {
		switch {
		case owner == instance && other != r:
			return fmt.Errorf("memory %s: the instance has %s: %w", r, other, control.ErrConflict)
		case owner != instance && other.overlaps(r):
			return fmt.Errorf("memory %s overlaps %s of %s: %w", r, other, owner, control.ErrConflict)
		}
		return nil
	}
	for _, d := range c.devices {
		if d.listener == nil {
			if err := check(d.req.Instance, d.memory); err != nil {
				return err
			}
		}
	}
	for owner, other := range c.starting {
		if err := check(owner, other); err != nil {
			return err
		}
	}
	for _, v := range c.vmms {
		if v.status.State == spec.VMMRunning && v.memory.size != 0 {
			if err := check(v.status.Instance, v.memory); err != nil {
				return err
			}
		}
	}
	return nil
}

func (d *device) key() string { return d.req.Instance + "/" + d.req.Name }

// status describes the device. card.mu is held.
func (d *device) status() control.Device {
	st := control.Device{
		Instance: d.req.Instance, ReadOnly: d.req.ReadOnly, Listen: d.req.Listen, Generation: d.generation,
		MemoryOffset: d.req.MemoryOffset, MemorySize: d.req.MemorySize,
		DeviceStatus: spec.DeviceStatus{
			Name: d.req.Name, Kind: "virtio-blk", Capacity: spec.Bytes(d.volume.Info().Size), Condition: d.condition,
		},
	}
	for _, s := range d.blk.Stats() {
		st.Queues = append(st.Queues, spec.QueueStats{
			Reads: s.Reads, Writes: s.Writes, ReadBytes: s.ReadBytes, WriteBytes: s.WriteBytes,
			Flushes: s.Flushes, Discards: s.Discards, Errors: s.Errors,
		})
	}
	return st
}

func (c *Card) publishDevice(d *device) {
	c.mu.Lock()
	st := d.status()
	c.mu.Unlock()
	c.server.Publish(control.Event{Device: &st})
}

// opened is the reason while a session has not started a queue.
const opened = "a front end has opened it; no queue runs"

// setCondition records a state of the device's newest session; those of a
// session that was replaced, and all but the removal's after it began, are void.
func (d *device) setCondition(of *session, phase spec.Phase, reason string) {
	reason = control.Text(reason, control.MaxText)
	d.card.mu.Lock()
	void := of != nil && (d.session != of || d.removed)
	switch {
	case void:
	case phase == spec.PhaseFailed:
		d.failure = reason
	case phase == spec.PhaseReady:
		d.failure = ""
	case d.failure != "" && phase != spec.PhaseStopped: // a host that tries again must not hide why
		reason = control.Text(reason+"; it failed before: "+d.failure, control.MaxText)
	}
	if same := d.condition.Phase == phase && d.condition.Reason == reason; void || same {
		d.card.mu.Unlock()
		return
	}
	d.condition = spec.Condition{Phase: phase, Reason: reason, Since: d.card.cfg.Now().UTC()}
	st := d.status()
	d.card.mu.Unlock()
	d.card.server.Publish(control.Event{Device: &st})
	d.noise.Info("device", "phase", string(phase), "reason", reason)
}

// serve lets a front end use the device until it goes, ctx ends or another
// front end comes. It owns conn.
func (d *device) serve(ctx context.Context, conn vhostuser.Conn, opts vhostuser.Options) {
	ctx, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	me := &session{cancel: cancel}
	if !d.takeOver(me) {
		_ = conn.Close()
		return
	}
	select {
	case d.turn <- struct{}{}:
	case <-ctx.Done(): // replaced, removed, or the host has gone while the one before still drains
		_ = conn.Close()
		d.ended(ctx, me, ctx.Err())
		return
	}
	d.setCondition(me, spec.PhaseStarting, opened)
	opts.Log = d.noise
	opts.Changed = func(s vhostuser.Status) { d.observe(me, s) }
	err := vhostuser.Serve(ctx, conn, d.blk, opts)
	<-d.turn
	d.ended(ctx, me, err)
}

// takeOver makes me the device's session and ends the one before.
func (d *device) takeOver(me *session) bool {
	d.card.mu.Lock()
	defer d.card.mu.Unlock()
	if d.removed {
		return false
	}
	if d.session != nil {
		d.session.cancel(errors.New("another front end connected"))
	}
	d.session = me
	return true
}

// observe translates what vhostuser sees.
func (d *device) observe(me *session, s vhostuser.Status) {
	switch {
	case s.Stopped != nil:
		d.card.count()
		d.setCondition(me, spec.PhaseFailed, "the guest broke the virtio protocol: "+s.Stopped.Error())
	case s.Running > 0:
		d.setCondition(me, spec.PhaseReady, fmt.Sprintf("a front end runs %d of %d queues", s.Running, d.req.Queues))
	default:
		d.setCondition(me, spec.PhaseStarting, opened)
	}
}

// ended records why a session is over.
func (d *device) ended(ctx context.Context, me *session, err error) {
	var broke *vhostuser.MessageError
	switch {
	case errors.As(err, &broke) || errors.Is(err, errViolation):
		d.card.alert("front end broke the vhost-user protocol", "instance", d.req.Instance, "device", d.req.Name, "err", err)
		d.setCondition(me, spec.PhaseFailed, "the front end broke the vhost-user protocol: "+err.Error())
	case err == nil:
		d.setCondition(me, spec.PhasePending, "the front end disconnected")
	default:
		if cause := context.Cause(ctx); cause != nil {
			err = cause
		}
		d.setCondition(me, spec.PhasePending, "the front end is gone: "+err.Error())
	}
	d.card.mu.Lock()
	defer d.card.mu.Unlock()
	if d.session == me {
		d.session = nil
	}
}

// count counts a violation that is logged elsewhere.
func (c *Card) count() {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.host.Alerts++
}

// serves reports whether a VMM may use the device. card.mu is held.
func (d *device) serves(generation string) bool {
	return d.generation == "" || strings.EqualFold(d.generation, generation)
}
