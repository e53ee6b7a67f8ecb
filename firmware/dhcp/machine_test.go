// SPDX-License-Identifier: Apache-2.0

package dhcp

import (
	"errors"
	"net"
	"testing"
	"time"

	"github.com/insomniacslk/dhcp/dhcpv4"

	"github.com/davit-dpu/davit/firmware/spec"
)

// bench drives a machine through time.
type bench struct {
	*testing.T
	m   *machine
	now time.Time
}

func newBench(t *testing.T) *bench {
	n := uint32(0)
	b := &bench{T: t, now: epoch}
	b.m = newMachine(testMAC, "card", func() uint32 { n += 0x1000_0000; return n }, b.now)
	return b
}

// wake moves on to the time that the machine asked for.
func (b *bench) wake() {
	b.Helper()
	if b.m.wake.Before(b.now) {
		b.Fatalf("wake %v is in the past of %v", b.m.wake, b.now)
	}
	b.now = b.m.wake
	b.m.timeout(b.now)
}

// sent takes the one message that the machine wants sent.
func (b *bench) sent(kind dhcpv4.MessageType) outgoing {
	b.Helper()
	if len(b.m.out) != 1 {
		b.Fatalf("%d messages to send, want 1", len(b.m.out))
	}
	o := b.m.out[0]
	b.m.out = nil
	if got := o.message.MessageType(); got != kind {
		b.Fatalf("sent %v, want %v", got, kind)
	}
	return o
}

func (b *bench) reply(kind dhcpv4.MessageType, mods ...dhcpv4.Modifier) error {
	b.Helper()
	return b.m.receive(goodReply(b, kind, b.m.xid, mods...), b.now)
}

func (b *bench) phase(want phase) {
	b.Helper()
	if b.m.phase != want {
		b.Fatalf("phase %d, want %d (%s)", b.m.phase, want, b.m.status.Reason)
	}
}

// bound goes through the first exchange.
func (b *bench) bound() {
	b.Helper()
	b.wake()
	b.sent(dhcpv4.MessageTypeDiscover)
	if err := b.reply(dhcpv4.MessageTypeOffer); err != nil {
		b.Fatal(err)
	}
	r := b.sent(dhcpv4.MessageTypeRequest)
	if got := r.message.RequestedIPAddress(); !got.Equal(net.IP{10, 0, 2, 15}) {
		b.Fatalf("requested %v", got)
	}
	if got := r.message.ServerIdentifier(); !got.Equal(net.IP{10, 0, 2, 1}) {
		b.Fatalf("server identifier %v", got)
	}
	if err := b.reply(dhcpv4.MessageTypeAck); err != nil {
		b.Fatal(err)
	}
	b.phase(phaseBound)
	if b.m.current == nil || b.m.status.Phase != spec.PhaseReady {
		b.Fatalf("lease %v, status %+v", b.m.current, b.m.status)
	}
}

func TestRenewAtT1(t *testing.T) {
	t.Parallel()
	b := newBench(t)
	b.bound()
	first := b.m.current
	b.wake()
	if got, want := b.now, epoch.Add(30*time.Minute); !got.Equal(want) {
		t.Errorf("renews at %v, want %v", got, want)
	}
	b.phase(phaseRenewing)
	o := b.sent(dhcpv4.MessageTypeRequest)
	if o.to.String() != "10.0.2.1" || !o.message.ClientIPAddr.Equal(net.IP{10, 0, 2, 15}) {
		t.Errorf("renewal to %v, from %v", o.to, o.message.ClientIPAddr)
	}
	if o.message.ServerIdentifier() != nil || o.message.RequestedIPAddress() != nil {
		t.Error("renewal names server or address in options, RFC 2131 section 4.3.6 forbids that")
	}
	b.now = b.now.Add(time.Second)
	if err := b.reply(dhcpv4.MessageTypeAck); err != nil {
		t.Fatal(err)
	}
	b.phase(phaseBound)
	if b.m.current == first || !b.m.current.Obtained.Equal(b.now.Add(-time.Second)) {
		t.Errorf("lease counts from %v, want the time of the request", b.m.current.Obtained)
	}
}

