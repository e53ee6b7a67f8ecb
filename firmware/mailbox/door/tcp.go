// SPDX-License-Identifier: Apache-2.0

package door

import (
	"context"
	"net"
	"net/netip"
	"strings"
	"syscall"

	"golang.org/x/sys/unix"
)

// ListenTCP listens on a TCP address that this machine need not have yet: DHCP
// may give it later, and whoever is there first is not to wait for a retry.
// Present tells whether it is there.
func ListenTCP(ctx context.Context, address string) (net.Listener, error) {
	lc := net.ListenConfig{Control: freeBind}
	return lc.Listen(ctx, "tcp", address)
}

// freeBind lifts the condition that an address be the machine's own to be bound.
func freeBind(network, _ string, c syscall.RawConn) error {
	level, option := unix.SOL_IP, unix.IP_FREEBIND
	if strings.HasSuffix(network, "6") {
		level, option = unix.SOL_IPV6, unix.IPV6_FREEBIND
	}
	var err error
	if cerr := c.Control(func(fd uintptr) { err = unix.SetsockoptInt(int(fd), level, option, 1) }); cerr != nil {
		return cerr
	}
	return err
}

// Present reports whether this machine has an address now; the unspecified one
// it always has. The kernel is asked the way that knows all cases: by a socket
// that is bound to it. When that fails for whatever reason, nobody saw the address.
func Present(address netip.Addr) bool {
	c, err := net.ListenUDP("udp", net.UDPAddrFromAddrPort(netip.AddrPortFrom(address, 0)))
	if err != nil {
		return false
	}
	_ = c.Close()
	return true
}
