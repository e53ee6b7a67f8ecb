// SPDX-License-Identifier: Apache-2.0

package testcard

import (
	"context"
	"encoding/binary"
	"errors"

	"io"
	"log/slog"
	"sync"

	"github.com/davit-dpu/davit/firmware/bus"
	"github.com/davit-dpu/davit/firmware/disk"
	"github.com/davit-dpu/davit/firmware/spec"
	"github.com/davit-dpu/davit/firmware/state"
	"github.com/davit-dpu/davit/firmware/virtio/guestmem"
	"github.com/davit-dpu/davit/firmware/virtio/vblk"
	"github.com/davit-dpu/davit/firmware/virtio/vhostuser"
)

// Queues is the number of queues of every device.
const Queues = 2

// Up is what one session offers.
type Up struct {
	Session *bus.Session
	Orders  *bus.Orders
}

// Card serves a volume. All fields must be set.
type Card struct {
	Window *bus.Window
	Volume disk.Volume
	Event  func(spec.VMMStatus)
	Log    *slog.Logger

	Link state.Cell[*Up] // nil while there is no session
}

// Serve is the handler for bus.Run.
func (c *Card) Serve(ctx context.Context, s *bus.Session) error {
	orders := bus.NewOrders(s, c.Event)
	c.Link.Set(&Up{s, orders})
	defer c.Link.Set(nil)
	var wg sync.WaitGroup
	defer wg.Wait()
	wg.Go(func() {
		for {
			o, err := s.Accept(ctx)
			if err != nil {
				return
			}
			wg.Go(func() { c.serveOffer(ctx, o) })
		}
	})
	return orders.Run(ctx)
}

func (c *Card) serveOffer(ctx context.Context, o *bus.Offer) {
	if o.Open.Kind == bus.KindDoor { // an echo
		ch := o.Accept()
		_, _ = io.Copy(ch, struct{ io.Reader }{ch})
		_ = ch.Close()
		return
	}
	dev, err := vblk.New(c.Volume, vblk.Options{Serial: "bus-test", Queues: Queues})
	if err != nil {
		o.Refuse(err.Error())
		return
	}
	ch := o.Accept()
	bells := vhostuser.NewDoorbells(Queues, ch.Ring)
	ch.OnRing(func(q int) {
		if err := bells.Ring(q); err != nil {
			c.Log.Info("doorbell ignored", "err", err)
		}
	})
	err = vhostuser.Serve(ctx, recordConn{ctx, ch}, dev, vhostuser.Options{
		Mapper: poolMapper{c.Window}, Notifiers: bells, Log: c.Log,
	})
	c.Log.Info("vhost-user session over", "err", err)
}

// poolMapper finds regions, given as offsets in the pool, in the window.
type poolMapper struct{ window *bus.Window }

// Map implements vhostuser.Mapper.
func (p poolMapper) Map(r vhostuser.MemRegion, fd int) (guestmem.Region, error) {
	if fd != vhostuser.NoFD {
		return guestmem.Region{}, errors.New("file descriptor on a bus")
	}
	mem, err := p.window.Slice(r.Offset, r.Size)
	if err != nil {
		return guestmem.Region{}, err
	}
	return guestmem.NewRegion(r.GuestPhys, r.UserAddr, mem, nil)
}

// recordConn is a vhostuser.Conn over a channel.
type recordConn struct {
	ctx context.Context
	ch  *bus.Channel
}

// ReadMessage implements vhostuser.Conn.
func (r recordConn) ReadMessage() (vhostuser.Message, error) {
	b, err := r.ch.ReadRecord(r.ctx, vhostuser.HeaderSize+vhostuser.MaxPayload)
	if err != nil {
		return vhostuser.Message{}, err
	}
	if len(b) < vhostuser.HeaderSize {
		return vhostuser.Message{}, io.ErrUnexpectedEOF
	}
	m, n, err := vhostuser.ParseHeader([vhostuser.HeaderSize]byte(b))
	if err == nil && len(b) != vhostuser.HeaderSize+n {
		err = io.ErrUnexpectedEOF
	}
	if err != nil {
		return vhostuser.Message{}, err
	}
	m.Payload = b[vhostuser.HeaderSize:]
	return m, nil
}

// WriteMessage implements vhostuser.Conn.
func (r recordConn) WriteMessage(m vhostuser.Message) error {
	return r.ch.WriteRecord(r.ctx, vhostuser.AppendMessage(nil, m))
}

// PassesFDs implements vhostuser.Conn.
func (r recordConn) PassesFDs() bool { return false }

// Close implements vhostuser.Conn.
func (r recordConn) Close() error { return r.ch.Close() }

// Counter reads what the counting guest has written to sector 2.
func Counter(v disk.Volume) (uint16, error) {
	b := make([]byte, disk.SectorSize)
	if err := v.ReadAt([][]byte{b}, 2*disk.SectorSize); err != nil {
		return 0, err
	}
	return binary.LittleEndian.Uint16(b), nil
}
