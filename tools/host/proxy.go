// SPDX-License-Identifier: Apache-2.0

package host

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"net"
	"sync"

	"golang.org/x/sys/unix"

	"github.com/davit-dpu/davit/firmware/bus"
	"github.com/davit-dpu/davit/firmware/virtio/vhostuser"
)

// proxy is one connection between QEMU and the card.
type proxy struct {
	pool *pool
	ch   *bus.Channel
	conn chan *net.UnixConn // cap 1: the connection, once there is one
	wg   sync.WaitGroup     // kick goroutines

	mu    sync.Mutex
	kicks map[uint8]vhostuser.Kick // guarded by mu
	calls map[uint8]vhostuser.Call // guarded by mu
}

func newProxy(p *pool, ch *bus.Channel) *proxy {
	return &proxy{pool: p, ch: ch, conn: make(chan *net.UnixConn, 1), kicks: map[uint8]vhostuser.Kick{}, calls: map[uint8]vhostuser.Call{}}
}

// toQEMU passes the card's replies on.
func (p *proxy) toQEMU(ctx context.Context) error {
	var conn *net.UnixConn
	for {
		b, err := p.ch.ReadRecord(ctx, vhostuser.HeaderSize+vhostuser.MaxPayload)
		if err != nil {
			return fmt.Errorf("card: %w", err)
		}
		if conn == nil {
			select {
			case conn = <-p.conn:
			default:
				return errors.New("card: a reply before any request")
			}
		}
		if err := checkMessage(b); err != nil {
			return fmt.Errorf("card: %w", err)
		}
		if _, err := conn.Write(b); err != nil {
			return fmt.Errorf("write to QEMU: %w", err)
		}
	}
}

// checkMessage makes sure that a record is exactly one message: QEMU must not
// lose its place in the stream.
func checkMessage(b []byte) error {
	if len(b) < vhostuser.HeaderSize {
		return fmt.Errorf("message of %d bytes", len(b))
	}
	_, size, err := vhostuser.ParseHeader([vhostuser.HeaderSize]byte(b))
	if err != nil {
		return err
	}
	if len(b) != vhostuser.HeaderSize+size {
		return fmt.Errorf("message of %d bytes says %d", len(b), vhostuser.HeaderSize+size)
	}
	return nil
}

// toCard passes QEMU's requests on, without the file descriptors.
func (p *proxy) toCard(ctx context.Context, qemu *vhostuser.SocketConn) error {
	for {
		m, err := qemu.ReadMessage()
		if errors.Is(err, io.EOF) {
			return errors.New("QEMU closed the connection")
		}
		if err != nil {
			return err
		}
		start, err := p.claim(&m)
		closeFDs(m.FDs)
		if err != nil {
			return err
		}
		if err := p.ch.WriteRecord(ctx, vhostuser.AppendMessage(nil, m)); err != nil {
			return err
		}
		if start != nil { // doorbells of a ring follow the message that sets them up
			start()
		}
	}
}

// claim takes the file descriptors of a message, or refuses it. What is left in
// m.FDs is closed by the caller.
func (p *proxy) claim(m *vhostuser.Message) (start func(), err error) {
	switch m.Request {
	case vhostuser.SetMemTable:
		if len(m.Payload) < 4 || len(m.FDs) != int(binary.LittleEndian.Uint32(m.Payload)) {
			return nil, fmt.Errorf("QEMU: a memory table with %d files", len(m.FDs))
		}
		for _, fd := range m.FDs {
			if !p.pool.is(fd) { // else the offsets in the message mean nothing to the card
				return nil, errors.New("QEMU: memory that is not the pool")
			}
		}
		return nil, nil
	case vhostuser.SetVringKick, vhostuser.SetVringCall, vhostuser.SetVringErr:
		return p.claimEvent(m)
	case vhostuser.GetVringBase:
		if len(m.Payload) >= 4 { // the ring stops; QEMU may take its eventfd back
			replace(p, p.kicks, uint8(binary.LittleEndian.Uint32(m.Payload)), nil)
		}
	}
	if len(m.FDs) != 0 {
		return nil, fmt.Errorf("QEMU: request %d with %d files", m.Request, len(m.FDs))
	}
	return nil, nil
}

// noFD is the bit of SET_VRING_KICK, CALL and ERR that says that no file comes
// along (vhost-user, "Vring descriptor indices").
const noFD = 1 << 8

func (p *proxy) claimEvent(m *vhostuser.Message) (func(), error) {
	if len(m.Payload) != 8 {
		return nil, fmt.Errorf("QEMU: request %d of %d bytes", m.Request, len(m.Payload))
	}
	v := binary.LittleEndian.Uint64(m.Payload)
	queue, want := uint8(v), 1
	if v&noFD != 0 {
		want = 0
	}
	if len(m.FDs) != want || int(queue) >= bus.MaxQueues {
		return nil, fmt.Errorf("QEMU: request %d for queue %d with %d files", m.Request, queue, len(m.FDs))
	}
	switch {
	case m.Request == vhostuser.SetVringErr:
		return nil, nil // the card never signals it
	case m.Request == vhostuser.SetVringKick && want == 1:
		fd := m.FDs[0]
		m.FDs = nil
		return p.claimKick(queue, fd)
	case m.Request == vhostuser.SetVringKick:
		replace(p, p.kicks, queue, nil)
	case want == 1:
		fd := m.FDs[0]
		m.FDs = nil
		c, err := vhostuser.EventFDs{}.OpenCall(int(queue), fd)
		if err != nil {
			return nil, err
		}
		replace(p, p.calls, queue, c)
		c.Signal() // what the call before was still to signal ended with it
	default:
		replace(p, p.calls, queue, nil)
	}
	return nil, nil
}

// claimKick opens a kick and returns what starts to listen to it.
func (p *proxy) claimKick(queue uint8, fd int) (func(), error) {
	k, err := vhostuser.EventFDs{}.OpenKick(int(queue), fd)
	if err != nil {
		return nil, err
	}
	replace(p, p.kicks, queue, k)
	return func() {
		p.wg.Go(func() {
			for k.Wait() == nil { // an error means that the kick was closed
				p.ch.Ring(int(queue))
			}
		})
	}, nil
}

// replace makes n the notifier of a queue, or leaves the queue without one when
// n is nil, and closes the one before.
func replace[N interface {
	comparable
	io.Closer
}](p *proxy, all map[uint8]N, queue uint8, n N) {
	var none N
	p.mu.Lock()
	old := all[queue]
	delete(all, queue)
	if n != none {
		all[queue] = n
	}
	p.mu.Unlock()
	if old != none {
		_ = old.Close()
	}
}

// call passes a doorbell of the card on to the guest.
func (p *proxy) call(queue int) {
	p.mu.Lock()
	c := p.calls[uint8(queue)]
	p.mu.Unlock()
	if c != nil {
		c.Signal()
	}
}

func (p *proxy) closeNotifiers() {
	for q := range bus.MaxQueues {
		replace(p, p.kicks, uint8(q), nil)
		replace(p, p.calls, uint8(q), nil)
	}
}

// wait returns when no goroutine listens to a kick any more.
func (p *proxy) wait() {
	p.closeNotifiers()
	p.wg.Wait()
}

func closeFDs(fds []int) {
	for _, fd := range fds {
		_ = unix.Close(fd)
	}
}