func TestSilentServer(t *testing.T) {
	t.Parallel()
	b := newBench(t)
	b.bound()
	end, rebind := b.m.current.Expire, b.m.current.Rebind
	var unicasts, broadcasts int
	for b.m.phase != phaseInit && b.m.phase != phaseSelecting {
		b.wake()
		if len(b.m.out) != 1 {
			t.Fatalf("%d messages", len(b.m.out))
		}
		o := b.m.out[0]
		b.m.out = nil
		switch {
		case o.message.MessageType() == dhcpv4.MessageTypeDiscover:
		case o.to.IsValid():
			unicasts++
			if !b.now.Before(rebind) {
				t.Errorf("asks its server at %v, after T2", b.now)
			}
		default:
			broadcasts++
			if b.now.Before(rebind) {
				t.Errorf("asks all at %v, before T2", b.now)
			}
		}
		if unicasts+broadcasts > 60 {
			t.Fatal("asks too often")
		}
	}
	if !b.now.Equal(end) {
		t.Errorf("gave up at %v, want at the lease's end %v", b.now, end)
	}
	if b.m.current != nil {
		t.Error("keeps the address of an expired lease")
	}
	if unicasts < 2 || broadcasts < 2 {
		t.Errorf("%d renewals, %d rebinds", unicasts, broadcasts)
	}
}

func TestRebindTakesAnotherServer(t *testing.T) {
	t.Parallel()
	b := newBench(t)
	b.bound()
	for b.m.phase != phaseRebinding {
		b.wake()
		b.m.out = nil
	}
	if err := b.reply(dhcpv4.MessageTypeAck, raw(dhcpv4.OptionServerIdentifier, 10, 0, 2, 9)); err != nil {
		t.Fatal(err)
	}
	if got := b.m.current.Server.String(); got != "10.0.2.9" {
		t.Errorf("server %s", got)
	}
}

func TestNakGivesUpTheAddress(t *testing.T) {
	t.Parallel()
	b := newBench(t)
	b.bound()
	b.wake()
	b.m.out = nil
	var last time.Duration
	for i := range 8 {
		if err := b.reply(dhcpv4.MessageTypeNak); err != nil {
			t.Fatal(err)
		}
		b.phase(phaseInit)
		if b.m.current != nil || b.m.status.Phase != spec.PhaseFailed {
			t.Fatalf("after NAK: lease %v, status %+v", b.m.current, b.m.status)
		}
		wait := b.m.wake.Sub(b.now)
		if wait <= last*9/8 && i < 6 {
			t.Errorf("NAK %d: waits %v, after %v before", i, wait, last)
		}
		last = wait
		b.wake()
		b.sent(dhcpv4.MessageTypeDiscover)
		if err := b.reply(dhcpv4.MessageTypeOffer); err != nil {
			t.Fatal(err)
		}
		b.sent(dhcpv4.MessageTypeRequest)
	}
	if err := b.reply(dhcpv4.MessageTypeAck); err != nil {
		t.Fatal(err)
	}
	if b.m.naks != 0 {
		t.Error("refusals are not forgotten after an acknowledgement")
	}
}

