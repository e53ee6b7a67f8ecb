// SPDX-License-Identifier: Apache-2.0

package dhcp

import (
	"net"
	"net/netip"
	"strings"
	"testing"
	"time"

	"github.com/insomniacslk/dhcp/dhcpv4"
)

var (
	testMAC = net.HardwareAddr{2, 0, 0, 0, 0, 1}
	epoch   = time.Date(2026, 5, 1, 12, 0, 0, 0, time.UTC)
)

// goodReply is what a server sends; with changes.
func goodReply(t testing.TB, kind dhcpv4.MessageType, xid dhcpv4.TransactionID, mods ...dhcpv4.Modifier) *dhcpv4.DHCPv4 {
	t.Helper()
	base := []dhcpv4.Modifier{
		func(p *dhcpv4.DHCPv4) { p.OpCode = dhcpv4.OpcodeBootReply },
		dhcpv4.WithTransactionID(xid),
		dhcpv4.WithHwAddr(testMAC),
		dhcpv4.WithMessageType(kind),
		dhcpv4.WithYourIP(net.IP{10, 0, 2, 15}),
		dhcpv4.WithNetmask(net.CIDRMask(24, 32)),
		dhcpv4.WithOption(dhcpv4.OptRouter(net.IP{10, 0, 2, 2})),
		dhcpv4.WithOption(dhcpv4.OptServerIdentifier(net.IP{10, 0, 2, 1})),
		dhcpv4.WithLeaseTime(3600),
		dhcpv4.WithOption(dhcpv4.OptDNS(net.IP{10, 0, 2, 3}, net.IP{10, 0, 2, 4})),
		dhcpv4.WithOption(dhcpv4.OptDomainName("cards.example")),
	}
	p, err := dhcpv4.New(append(base, mods...)...)
	if err != nil {
		t.Fatal(err)
	}
	return p
}

func raw(code dhcpv4.OptionCode, b ...byte) dhcpv4.Modifier {
	return dhcpv4.WithOption(dhcpv4.OptGeneric(code, b))
}

func TestParseLease(t *testing.T) {
	t.Parallel()
	l, err := parseLease(goodReply(t, dhcpv4.MessageTypeAck, dhcpv4.TransactionID{}), epoch)
	if err != nil {
		t.Fatal(err)
	}
	if got, want := l.Address, netip.MustParsePrefix("10.0.2.15/24"); got != want {
		t.Errorf("Address = %v, want %v", got, want)
	}
	if got, want := l.Router.String(), "10.0.2.2"; got != want {
		t.Errorf("Router = %v, want %v", got, want)
	}
	for name, c := range map[string]struct{ got, want time.Time }{
		"Renew":  {l.Renew, epoch.Add(30 * time.Minute)},
		"Rebind": {l.Rebind, epoch.Add(3150 * time.Second)},
		"Expire": {l.Expire, epoch.Add(time.Hour)},
	} {
		if !c.got.Equal(c.want) {
			t.Errorf("%s = %v, want %v", name, c.got, c.want)
		}
	}
	want := "search cards.example\nnameserver 10.0.2.3\nnameserver 10.0.2.4\n"
	if got := string(resolvConf(l)); got != want {
		t.Errorf("resolv.conf = %q, want %q", got, want)
	}
}

// hostile lists replies that must not become a lease, by what is wrong.
var hostile = map[string]struct {
	mods []dhcpv4.Modifier
	want string
}{
	"no address":          {[]dhcpv4.Modifier{dhcpv4.WithYourIP(net.IPv4zero)}, "address"},
	"loopback":            {[]dhcpv4.Modifier{dhcpv4.WithYourIP(net.IP{127, 0, 0, 1})}, "address"},
	"multicast":           {[]dhcpv4.Modifier{dhcpv4.WithYourIP(net.IP{224, 0, 0, 1})}, "address"},
	"link-local":          {[]dhcpv4.Modifier{dhcpv4.WithYourIP(net.IP{169, 254, 0, 1})}, "address"},
	"reserved":            {[]dhcpv4.Modifier{dhcpv4.WithYourIP(net.IP{240, 0, 0, 1})}, "address"},
	"limited broadcast":   {[]dhcpv4.Modifier{dhcpv4.WithYourIP(net.IPv4bcast)}, "address"},
	"subnet's own":        {[]dhcpv4.Modifier{dhcpv4.WithYourIP(net.IP{10, 0, 2, 0})}, "address"},
	"subnet broadcast":    {[]dhcpv4.Modifier{dhcpv4.WithYourIP(net.IP{10, 0, 2, 255})}, "address"},
	"no mask":             {[]dhcpv4.Modifier{dhcpv4.WithoutOption(dhcpv4.OptionSubnetMask)}, "subnet mask"},
	"mask with a hole":    {[]dhcpv4.Modifier{raw(dhcpv4.OptionSubnetMask, 255, 0, 255, 0)}, "subnet mask"},
	"mask of all":         {[]dhcpv4.Modifier{raw(dhcpv4.OptionSubnetMask, 0, 0, 0, 0)}, "subnet mask"},
	"short mask":          {[]dhcpv4.Modifier{raw(dhcpv4.OptionSubnetMask, 255, 255)}, "subnet mask"},
	"no server":           {[]dhcpv4.Modifier{dhcpv4.WithoutOption(dhcpv4.OptionServerIdentifier)}, "server identifier"},
	"server is multicast": {[]dhcpv4.Modifier{raw(dhcpv4.OptionServerIdentifier, 230, 0, 0, 1)}, "server identifier"},
	"router elsewhere":    {[]dhcpv4.Modifier{raw(dhcpv4.OptionRouter, 10, 9, 9, 9)}, "router"},
	"router is us":        {[]dhcpv4.Modifier{raw(dhcpv4.OptionRouter, 10, 0, 2, 15)}, "router"},
	"router cut off":      {[]dhcpv4.Modifier{raw(dhcpv4.OptionRouter, 10, 0, 2)}, "router"},
	"no lease time":       {[]dhcpv4.Modifier{dhcpv4.WithoutOption(dhcpv4.OptionIPAddressLeaseTime)}, "lease time"},
	"lease time zero":     {[]dhcpv4.Modifier{dhcpv4.WithLeaseTime(0)}, "lease time"},
	"lease time cut off":  {[]dhcpv4.Modifier{raw(dhcpv4.OptionIPAddressLeaseTime, 1)}, "lease time"},
}

