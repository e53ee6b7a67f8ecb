// SPDX-License-Identifier: Apache-2.0

package vcard

import (
	"errors"
	"fmt"
	"log/slog"
	"net"
	"os"
	"slices"
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
	server   *vhostuser.Server // of blk
	turn     chan struct{}     // held by each session that uses blk, and as a whole for ever by the removal
	drains   chan struct{}     // cap 1: held by who takes all turns
	gone     chan struct{}     // closed after the removal

	// guarded by card.mu:
	generation string // the VMM it serves; "" for any
	condition  spec.Condition
	limits     *spec.Limits
	failure    string // why it failed last; "" again once a queue runs
	removed    bool
	sessions   []*session // front ends, the newest last
}

// addDevice makes a device. It owns the files.
func (c *Card) addDevice(req *control.AddDevice, files control.DeviceFiles) error {
	// Before the volume is opened: a controller that gives a device again has the
	// volume locked by the device that is there.
	c.mu.Lock()
	_, there := c.devices[req.Instance+"/"+req.Name]
	c.mu.Unlock()
	if there {
		return errors.Join(fmt.Errorf("add device %s/%s: %w", req.Instance, req.Name, control.ErrExists), files.Close())
	}
	d, err := c.newDevice(req, files)
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

func (c *Card) newDevice(req *control.AddDevice, files control.DeviceFiles) (d *device, err error) {
	var ln *net.UnixListener
	if files.Listener != nil {
		ln, err = streamListener(files.Listener)
		if err != nil {
			return nil, errors.Join(err, files.Close())
		}
		_ = files.Listener.Close()
	}
	vol, err := openVolume(req, files.Volume, files.Base)
	if err != nil {
		if errors.Is(err, disk.ErrInUse) || errors.Is(err, disk.ErrOtherBase) {
			err = fmt.Errorf("%w: %w", control.ErrConflict, err)
		}
		return nil, errors.Join(err, closeListener(ln))
	}
	noise := slog.New(limitLog(c.cfg.Log.Handler(), c.cfg.Now)).With("instance", req.Instance, "device", req.Name)
	blk, err := vblk.New(vol, vblk.Options{Serial: req.Serial, Queues: req.Queues, Limits: limits(req.Limits), Log: noise, Now: c.cfg.Now})
	if err != nil {
		return nil, errors.Join(fmt.Errorf("%w: %w", control.ErrInvalid, err), vol.Close(), closeListener(ln))
	}
	turns := 1 // on the bus the next front end of an instance is the same host's, which has given up the last
	if ln != nil {
		turns = vhostuser.MaxSessions
	}
	return &device{
		server: vhostuser.NewServer(blk),
		card:   c, req: *req, memory: memoryRange{req.MemoryOffset, req.MemorySize}, volume: vol, blk: blk, noise: noise,
		listener: ln, turn: make(chan struct{}, turns), drains: make(chan struct{}, 1), gone: make(chan struct{}), generation: req.Generation, limits: req.Limits,
		condition: spec.Condition{Phase: spec.PhasePending, Reason: "no front end has connected", Since: c.cfg.Now().UTC()},
	}, nil
}

// openVolume makes a volume of a file, or an overlay of a store and its base. It
// owns both files; base is nil without a base.
func openVolume(req *control.AddDevice, file, base *os.File) (disk.Volume, error) {
	vol, err := disk.OpenFile(file, req.ReadOnly)
	if err != nil {
		return nil, errors.Join(err, closeFile(base))
	}
	if base == nil {
		return vol, nil
	}
	below, err := disk.OpenFile(base, true)
	if err != nil {
		return nil, errors.Join(fmt.Errorf("base: %w", err), vol.Close())
	}
	o, err := disk.OpenOverlay(below, vol, disk.BaseID(req.Base))
	if err != nil {
		return nil, err // not o: a nil *Overlay is no nil Volume
	}
	return o, nil
}

// limitDevice changes how fast a device works.
func (c *Card) limitDevice(req *control.LimitDevice) error {
	c.mu.Lock()
	d := c.devices[req.Instance+"/"+req.Name]
	if d == nil {
		c.mu.Unlock()
		return fmt.Errorf("limit device %s/%s: %w", req.Instance, req.Name, control.ErrNotFound)
	}
	d.limits = req.Limits
	d.blk.SetLimits(limits(req.Limits)) // with mu: of two changes the last is in force, and reported
	c.mu.Unlock()
	c.log.Info("device limited", "instance", req.Instance, "device", req.Name, "limits", req.Limits.String())
	c.publishDevice(d)
	return nil
}

// limits are a device's limits as vblk knows them.
func limits(l *spec.Limits) vblk.Limits {
	if l == nil {
		return vblk.Limits{}
	}
	return vblk.Limits{IOPS: l.IOPS, Bandwidth: uint64(l.Bandwidth), Burst: l.BurstOrDefault()}
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
			Name: d.req.Name, Kind: "virtio-blk", Capacity: spec.Bytes(d.volume.Info().Size), Condition: d.condition, Limits: d.limits,
		},
	}
	for _, s := range d.blk.Stats() {
		st.Queues = append(st.Queues, spec.QueueStats{
			Reads: s.Reads, Writes: s.Writes, ReadBytes: s.ReadBytes, WriteBytes: s.WriteBytes,
			Flushes: s.Flushes, Discards: s.Discards, Errors: s.Errors, Waited: s.Waited,
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

// setCondition is update to a state that is known.
func (d *device) setCondition(of *session, phase spec.Phase, reason string) {
	d.update(of, func() (spec.Phase, string) { return phase, reason })
}

// update records a state of the device, for one of its sessions or for none; those of
// a session that was replaced, and all but the removal's after it began, are void.
// state is called with card.mu held.
func (d *device) update(of *session, state func() (spec.Phase, string)) {
	d.card.mu.Lock()
	if of != nil && (!slices.Contains(d.sessions, of) || d.removed) {
		d.card.mu.Unlock()
		return
	}
	phase, reason := state()
	reason = control.Text(reason, control.MaxText)
	switch {
	case phase == spec.PhaseFailed:
		d.failure = reason
	case phase == spec.PhaseReady:
		d.failure = ""
	case d.failure != "" && phase != spec.PhaseStopped: // a host that tries again must not hide why
		reason = control.Text(reason+"; it failed before: "+d.failure, control.MaxText)
	}
	if d.condition.Phase == phase && d.condition.Reason == reason {
		d.card.mu.Unlock()
		return
	}
	d.condition = spec.Condition{Phase: phase, Reason: reason, Since: d.card.cfg.Now().UTC()}
	st := d.status()
	d.card.mu.Unlock()
	d.card.server.Publish(control.Event{Device: &st})
	d.noise.Info("device", "phase", string(phase), "reason", reason)
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
