// SPDX-License-Identifier: Apache-2.0

package door

import (
	"errors"
	"net/netip"
	"testing"

	"golang.org/x/sys/unix"
)

// TestPresentKnowsOnlyWhatItSaw: an address that cannot be asked for is not there.
// Nothing has the zone.
func TestPresentKnowsOnlyWhatItSaw(t *testing.T) {
	if addr := netip.MustParseAddr("fe80::1%nonesuch"); Present(addr) {
		t.Errorf("%s is present", addr)
	}
}

// TestListenBeforeTheAddress: the addresses with "docs" are for documentation
// (RFC 5737 and 3849), so no machine has them.
func TestListenBeforeTheAddress(t *testing.T) {
	for _, tt := range []struct {
		name, address string
		present       bool
	}{
		{"docs 4", "192.0.2.1", false},
		{"docs 6", "2001:db8::1", false},
		{"loopback 4", "127.0.0.1", true},
		{"loopback 4, not the first", "127.9.8.7", true},
		{"loopback 6", "::1", true},
		{"any 4", "0.0.0.0", true},
		{"any 6", "::", true},
	} {
		t.Run(tt.name, func(t *testing.T) {
			addr := netip.MustParseAddr(tt.address)
			l, err := ListenTCP(t.Context(), netip.AddrPortFrom(addr, 0).String())
			if addr.Is6() && (errors.Is(err, unix.EAFNOSUPPORT) || tt.present && errors.Is(err, unix.EADDRNOTAVAIL)) {
				t.Skip("this machine has no IPv6")
			}
			if err != nil {
				t.Fatal(err)
			}
			defer l.Close()
			if got := Present(addr); got != tt.present {
				t.Errorf("present: got %v, want %v", got, tt.present)
			}
		})
	}
}