func TestParseLeaseRefuses(t *testing.T) {
	t.Parallel()
	for name, c := range hostile {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			l, err := parseLease(goodReply(t, dhcpv4.MessageTypeAck, dhcpv4.TransactionID{}, c.mods...), epoch)
			if err == nil || l != nil {
				t.Fatalf("got %+v, %v; want an error and no lease", l, err)
			}
			if !strings.HasPrefix(err.Error(), c.want) {
				t.Errorf("error %q does not name %q", err, c.want)
			}
		})
	}
}

func TestParseLeaseBoundsTimes(t *testing.T) {
	t.Parallel()
	four := func(code dhcpv4.OptionCode, n uint32) dhcpv4.Modifier {
		return raw(code, byte(n>>24), byte(n>>16), byte(n>>8), byte(n))
	}
	const t1, t2 = dhcpv4.OptionRenewTimeValue, dhcpv4.OptionRebindingTimeValue
	tests := map[string]struct {
		mods                  []dhcpv4.Modifier
		renew, rebind, expire time.Duration
	}{
		"given":      {[]dhcpv4.Modifier{four(t1, 60), four(t2, 120)}, time.Minute, 2 * time.Minute, time.Hour},
		"infinite":   {[]dhcpv4.Modifier{dhcpv4.WithLeaseTime(0xffffffff)}, maxLease / 2, maxLease * 7 / 8, maxLease},
		"T1 is zero": {[]dhcpv4.Modifier{four(t1, 0), four(t2, 120)}, 30 * time.Minute, 3150 * time.Second, time.Hour},
		"T1 late":    {[]dhcpv4.Modifier{four(t1, 3000), four(t2, 120)}, 30 * time.Minute, 3150 * time.Second, time.Hour},
		"T2 late":    {[]dhcpv4.Modifier{four(t1, 60), four(t2, 9999)}, 30 * time.Minute, 3150 * time.Second, time.Hour},
	}
	for name, c := range tests {
		l, err := parseLease(goodReply(t, dhcpv4.MessageTypeAck, dhcpv4.TransactionID{}, c.mods...), epoch)
		if err != nil {
			t.Errorf("%s: %v", name, err)
			continue
		}
		got := [3]time.Duration{l.Renew.Sub(epoch), l.Rebind.Sub(epoch), l.Expire.Sub(epoch)}
		if want := [3]time.Duration{c.renew, c.rebind, c.expire}; got != want {
			t.Errorf("%s: T1, T2, end = %v, want %v", name, got, want)
		}
	}
}

func TestNamesCannotAddLines(t *testing.T) {
	t.Parallel()
	for _, name := range []string{"a\nnameserver 6.6.6.6", "a b", "-a", "a-", "a..b", ".a", "a.", "a-.b", strings.Repeat("a", 64), "ä", "a;b", strings.Repeat("a.", 127) + "a"} {
		p := goodReply(t, dhcpv4.MessageTypeAck, dhcpv4.TransactionID{}, raw(dhcpv4.OptionDomainName, []byte(name)...))
		l, err := parseLease(p, epoch)
		if err != nil {
			t.Fatal(err)
		}
		if l.Domain != "" {
			t.Errorf("domain %q was taken", name)
		}
	}
	for _, name := range []string{"a", "a.b", "card-1.rack.example", "1a"} {
		if !validDomain(name) {
			t.Errorf("domain %q was refused", name)
		}
	}
}

// FuzzParseLease states: an error or a lease, never both nor neither; and a
// lease keeps what its fields promise.
func FuzzParseLease(f *testing.F) {
	f.Add(goodReply(f, dhcpv4.MessageTypeAck, dhcpv4.TransactionID{1}).ToBytes())
	for _, c := range hostile {
		f.Add(goodReply(f, dhcpv4.MessageTypeOffer, dhcpv4.TransactionID{1}, c.mods...).ToBytes())
	}
	f.Fuzz(func(t *testing.T, b []byte) {
		p := parseMessage(b)
		if p == nil {
			return
		}
		l, err := parseLease(p, epoch)
		if (err == nil) != (l != nil) {
			t.Fatalf("lease %+v with error %v", l, err)
		}
		if l == nil {
			return
		}
		if !isHost(l.Address, l.Address.Addr()) || l.Router.IsValid() && !l.Address.Contains(l.Router) || len(l.DNS) > maxDNS {
			t.Fatalf("lease %+v", l)
		}
		if !l.Obtained.Before(l.Renew) || !l.Renew.Before(l.Rebind) || !l.Rebind.Before(l.Expire) || l.Expire.Sub(l.Obtained) > maxLease {
			t.Fatalf("times %+v", l)
		}
		if n := strings.Count(string(resolvConf(l)), "\n"); n > maxDNS+1 {
			t.Fatalf("resolv.conf of %d lines", n)
		}
	})
}
