// SPDX-License-Identifier: Apache-2.0

package dhcp

import (
	"bufio"
	"errors"
	"fmt"
	"io"
	"net"
	"sync"

	"github.com/insomniacslk/dhcp/dhcpv4"
	"github.com/insomniacslk/dhcp/dhcpv4/server4"
	"github.com/vishvananda/netlink"
)

// serve is the server's process.
func serve(orders io.Reader, out io.Writer) error {
	s := &wireServer{out: out, ip: net.IP{10, 77, 0, 50}}
	in := bufio.NewScanner(orders)
	for in.Scan() {
		if err := s.obey(in.Text()); err != nil {
			return err
		}
		s.say("done " + in.Text())
	}
	return in.Err()
}

type wireServer struct {
	out io.Writer

	mu      sync.Mutex
	mode    string // guarded by mu
	ip      net.IP // guarded by mu
	started bool   // of the orders' goroutine
}

func (s *wireServer) say(line string) { fmt.Fprintln(s.out, line) }

func (s *wireServer) obey(word string) error {
	if !s.started {
		if err := s.start(); err != nil {
			return err
		}
		s.started = true
	}
	switch word {
	case "down", "up":
		l, err := netlink.LinkByName(serverEnd)
		if err != nil {
			return err
		}
		if word == "down" {
			return netlink.LinkSetDown(l)
		}
		return netlink.LinkSetUp(l)
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	s.mode = word
	if word == "move" {
		s.ip = net.IP{10, 77, 0, 51}
	}
	return nil
}

func (s *wireServer) start() error {
	l, err := netlink.LinkByName(serverEnd)
	if err != nil {
		return err
	}
	addr := &netlink.Addr{IPNet: &net.IPNet{IP: net.IP{10, 77, 0, 1}, Mask: net.CIDRMask(24, 32)}}
	if err := errors.Join(netlink.AddrAdd(l, addr), netlink.LinkSetUp(l)); err != nil {
		return err
	}
	srv, err := server4.NewServer(serverEnd, &net.UDPAddr{IP: net.IPv4zero, Port: 67}, s.handle)
	if err != nil {
		return err
	}
	go func() { _ = srv.Serve() }()
	return nil
}

func (s *wireServer) handle(conn net.PacketConn, peer net.Addr, req *dhcpv4.DHCPv4) {
	s.mu.Lock()
	mode, ip := s.mode, s.ip
	s.mu.Unlock()
	if mode == "silent" {
		return
	}
	kind := dhcpv4.MessageTypeAck
	switch {
	case req.MessageType() == dhcpv4.MessageTypeDiscover:
		kind = dhcpv4.MessageTypeOffer
	case mode == "nak":
		kind = dhcpv4.MessageTypeNak
	}
	base := []dhcpv4.Modifier{
		dhcpv4.WithMessageType(kind), dhcpv4.WithYourIP(ip), dhcpv4.WithNetmask(net.CIDRMask(24, 32)),
		dhcpv4.WithOption(dhcpv4.OptRouter(net.IP{10, 77, 0, 1})),
		dhcpv4.WithOption(dhcpv4.OptServerIdentifier(net.IP{10, 77, 0, 1})),
		dhcpv4.WithOption(dhcpv4.OptDNS(net.IP{10, 77, 0, 1})),
		dhcpv4.WithOption(dhcpv4.OptDomainName("cards.example")),
		dhcpv4.WithLeaseTime(6),
	}
	if mode == "hostile" {
		for _, bad := range hostile {
			s.send(conn, peer, req, append(base[:len(base):len(base)], append(bad.mods, badSubnet)...))
		}
		_, _ = conn.WriteTo([]byte("no DHCP at all"), peer)
		s.say("sent hostile")
		return
	}
	if unicast, ok := peer.(*net.UDPAddr); ok && unicast.IP.Equal(ip) {
		s.say("renew unicast")
	}
	s.send(conn, peer, req, base)
}

// badSubnet makes also those replies bad here that are so in another subnet
// only.
func badSubnet(p *dhcpv4.DHCPv4) { p.UpdateOption(dhcpv4.OptSubnetMask(net.CIDRMask(31, 32))) }

func (s *wireServer) send(conn net.PacketConn, peer net.Addr, req *dhcpv4.DHCPv4, mods []dhcpv4.Modifier) {
	p, err := dhcpv4.NewReplyFromRequest(req, mods...)
	if err == nil {
		_, err = conn.WriteTo(p.ToBytes(), peer)
	}
	if err != nil {
		s.say("error " + err.Error())
	}
}
