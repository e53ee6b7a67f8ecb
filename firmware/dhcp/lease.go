// SPDX-License-Identifier: Apache-2.0

package dhcp

import (
	"errors"
	"fmt"
	"net"
	"net/netip"
	"time"

	"github.com/insomniacslk/dhcp/dhcpv4"
)

// Bounds on what a server may ask of us.
const (
	minLease = 4 * time.Second     // a shorter lease would be a flood of renewals
	maxLease = 30 * 24 * time.Hour // a longer or infinite one is renewed then all the same
	maxDNS   = 3                   // as many as resolv.conf(5) reads
	maxName  = 253                 // length of a domain name, RFC 1035
)

// Lease is an address with its surroundings, validated.
type Lease struct {
	Address  netip.Prefix // host address with the length of its subnet
	Router   netip.Addr   // in the subnet; invalid when there is none
	DNS      []netip.Addr // at most 3
	Domain   string       // empty, or a valid domain name
	Server   netip.Addr   // server identifier, RFC 2132 section 9.7
	Obtained time.Time    // when the request for it was sent
	Renew    time.Time    // T1
	Rebind   time.Time    // T2
	Expire   time.Time
}

// parseLease validates an OFFER or ACK into a lease that counts from sent, the
// time of our request. An OFFER need not say how long the lease is.
func parseLease(p *dhcpv4.DHCPv4, sent time.Time) (*Lease, error) {
	l := &Lease{Obtained: sent}
	ip, err := unicast(p.YourIPAddr)
	if err != nil {
		return nil, fmt.Errorf("address: %w", err)
	}
	bits, err := maskBits(p.Options.Get(dhcpv4.OptionSubnetMask))
	if err != nil {
		return nil, fmt.Errorf("subnet mask: %w", err)
	}
	l.Address = netip.PrefixFrom(ip, bits)
	if !isHost(l.Address, ip) {
		return nil, fmt.Errorf("address: %v is no host's", l.Address)
	}
	if l.Server, err = addrOption(p, dhcpv4.OptionServerIdentifier); err != nil {
		return nil, fmt.Errorf("server identifier: %w", err)
	}
	if err := l.parseRouter(p); err != nil {
		return nil, fmt.Errorf("router: %w", err)
	}
	l.parseNames(p)
	if err := l.parseTimes(p); err != nil {
		return nil, err
	}
	return l, nil
}

func (l *Lease) parseRouter(p *dhcpv4.DHCPv4) error {
	raw := p.Options.Get(dhcpv4.OptionRouter)
	if raw == nil {
		return nil
	}
	if len(raw) == 0 || len(raw)%4 != 0 {
		return fmt.Errorf("%d bytes are no list of addresses", len(raw))
	}
	r, err := unicast(net.IP(raw[:4])) // listed in order of preference
	if err != nil {
		return err
	}
	if r == l.Address.Addr() || !isHost(l.Address, r) {
		return fmt.Errorf("%v is no other host of %v", r, l.Address)
	}
	l.Router = r
	return nil
}

// parseNames takes what it can: a name server that is none does no harm to the
// rest of a lease. Nothing gets into resolv.conf that could be another line.
func (l *Lease) parseNames(p *dhcpv4.DHCPv4) {
	raw := p.Options.Get(dhcpv4.OptionDomainNameServer)
	for ; len(raw) >= 4 && len(l.DNS) < maxDNS; raw = raw[4:] {
		if a, err := unicast(net.IP(raw[:4])); err == nil {
			l.DNS = append(l.DNS, a)
		}
	}
	if name := string(p.Options.Get(dhcpv4.OptionDomainName)); validDomain(name) {
		l.Domain = name
	}
}

func (l *Lease) parseTimes(p *dhcpv4.DHCPv4) error {
	lease, ok := seconds(p, dhcpv4.OptionIPAddressLeaseTime)
	if !ok && p.MessageType() == dhcpv4.MessageTypeAck {
		return errors.New("lease time: none given")
	}
	if !ok {
		lease = maxLease // an OFFER: the ACK will say
	}
	if lease < minLease {
		return fmt.Errorf("lease time: %v is less than %v", lease, minLease)
	}
	lease = min(lease, maxLease)
	t1, ok1 := seconds(p, dhcpv4.OptionRenewTimeValue)
	t2, ok2 := seconds(p, dhcpv4.OptionRebindingTimeValue)
	if !ok1 || !ok2 || t1 < minLease/4 || t1 >= t2 || t2 >= lease {
		t1, t2 = lease/2, lease*7/8 // RFC 2131 section 4.4.5
	}
	l.Renew, l.Rebind, l.Expire = l.Obtained.Add(t1), l.Obtained.Add(t2), l.Obtained.Add(lease)
	return nil
}

func seconds(p *dhcpv4.DHCPv4, code dhcpv4.OptionCode) (time.Duration, bool) {
	b := p.Options.Get(code)
	if len(b) != 4 {
		return 0, false
	}
	n := uint32(b[0])<<24 | uint32(b[1])<<16 | uint32(b[2])<<8 | uint32(b[3])
	return time.Duration(n) * time.Second, true
}

func addrOption(p *dhcpv4.DHCPv4, code dhcpv4.OptionCode) (netip.Addr, error) {
	b := p.Options.Get(code)
	if len(b) != 4 {
		return netip.Addr{}, fmt.Errorf("%d bytes, want 4", len(b))
	}
	return unicast(net.IP(b))
}

// unicast takes an IPv4 address that a host can have.
func unicast(ip net.IP) (netip.Addr, error) {
	a, ok := netip.AddrFromSlice(ip)
	a = a.Unmap()
	if !ok || !a.Is4() {
		return netip.Addr{}, errors.New("no IPv4 address")
	}
	if b := a.As4(); !a.IsGlobalUnicast() || b[0] == 0 || b[0] >= 224 {
		return netip.Addr{}, fmt.Errorf("%v is no unicast address", a)
	}
	return a, nil
}

func maskBits(mask []byte) (int, error) {
	if len(mask) != 4 {
		return 0, fmt.Errorf("%d bytes, want 4", len(mask))
	}
	bits, size := net.IPMask(mask).Size()
	if size != 32 || bits < 8 || bits > 30 {
		return 0, fmt.Errorf("%v is not of 8 to 30 leading ones", net.IP(mask))
	}
	return bits, nil
}

// isHost says that a is in the subnet, and neither its own nor its broadcast
// address.
func isHost(subnet netip.Prefix, a netip.Addr) bool {
	if !subnet.Contains(a) || subnet.Masked().Addr() == a {
		return false
	}
	return subnet.Contains(a.Next())
}

// validDomain takes host names separated by dots, RFC 1123 section 2.1.
func validDomain(s string) bool {
	if s == "" || len(s) > maxName {
		return false
	}
	label := 0
	for i := range len(s) {
		c := s[i]
		alnum := c >= 'a' && c <= 'z' || c >= 'A' && c <= 'Z' || c >= '0' && c <= '9'
		switch {
		case alnum, c == '-' && label > 0 && i+1 < len(s) && s[i+1] != '.':
			label++
		case c == '.' && label > 0 && i+1 < len(s):
			label = 0
		default:
			return false
		}
		if label > 63 {
			return false
		}
	}
	return true
}
