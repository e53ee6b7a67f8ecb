// SPDX-License-Identifier: Apache-2.0

package vcard

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"time"

	"github.com/davit-dpu/davit/firmware/bus"
	"github.com/davit-dpu/davit/firmware/spec"
	"github.com/davit-dpu/davit/firmware/virtio/vhostuser"
)

// errViolation says that the host sent on a vhost-user channel what is no
// vhost-user message.
var errViolation = errors.New("not a vhost-user message")

// serveBus serves a front end behind the bus.
func (d *device) serveBus(l *link, w *window, ch *bus.Channel) {
	conn := newBusConn(l, ch)
	bells := vhostuser.NewDoorbells(d.req.Queues, ch.Ring)
	ch.OnRing(func(queue int) {
		if bells.Ring(queue) != nil {
			conn.violate(fmt.Errorf("doorbell of queue %d of %d: %w", queue, d.req.Queues, errViolation))
		}
	})
	d.serve(l.ctx, conn, vhostuser.Options{Mapper: rangeMapper{window: w, limit: d.memory}, Notifiers: bells})
}

// busConn is a vhostuser.Conn over a channel of the bus: one record is one
// message, without file descriptors.
type busConn struct {
	link   *link
	ch     *bus.Channel
	ctx    context.Context // ends with the connection
	cancel context.CancelCauseFunc
}

func newBusConn(l *link, ch *bus.Channel) *busConn {
	ctx, cancel := context.WithCancelCause(l.ctx)
	return &busConn{link: l, ch: ch, ctx: ctx, cancel: cancel}
}

// ReadMessage implements vhostuser.Conn.
func (b *busConn) ReadMessage() (vhostuser.Message, error) {
	rec, err := b.ch.ReadRecord(b.ctx, vhostuser.HeaderSize+vhostuser.MaxPayload)
	if err != nil {
		if cause := context.Cause(b.ctx); cause != nil {
			err = cause
		}
		var closed *bus.RefusedError
		switch {
		case errors.As(err, &closed) && closed.Reason == "":
			err = io.EOF
		case errors.Is(err, bus.ErrProtocol) && b.link.session.Err() == nil: // on this channel
			err = fmt.Errorf("%w: %w", errViolation, err)
		}
		return vhostuser.Message{}, err
	}
	return parseRecord(rec)
}

// parseRecord reads one record, which is exactly one message.
func parseRecord(rec []byte) (vhostuser.Message, error) {
	if len(rec) < vhostuser.HeaderSize {
		return vhostuser.Message{}, fmt.Errorf("record of %d bytes: %w", len(rec), errViolation)
	}
	m, size, err := vhostuser.ParseHeader([vhostuser.HeaderSize]byte(rec))
	if err != nil {
		return vhostuser.Message{}, err
	}
	if len(rec) != vhostuser.HeaderSize+size {
		return vhostuser.Message{}, fmt.Errorf("record of %d bytes with a message of %d: %w", len(rec), vhostuser.HeaderSize+size, errViolation)
	}
	m.Payload = rec[vhostuser.HeaderSize:]
	return m, nil
}

// PassesFDs implements vhostuser.Conn.
func (b *busConn) PassesFDs() bool { return false }

// WriteMessage implements vhostuser.Conn.
func (b *busConn) WriteMessage(m vhostuser.Message) error {
	return b.ch.WriteRecord(b.ctx, vhostuser.AppendMessage(nil, m))
}

// violate ends the connection because of what the host did.
func (b *busConn) violate(err error) { b.cancel(err) }

// Close implements vhostuser.Conn.
func (b *busConn) Close() error {
	b.cancel(net.ErrClosed)
	return b.ch.Close()
}

// serveLocal accepts front ends on the device's own socket, each beside the one
// before it, until the device is removed or the card ends.
func (d *device) serveLocal() {
	ctx, cancel := context.WithCancel(d.card.life)
	defer cancel()
	stop := context.AfterFunc(ctx, func() { _ = d.listener.Close() })
	defer stop()
	for {
		conn, err := d.listener.AcceptUnix()
		if errors.Is(err, net.ErrClosed) {
			return
		}
		if err != nil {
			d.setCondition(nil, spec.PhaseFailed, "accept a front end: "+err.Error())
			if !pause(ctx, time.Second) {
				return
			}
			continue
		}
		d.card.wg.Go(func() { d.serve(ctx, vhostuser.NewSocketConn(conn), vhostuser.Options{}) })
	}
}

// pause waits d; false when ctx ended first.
func pause(ctx context.Context, d time.Duration) bool {
	t := time.NewTimer(d)
	defer t.Stop()
	select {
	case <-t.C:
		return true
	case <-ctx.Done():
		return false
	}
}
