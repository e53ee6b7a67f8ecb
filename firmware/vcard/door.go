// SPDX-License-Identifier: Apache-2.0

package vcard

import (
	"context"
	"errors"
	"fmt"
	"io"
	"time"

	"github.com/davit-dpu/davit/firmware/bus"
	"github.com/davit-dpu/davit/firmware/control"
)

// door is one local client of the host's, talking to the mailbox.
type door struct{ ch *bus.Channel }

// acceptDoor lets a client in if there is a controller to talk to.
func (c *Card) acceptDoor(o *bus.Offer) {
	if !c.server.Connected() {
		o.Refuse("the card's agent is not here")
		return
	}
	c.mu.Lock()
	if _, ok := c.opens.take(1); !ok || len(c.doors) >= control.MaxDoors {
		c.mu.Unlock()
		o.Refuse("too many clients")
		return
	}
	c.lastDoor++
	id := c.lastDoor
	c.doors[id] = &door{ch: o.Accept()}
	c.mu.Unlock()
	c.server.Publish(control.Event{Door: &control.DoorStatus{Door: id, Open: true}})
}

func (c *Card) door(id uint64) (*door, error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	d := c.doors[id]
	if d == nil {
		return nil, fmt.Errorf("door %d: %w", id, control.ErrNotFound)
	}
	return d, nil
}

// readDoor waits for bytes. At the end of the stream, whatever ended it, the
// door closes.
func (c *Card) readDoor(ctx context.Context, id uint64) (control.Reply, error) {
	d, err := c.door(id)
	if err != nil {
		return nil, err
	}
	buf := make([]byte, control.MaxData)
	release := deadline(ctx, d.ch.SetReadDeadline)
	n, err := d.ch.Read(buf)
	release()
	switch {
	case n > 0:
		return &control.DoorData{Data: buf[:n]}, nil
	case ctx.Err() != nil:
		return nil, ctx.Err()
	}
	_ = c.closeDoor(id) // closed by the controller meanwhile, at worst
	if !errors.Is(err, io.EOF) {
		c.noise.Info("door closed", "door", id, "reason", err)
	}
	return &control.DoorData{Data: []byte{}}, nil
}

// writeDoor writes all of the data, or closes the door: half a write cannot be
// taken back.
func (c *Card) writeDoor(ctx context.Context, req *control.DoorWrite) error {
	d, err := c.door(req.Door)
	if err != nil {
		return err
	}
	if err := writeAll(ctx, d.ch, req.Data); err != nil {
		_ = c.closeDoor(req.Door)
		return fmt.Errorf("door %d: %w: %w", req.Door, control.ErrNotFound, err)
	}
	return nil
}

func (c *Card) closeDoor(id uint64) error {
	c.mu.Lock()
	d := c.doors[id]
	delete(c.doors, id)
	c.mu.Unlock()
	if d == nil {
		return fmt.Errorf("close door %d: %w", id, control.ErrNotFound)
	}
	c.server.Publish(control.Event{Door: &control.DoorStatus{Door: id}})
	return d.ch.Close()
}

// closeDoors closes all doors: a conversation ends when either end of it goes.
func (c *Card) closeDoors(reason string) {
	c.mu.Lock()
	all := c.doors
	c.doors = map[uint64]*door{}
	c.mu.Unlock()
	for id, d := range all {
		d.ch.CloseReason(reason)
		c.server.Publish(control.Event{Door: &control.DoorStatus{Door: id}})
	}
}

// writeAll writes to a channel until ctx ends.
func writeAll(ctx context.Context, ch *bus.Channel, p []byte) error {
	defer deadline(ctx, ch.SetWriteDeadline)()
	_, err := ch.Write(p)
	return err
}

// deadline makes the end of ctx interrupt what set is the deadline of, and
// returns what undoes it.
func deadline(ctx context.Context, set func(time.Time) error) func() {
	fired := make(chan struct{})
	stop := context.AfterFunc(ctx, func() {
		defer close(fired)
		_ = set(time.Unix(1, 0)) // fails only when there is nothing left to interrupt
	})
	return func() {
		if !stop() {
			<-fired
			_ = set(time.Time{})
		}
	}
}
