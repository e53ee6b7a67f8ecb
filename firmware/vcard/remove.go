// SPDX-License-Identifier: Apache-2.0

package vcard

import (
	"context"
	"errors"
	"fmt"

	"github.com/davit-dpu/davit/firmware/control"
	"github.com/davit-dpu/davit/firmware/spec"
)

// removeDevice drains and forgets one device.
func (c *Card) removeDevice(ctx context.Context, instance, name string) error {
	c.mu.Lock()
	d := c.devices[instance+"/"+name]
	c.mu.Unlock()
	if d == nil {
		return fmt.Errorf("remove device %s/%s: %w", instance, name, control.ErrNotFound)
	}
	return c.remove(ctx, d)
}

// remove ends the device's sessions, waits until nothing is in flight, flushes
// and closes the volume. If ctx ends while it waits, the device stays without a
// session and can be removed again.
func (c *Card) remove(ctx context.Context, d *device) error {
	c.mu.Lock()
	d.removed = true
	d.endSessions(errRemoved)
	c.mu.Unlock()
	_ = closeListener(d.listener) // a second time when removed again
	d.setCondition(nil, spec.PhaseStopping, "being removed: completing what is in flight")
	if mine, err := d.drain(ctx); !mine {
		return err
	}
	err := errors.Join(d.volume.Flush(), d.volume.Close())
	c.mu.Lock()
	delete(c.devices, d.key())
	c.mu.Unlock()
	d.setCondition(nil, spec.PhaseStopped, "removed")
	close(d.gone)
	if err != nil {
		return fmt.Errorf("device %s is removed, but: %w", d.key(), err)
	}
	c.log.Info("device removed", "instance", d.req.Instance, "device", d.req.Name)
	return nil
}

// shutdown removes every device. When that fails the card goes on, without those
// devices that could be removed, and takes new ones again.
func (c *Card) shutdown(ctx context.Context) error {
	err := c.removeAll(ctx)
	c.mu.Lock()
	defer c.mu.Unlock()
	if err != nil && c.life.Err() == nil {
		c.closing = false
	}
	return err
}

// removeAll removes every device and lets no new ones in.
func (c *Card) removeAll(ctx context.Context) error {
	c.mu.Lock()
	c.closing = true
	all := make([]*device, 0, len(c.devices))
	for _, d := range c.devices {
		all = append(all, d)
	}
	c.mu.Unlock()
	var errs []error
	for _, d := range all {
		errs = append(errs, c.remove(ctx, d))
	}
	return errors.Join(errs...)
}
