// SPDX-License-Identifier: Apache-2.0

package dhcp

import (
	"errors"
	"fmt"
	"math"
	"net"
	"time"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
)

const (
	routeProtocol = unix.RTPROT_DHCP
	routeMetric   = 100
)

// link is the management interface.
type link struct {
	name  string
	index int
	mac   net.HardwareAddr
	up    bool // has carrier
}

// pickLink finds the management interface: the one named, or the first physical
// Ethernet interface with carrier, by index. All that are candidates are set
// up, since carrier shows on such ones only. The error says what is missing.
func pickLink(name string) (link, error) {
	if name != "" {
		l, err := netlink.LinkByName(name)
		if err != nil {
			return link{}, fmt.Errorf("interface %s: %w", name, err)
		}
		return raise(l)
	}
	all, err := netlink.LinkList()
	if err != nil {
		return link{}, fmt.Errorf("list interfaces: %w", err)
	}
	seen := errors.New("no Ethernet interface")
	for _, l := range all {
		a := l.Attrs()
		if l.Type() != "device" || a.EncapType != "ether" || a.Flags&net.FlagLoopback != 0 {
			continue
		}
		got, err := raise(l)
		if err != nil {
			seen = err
			continue
		}
		if got.up {
			return got, nil
		}
		seen = fmt.Errorf("interface %s: no carrier", got.name)
	}
	return link{}, seen
}

func raise(l netlink.Link) (link, error) {
	a := l.Attrs()
	if len(a.HardwareAddr) != 6 {
		return link{}, fmt.Errorf("interface %s: not Ethernet", a.Name)
	}
	if a.Flags&net.FlagUp == 0 {
		if err := netlink.LinkSetUp(l); err != nil {
			return link{}, fmt.Errorf("interface %s: set up: %w", a.Name, err)
		}
	}
	return link{name: a.Name, index: a.Index, mac: a.HardwareAddr, up: hasCarrier(a)}, nil
}

func hasCarrier(a *netlink.LinkAttrs) bool { return a.RawFlags&unix.IFF_LOWER_UP != 0 }

// setLease makes the kernel's view that of the lease: its address, its default
// route, and none of ours besides. It may be called again with the same lease.
func setLease(l link, lease *Lease, now time.Time) error {
	left := int(min(lease.Expire.Sub(now)/time.Second, math.MaxInt32))
	if left <= 0 {
		return errors.New("lease has run out")
	}
	nl := &netlink.Device{LinkAttrs: netlink.LinkAttrs{Index: l.index, Name: l.name}}
	addr := &netlink.Addr{
		IPNet:       &net.IPNet{IP: lease.Address.Addr().AsSlice(), Mask: net.CIDRMask(lease.Address.Bits(), 32)},
		ValidLft:    left,
		PreferedLft: left,
	}
	if err := netlink.AddrReplace(nl, addr); err != nil {
		return fmt.Errorf("set address %v on %s: %w", lease.Address, l.name, err)
	}
	if err := removeAddresses(nl, addr); err != nil {
		return err
	}
	return setRoute(nl, lease)
}

func setRoute(nl netlink.Link, lease *Lease) error {
	if !lease.Router.IsValid() {
		return removeRoutes(nl)
	}
	r := &netlink.Route{
		LinkIndex: nl.Attrs().Index,
		Dst:       &net.IPNet{IP: net.IPv4zero.To4(), Mask: net.CIDRMask(0, 32)},
		Gw:        lease.Router.AsSlice(),
		Src:       lease.Address.Addr().AsSlice(),
		Protocol:  routeProtocol,
		Priority:  routeMetric,
	}
	if err := netlink.RouteReplace(r); err != nil {
		return fmt.Errorf("set route via %v: %w", lease.Router, err)
	}
	return nil
}

// clearLease removes what setLease made, of whatever lease.
func clearLease(l link) error {
	nl := &netlink.Device{LinkAttrs: netlink.LinkAttrs{Index: l.index, Name: l.name}}
	return errors.Join(removeRoutes(nl), removeAddresses(nl, nil))
}

// removeAddresses removes the IPv4 addresses that have an end (those are ours)
// except one. Others were set by somebody for good.
func removeAddresses(nl netlink.Link, except *netlink.Addr) error {
	all, err := netlink.AddrList(nl, netlink.FAMILY_V4)
	if err != nil {
		return fmt.Errorf("list addresses of %s: %w", nl.Attrs().Name, err)
	}
	for _, a := range all {
		forever := a.Flags&unix.IFA_F_PERMANENT != 0
		if forever || except != nil && a.IPNet.String() == except.IPNet.String() {
			continue
		}
		if err := netlink.AddrDel(nl, &a); err != nil && !errors.Is(err, unix.EADDRNOTAVAIL) {
			return fmt.Errorf("remove address %v of %s: %w", a.IPNet, nl.Attrs().Name, err)
		}
	}
	return nil
}

func removeRoutes(nl netlink.Link) error {
	filter := &netlink.Route{LinkIndex: nl.Attrs().Index, Protocol: routeProtocol}
	all, err := netlink.RouteListFiltered(netlink.FAMILY_V4, filter, netlink.RT_FILTER_OIF|netlink.RT_FILTER_PROTOCOL)
	if err != nil {
		return fmt.Errorf("list routes of %s: %w", nl.Attrs().Name, err)
	}
	for _, r := range all {
		if err := netlink.RouteDel(&r); err != nil && !errors.Is(err, unix.ESRCH) {
			return fmt.Errorf("remove route of %s: %w", nl.Attrs().Name, err)
		}
	}
	return nil
}
