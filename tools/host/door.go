// SPDX-License-Identifier: Apache-2.0

package host

import (
	"context"
	"errors"
	"net"
	"time"

	"golang.org/x/sync/errgroup"

	"github.com/davit-dpu/davit/firmware/bus"
)

// MailboxSocket is the name in the run directory where local clients find the
// card's mailbox.
const MailboxSocket = "mailbox.sock"

// maxClients bounds local clients served at the same time; further ones wait to
// be accepted.
const maxClients = 32

// cardWait is how long a client is kept waiting for a card that is not there.
const cardWait = 5 * time.Second

// errNoCard turns a client away.
var errNoCard = errors.New("no session with the card")

// serveDoor carries local clients' bytes to the card until ctx ends. Who may do
// what is the card's business: it checks signatures.
func (h *Host) serveDoor(ctx context.Context) error {
	stop := context.AfterFunc(ctx, func() { _ = h.door.Close() })
	defer stop()
	var g errgroup.Group
	g.SetLimit(maxClients)
	for {
		conn, err := h.door.AcceptUnix()
		if err == nil && ctx.Err() != nil {
			err = conn.Close()
		}
		if ctx.Err() != nil {
			_ = g.Wait() // clients return nil
			return ctx.Err()
		}
		if err != nil { // out of file descriptors, most likely
			h.log.Warn("cannot accept mailbox clients", "err", err)
			sleep(ctx, time.Second)
			continue
		}
		g.Go(func() error {
			if err := h.serveClient(ctx, conn); err != nil {
				h.log.Info("mailbox client turned away", "reason", err)
				_ = conn.Close()
			}
			return nil
		})
	}
}

func (h *Host) serveClient(ctx context.Context, conn net.Conn) error {
	wctx, cancel := context.WithTimeout(ctx, cardWait)
	defer cancel()
	s, err := h.waitSession(wctx)
	if err != nil {
		return err
	}
	ch, err := s.Open(wctx, bus.Open{Kind: bus.KindDoor})
	if err != nil {
		return err
	}
	join(ctx, conn, ch)
	return nil
}

func (h *Host) waitSession(ctx context.Context) (*bus.Session, error) {
	for {
		s, changed := h.session.Get()
		if s != nil {
			return s, nil
		}
		select {
		case <-changed:
		case <-ctx.Done():
			return nil, errNoCard
		}
	}
}
