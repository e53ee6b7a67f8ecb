// SPDX-License-Identifier: Apache-2.0

package vcardtest

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"io"

	"github.com/davit-dpu/davit/firmware/bus"
	"github.com/davit-dpu/davit/firmware/virtio/vhostuser"
	"github.com/davit-dpu/davit/firmware/virtio/vhostuser/vhostusertest"
	"github.com/davit-dpu/davit/firmware/virtio/virtq/virtqtest"
)

const (
	flagVersion   = 1
	flagNeedReply = 1 << 3
)

// Front is a VMM's vhost-user front end on the bus. It is used by one goroutine.
type Front struct {
	ch    *bus.Channel
	ctx   context.Context
	calls [bus.MaxQueues]virtqtest.Bell
	acks  bool
}

// OpenFront asks the card for a device; the card may refuse. ctx bounds the
// front end's whole life.
func (h *Host) OpenFront(ctx context.Context, instance, generation, device string) (*Front, error) {
	s, err := h.Session(ctx)
	if err != nil {
		return nil, err
	}
	ch, err := s.Open(ctx, bus.Open{Kind: bus.KindVhostUser, Instance: instance, Generation: generation, Device: device})
	if err != nil {
		return nil, err
	}
	f := &Front{ch: ch, ctx: ctx}
	for i := range f.calls {
		f.calls[i] = virtqtest.NewBell()
	}
	ch.OnRing(func(q int) { f.calls[q].Signal() })
	return f, nil
}

// Channel is the front end's channel, for tests that misuse it.
func (f *Front) Channel() *bus.Channel { return f.ch }

// Close ends the front end.
func (f *Front) Close() error { return f.ch.Close() }

// Send sends a message without waiting for anything.
func (f *Front) Send(r vhostuser.Request, flags uint32, payload []byte) error {
	return f.ch.WriteRecord(f.ctx, vhostuser.AppendMessage(nil, vhostuser.Message{Request: r, Flags: flagVersion | flags, Payload: payload}))
}

// Call sends a request and returns the payload of its reply.
func (f *Front) Call(r vhostuser.Request, payload []byte) ([]byte, error) {
	if err := f.Send(r, 0, payload); err != nil {
		return nil, err
	}
	return f.reply(r)
}

func (f *Front) reply(r vhostuser.Request) ([]byte, error) {
	rec, err := f.ch.ReadRecord(f.ctx, bus.MaxRecord)
	if err != nil {
		return nil, fmt.Errorf("reply to request %d: %w", r, err)
	}
	if len(rec) < vhostuser.HeaderSize || binary.LittleEndian.Uint32(rec) != uint32(r) {
		return nil, fmt.Errorf("reply to request %d: % x", r, rec)
	}
	return rec[vhostuser.HeaderSize:], nil
}

// Do sends a request and waits for its acknowledgement, once Negotiate has
// agreed on those.
func (f *Front) Do(r vhostuser.Request, payload []byte) error {
	if !f.acks {
		return f.Send(r, 0, payload)
	}
	if err := f.Send(r, flagNeedReply, payload); err != nil {
		return err
	}
	p, err := f.reply(r)
	if err != nil {
		return err
	}
	if len(p) != 8 || binary.LittleEndian.Uint64(p) != 0 {
		return fmt.Errorf("request %d was refused: % x", r, p)
	}
	return nil
}

// Negotiate does what QEMU does first, and accepts all that is offered.
func (f *Front) Negotiate() error {
	offered, err := f.Call(vhostuser.GetFeatures, nil)
	if err != nil {
		return err
	}
	protocol, err := f.Call(vhostuser.GetProtocolFeatures, nil)
	if err != nil {
		return err
	}
	if err := f.Do(vhostuser.SetProtocolFeatures, protocol); err != nil {
		return err
	}
	f.acks = true
	return errors.Join(f.Do(vhostuser.SetOwner, nil), f.Do(vhostuser.SetFeatures, offered))
}

// SetMemory names the guest's memory: a range of the pool whose guest-physical
// and user addresses are its pool offsets.
func (f *Front) SetMemory(offset, size uint64) error {
	return f.Do(vhostuser.SetMemTable, vhostusertest.MemTable(vhostuser.MemRegion{GuestPhys: offset, UserAddr: offset, Size: size, Offset: offset}))
}

// StartQueue starts a queue at the used index in its memory, as QEMU does after
// a reconnect.
func (f *Front) StartQueue(i int, d *virtqtest.Driver) error {
	for _, step := range []struct {
		r vhostuser.Request
		p []byte
	}{
		{vhostuser.SetVringNum, vhostusertest.State(i, d.Size())},
		{vhostuser.SetVringBase, vhostusertest.State(i, int(d.UsedIdx()))},
		{vhostuser.SetVringAddr, vhostusertest.Addr(i, d)},
		{vhostuser.SetVringKick, vhostusertest.U64(uint64(i))},
		{vhostuser.SetVringCall, vhostusertest.U64(uint64(i))},
		{vhostuser.SetVringEnable, vhostusertest.State(i, 1)},
	} {
		if err := f.Do(step.r, step.p); err != nil {
			return err
		}
	}
	return nil
}

// Open brings a device up: negotiation, memory, queue 0.
func (f *Front) Open(offset, size uint64, d *virtqtest.Driver) error {
	if err := f.Negotiate(); err != nil {
		return err
	}
	return errors.Join(f.SetMemory(offset, size), f.StartQueue(0, d))
}

// Kick rings the card's doorbell.
func (f *Front) Kick(queue int) { f.ch.Ring(queue) }

// Bell rings when the card has used something of a queue.
func (f *Front) Bell(queue int) virtqtest.Bell { return f.calls[queue] }

// Ended waits until the card has closed the channel, and says how.
func (f *Front) Ended() error {
	for {
		_, err := f.ch.ReadRecord(f.ctx, bus.MaxRecord)
		if errors.Is(err, io.EOF) {
			return nil
		}
		if err != nil {
			return err
		}
	}
}
