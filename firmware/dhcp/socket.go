// SPDX-License-Identifier: Apache-2.0

package dhcp

import (
	"context"
	"fmt"
	"net"
	"net/netip"
	"syscall"

	"github.com/insomniacslk/dhcp/dhcpv4"
	"github.com/insomniacslk/dhcp/dhcpv4/nclient4"
	"golang.org/x/sys/unix"
)

// maxMessage is the largest message that we take, in bytes: what fits into an
// Ethernet frame.
const maxMessage = 1472

// inbox is how many messages wait for the client; more are dropped, as the
// network might.
const inbox = 8

// socket sends and receives on an interface that may have no address. It is
// open only while an answer is waited for: it sees all traffic of the
// interface.
type socket struct {
	link     link
	raw      net.PacketConn
	messages chan *dhcpv4.DHCPv4
}

func openSocket(l link) (*socket, error) {
	raw, err := nclient4.NewRawUDPConn(l.name, nclient4.ClientPort)
	if err != nil {
		return nil, fmt.Errorf("open raw socket on %s: %w", l.name, err)
	}
	s := &socket{link: l, raw: raw, messages: make(chan *dhcpv4.DHCPv4, inbox)}
	go s.receive()
	return s, nil
}

// close ends receiving.
func (s *socket) close() { _ = s.raw.Close() }

func (s *socket) receive() {
	buf := make([]byte, maxMessage)
	for {
		n, _, err := s.raw.ReadFrom(buf)
		if err != nil {
			return // closed, or the interface is gone: the link watcher tells
		}
		p := parseMessage(buf[:n])
		if p == nil {
			continue
		}
		select {
		case s.messages <- p:
		default:
		}
	}
}

// parseMessage gives nil for what is no message. The parser is not ours and
// its input anybody's: a panic in it must not end the agent.
func parseMessage(b []byte) (p *dhcpv4.DHCPv4) {
	defer func() {
		if recover() != nil {
			p = nil
		}
	}()
	p, err := dhcpv4.FromBytes(b)
	if err != nil {
		return nil
	}
	return p
}

// send sends to all, or from the leased address to one server.
func (s *socket) send(ctx context.Context, o outgoing) error {
	if !o.to.IsValid() {
		_, err := s.raw.WriteTo(o.message.ToBytes(), nclient4.DefaultServers)
		if err != nil {
			return fmt.Errorf("send to all on %s: %w", s.link.name, err)
		}
		return nil
	}
	from, ok := netip.AddrFromSlice(o.message.ClientIPAddr.To4())
	if !ok {
		return fmt.Errorf("send to %v: message has no client address", o.to)
	}
	// The answer is taken from the raw socket; this one is only to send.
	lc := net.ListenConfig{Control: func(_, _ string, c syscall.RawConn) error { return bindTo(c, s.link.name) }}
	conn, err := lc.ListenPacket(ctx, "udp4", netip.AddrPortFrom(from, nclient4.ClientPort).String())
	if err != nil {
		return fmt.Errorf("send to %v: %w", o.to, err)
	}
	defer conn.Close()
	to := net.UDPAddrFromAddrPort(netip.AddrPortFrom(o.to, nclient4.ServerPort))
	if _, err := conn.WriteTo(o.message.ToBytes(), to); err != nil {
		return fmt.Errorf("send to %v: %w", o.to, err)
	}
	return nil
}

func bindTo(c syscall.RawConn, device string) error {
	var bound error
	err := c.Control(func(fd uintptr) {
		if bound = unix.SetsockoptInt(int(fd), unix.SOL_SOCKET, unix.SO_REUSEADDR, 1); bound == nil {
			bound = unix.BindToDevice(int(fd), device)
		}
	})
	if err != nil {
		return err
	}
	return bound
}
