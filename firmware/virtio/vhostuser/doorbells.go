// SPDX-License-Identifier: Apache-2.0

package vhostuser

import (
	"fmt"
	"io"
)

// Doorbells are the notifications of a bus: kicks arrive by Ring, calls leave
// through a callback. One Doorbells serves one session.
type Doorbells struct {
	bells []bell
	call  func(queue int)
}

// NewDoorbells makes doorbells for queues 0 to n-1. call notifies the guest of
// a queue; it must not block, and may be called by several goroutines at once.
func NewDoorbells(n int, call func(queue int)) *Doorbells {
	d := &Doorbells{bells: make([]bell, n), call: call}
	for i := range d.bells {
		d.bells[i] = make(bell, 1)
	}
	return d
}

// Ring passes a guest's kick on. It never blocks. A queue that does not exist
// is an error; one that is not running is not: the ring is looked at when it starts.
func (d *Doorbells) Ring(queue int) error {
	if queue < 0 || queue >= len(d.bells) {
		return fmt.Errorf("doorbell of queue %d of %d", queue, len(d.bells))
	}
	d.bells[queue].Interrupt()
	return nil
}

// OpenKick implements Notifiers.
func (d *Doorbells) OpenKick(queue, fd int) (Kick, error) {
	if err := d.check(queue, fd); err != nil {
		return nil, err
	}
	return d.bells[queue], nil
}

// OpenCall implements Notifiers.
func (d *Doorbells) OpenCall(queue, fd int) (Call, error) {
	if err := d.check(queue, fd); err != nil {
		return nil, err
	}
	return doorbellCall{d: d, queue: queue}, nil
}

func (d *Doorbells) check(queue, fd int) error {
	if fd != NoFD {
		closeAll([]int{fd})
		return fmt.Errorf("doorbell of queue %d: file descriptor on a bus", queue)
	}
	if queue >= len(d.bells) {
		return fmt.Errorf("doorbell of queue %d of %d", queue, len(d.bells))
	}
	return nil
}

// bell holds at most one kick that nobody has waited for yet.
type bell chan struct{}

// Wait implements virtq.Kick.
func (b bell) Wait() error {
	<-b
	return nil
}

// Interrupt implements virtq.Kick: it is a kick, which may always be spurious.
func (b bell) Interrupt() {
	select {
	case b <- struct{}{}:
	default:
	}
}

func (b bell) Close() error { return nil }

type doorbellCall struct {
	d     *Doorbells
	queue int
}

// Signal implements virtq.Call.
func (c doorbellCall) Signal() { c.d.call(c.queue) }

func (c doorbellCall) Close() error { return nil }

var (
	_ io.Closer = bell(nil)
	_ Notifiers = (*Doorbells)(nil)
	_ Notifiers = EventFDs{}
)
