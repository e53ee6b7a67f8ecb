// SPDX-License-Identifier: Apache-2.0

package host

import (
	"context"
	"os"
	"path/filepath"
	"time"

	"golang.org/x/sync/errgroup"

	"github.com/davit-dpu/davit/firmware/bus"
	"github.com/davit-dpu/davit/firmware/virtio/vhostuser"
)

// front carries one vhost-user device of one VMM between QEMU and the card.
//
//	┌► open channel ──refused──► pause ─┐
//	│      │ accepted                   │
//	│   listen on diskN.sock            │
//	│      │ QEMU connects: stop listening, carry messages
//	└──────┴── either side ends: close both ◄┘
type front struct {
	h    *Host
	s    *bus.Session
	v    *vmm
	name string // of the socket
	open bus.Open
}

func newFront(h *Host, s *bus.Session, v *vmm, disk int) *front {
	return &front{h: h, s: s, v: v, name: diskSocket(disk), open: bus.Open{
		Kind: bus.KindVhostUser, Instance: v.order.Instance, Generation: v.order.Generation, Device: v.order.Disks[disk].Device,
	}}
}

// Pauses between attempts to open a channel.
const (
	minFrontPause = 20 * time.Millisecond
	maxFrontPause = 500 * time.Millisecond
)

// run lives as long as the session and the VMM.
func (f *front) run(ctx context.Context) error {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	go func() {
		select {
		case <-f.v.done:
			cancel()
		case <-ctx.Done():
		}
	}()
	log := f.h.log.With("instance", f.open.Instance, "device", f.open.Device)
	last := ""
	for pause := minFrontPause; ctx.Err() == nil; pause = min(2*pause, maxFrontPause) {
		connected, err := f.serveOnce(ctx)
		if ctx.Err() != nil {
			break
		}
		if connected {
			pause = minFrontPause
		}
		if text := err.Error(); text != last || connected {
			log.Info("device is not connected", "reason", text)
			last = text
		}
		sleep(ctx, pause)
	}
	return nil
}

// serveOnce carries one connection of QEMU's. It says whether there was one,
// and why it is over.
func (f *front) serveOnce(ctx context.Context) (connected bool, err error) {
	ch, err := f.s.Open(ctx, f.open)
	if err != nil {
		return false, err
	}
	defer ch.Close()
	ctx, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	l, err := f.v.listen(f.name)
	if err != nil {
		return false, err
	}
	defer l.Close()
	p := newProxy(f.h.pool, ch)
	defer p.closeNotifiers()
	var g errgroup.Group
	g.Go(func() error { // runs from the start: it also notices that the card gives up
		err := p.toQEMU(ctx)
		cancel(err)
		return err
	})
	conn, err := acceptOne(ctx, l)
	if err == nil {
		connected = true
		_ = os.Remove(filepath.Join(f.v.dir, f.name)) // QEMU has one connection per device
		_ = l.Close()
		stop := context.AfterFunc(ctx, func() { _ = conn.Close() })
		defer stop()
		p.conn <- conn
		ch.OnRing(p.call)
		err = p.toCard(ctx, vhostuser.NewSocketConn(conn))
		_ = conn.Close()
	}
	cancel(err)
	_ = g.Wait() // ctx's cause is the first error of the two directions
	p.wait()
	ch.CloseReason(context.Cause(ctx).Error())
	return connected, context.Cause(ctx)
}