func TestRepliesThatChangeNothing(t *testing.T) {
	t.Parallel()
	renewing := func(b *bench) { b.bound(); b.wake(); b.m.out = nil }
	selecting := func(b *bench) { b.wake(); b.m.out = nil }
	tests := map[string]struct {
		before func(*bench)
		kind   dhcpv4.MessageType
		mod    dhcpv4.Modifier
		want   error
	}{
		"other transaction":    {renewing, dhcpv4.MessageTypeAck, dhcpv4.WithTransactionID(dhcpv4.TransactionID{9, 9, 9, 9}), errNotForUs},
		"other card":           {renewing, dhcpv4.MessageTypeAck, dhcpv4.WithHwAddr(net.HardwareAddr{2, 0, 0, 0, 0, 2}), errNotForUs},
		"request, not reply":   {renewing, dhcpv4.MessageTypeAck, func(p *dhcpv4.DHCPv4) { p.OpCode = dhcpv4.OpcodeBootRequest }, errNotForUs},
		"offer out of turn":    {renewing, dhcpv4.MessageTypeOffer, func(*dhcpv4.DHCPv4) {}, errNotNow},
		"ack before request":   {selecting, dhcpv4.MessageTypeAck, func(*dhcpv4.DHCPv4) {}, errNotNow},
		"nak before request":   {selecting, dhcpv4.MessageTypeNak, func(*dhcpv4.DHCPv4) {}, errNotNow},
		"ack of another":       {renewing, dhcpv4.MessageTypeAck, dhcpv4.WithYourIP(net.IP{10, 0, 2, 16}), errOtherLease},
		"ack by another":       {renewing, dhcpv4.MessageTypeAck, raw(dhcpv4.OptionServerIdentifier, 10, 0, 2, 9), errOtherLease},
		"nak by another":       {renewing, dhcpv4.MessageTypeNak, raw(dhcpv4.OptionServerIdentifier, 10, 0, 2, 9), errOtherLease},
		"nak without a server": {renewing, dhcpv4.MessageTypeNak, dhcpv4.WithoutOption(dhcpv4.OptionServerIdentifier), nil},
		"invalid ack":          {renewing, dhcpv4.MessageTypeAck, dhcpv4.WithLeaseTime(0), nil},
		"invalid offer":        {selecting, dhcpv4.MessageTypeOffer, dhcpv4.WithYourIP(net.IPv4zero), nil},
	}
	for name, c := range tests {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			b := newBench(t)
			c.before(b)
			before := *b.m
			err := b.reply(c.kind, c.mod)
			if err == nil || c.want != nil && !errors.Is(err, c.want) {
				t.Errorf("error %v, want %v", err, c.want)
			}
			if b.m.phase != before.phase || b.m.current != before.current || b.m.wake != before.wake || b.m.status != before.status || len(b.m.out) != 0 {
				t.Errorf("changed from %+v to %+v", before, *b.m)
			}
		})
	}
}

func TestOfferWithoutAcknowledgement(t *testing.T) {
	t.Parallel()
	b := newBench(t)
	b.wake()
	b.sent(dhcpv4.MessageTypeDiscover)
	if err := b.reply(dhcpv4.MessageTypeOffer); err != nil {
		t.Fatal(err)
	}
	for range maxRequests - 1 {
		b.sent(dhcpv4.MessageTypeRequest)
		b.wake()
	}
	b.sent(dhcpv4.MessageTypeRequest)
	b.wake()
	b.sent(dhcpv4.MessageTypeDiscover)
	b.phase(phaseSelecting)
}

func TestLinkBackAsksAgain(t *testing.T) {
	t.Parallel()
	b := newBench(t)
	b.bound()
	b.now = b.now.Add(time.Minute)
	b.m.linkBack(b.now)
	b.phase(phaseRebinding)
	if o := b.sent(dhcpv4.MessageTypeRequest); o.to.IsValid() {
		t.Error("asks one server: it may be another network")
	}
	if b.m.current == nil {
		t.Error("gave up a lease that still holds")
	}
	if err := b.reply(dhcpv4.MessageTypeAck); err != nil {
		t.Fatal(err)
	}
	b.phase(phaseBound)
}

func TestBackoffIsBounded(t *testing.T) {
	t.Parallel()
	for _, random := range []uint32{0, 1 << 31, 0xffffffff} {
		for tries := range 200 {
			d := backoff(tries, random)
			if d < firstRetry*7/8 || d > maxRetry*9/8 {
				t.Fatalf("try %d waits %v", tries, d)
			}
		}
	}
}
