// SPDX-License-Identifier: Apache-2.0

package dhcp

import (
	"bytes"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"time"

	"github.com/insomniacslk/dhcp/dhcpv4"

	"github.com/davit-dpu/davit/firmware/spec"
)

// phase is where the client is, RFC 2131 figure 5.
type phase int

const (
	phaseInit phase = iota // waits until it may send DISCOVER
	phaseSelecting
	phaseRequesting
	phaseBound
	phaseRenewing
	phaseRebinding
)

// Retransmission, RFC 2131 section 4.1, but sooner at first: a card is waited
// for.
const (
	firstRetry  = time.Second
	maxRetry    = 64 * time.Second
	maxRequests = 4 // REQUESTs for one offer
	minRenewal  = time.Second
)

// outgoing is a message to send: to one server, or to all.
type outgoing struct {
	message *dhcpv4.DHCPv4
	to      netip.Addr // invalid: broadcast
}

// machine is the client without its kernel. Time goes in as an argument; wake
// says when timeout wants to be called. It is not safe for concurrent use.
type machine struct {
	mac      net.HardwareAddr
	hostname string
	random   func() uint32

	phase   phase
	wake    time.Time // when to call timeout
	xid     dhcpv4.TransactionID
	began   time.Time // of the exchange, for "secs"
	sent    time.Time // of the last request
	tries   int       // messages sent in this phase
	naks    int       // in a row
	offer   *Lease
	current *Lease // the lease whose address is to be set; nil: none

	out    []outgoing // to be sent and emptied by the caller
	status spec.Condition
}

func newMachine(mac net.HardwareAddr, hostname string, random func() uint32, now time.Time) *machine {
	m := &machine{mac: mac, hostname: hostname, random: random}
	m.restart(now, now, spec.PhaseStarting, "asking for an address")
	return m
}

// restart gives up any lease and begins anew at the given time.
func (m *machine) restart(now, at time.Time, p spec.Phase, reason string) {
	m.phase, m.wake = phaseInit, at
	m.tries, m.offer, m.current = 0, nil, nil
	m.report(now, p, reason)
}

// report sets the condition; Since is when its phase was entered.
func (m *machine) report(now time.Time, p spec.Phase, reason string) {
	if p == m.status.Phase {
		now = m.status.Since
	}
	m.status = spec.Condition{Phase: p, Reason: reason, Since: now}
}

// linkBack asks again for the lease that we have: the link was away, and may
// lead to another network now.
func (m *machine) linkBack(now time.Time) {
	if m.current == nil {
		m.restart(now, now, spec.PhaseStarting, "link is back, asking for an address")
		return
	}
	m.enter(phaseRebinding, now)
	m.report(now, spec.PhaseStarting, "link is back, asking whether the lease still holds")
	m.timeout(now)
}

// timeout does what is due at now.
func (m *machine) timeout(now time.Time) {
	if m.current != nil && !now.Before(m.current.Expire) {
		m.restart(now, now, spec.PhaseFailed, fmt.Sprintf("lease expired: server %v did not answer", m.current.Server))
	}
	switch m.phase {
	case phaseInit:
		m.enter(phaseSelecting, now)
		m.send(now)
	case phaseSelecting:
		m.report(now, spec.PhaseStarting, fmt.Sprintf("no answer to %d DISCOVER", m.tries))
		m.send(now)
	case phaseRequesting:
		if m.tries >= maxRequests {
			m.restart(now, now, spec.PhaseStarting, fmt.Sprintf("server %v made an offer and did not answer the request", m.offer.Server))
			m.enter(phaseSelecting, now)
		}
		m.send(now)
	case phaseBound:
		m.enter(phaseRenewing, now)
		m.send(now)
	case phaseRenewing:
		if !now.Before(m.current.Rebind) {
			m.enter(phaseRebinding, now)
		}
		m.report(now, spec.PhaseReady, fmt.Sprintf("server %v does not answer; lease ends %s", m.current.Server, clock(m.current.Expire)))
		m.send(now)
	case phaseRebinding:
		m.send(now)
	}
}

func (m *machine) enter(p phase, now time.Time) {
	m.phase, m.tries, m.began = p, 0, now
	x := m.random()
	m.xid = dhcpv4.TransactionID{byte(x >> 24), byte(x >> 16), byte(x >> 8), byte(x)}
}

// send sends the message of this phase and sets the time of its repetition.
func (m *machine) send(now time.Time) {
	m.tries++
	m.sent = now
	o, err := m.message(now)
	if err != nil {
		// Only a lack of entropy could be the reason, and we bring our own.
		m.report(now, spec.PhaseFailed, err.Error())
	} else {
		m.out = append(m.out, o)
	}
	m.wake = now.Add(m.delay(now))
}

// delay is the time until the message of this phase is repeated.
func (m *machine) delay(now time.Time) time.Duration {
	switch m.phase {
	case phaseRenewing:
		return min(max(m.current.Rebind.Sub(now)/2, minRenewal), m.current.Expire.Sub(now))
	case phaseRebinding:
		return min(max(m.current.Expire.Sub(now)/2, minRenewal), m.current.Expire.Sub(now))
	}
	return backoff(m.tries, m.random())
}

// backoff doubles with each try and is spread by an eighth to both sides, so
// that cards which start together do not ask together.
func backoff(tries int, random uint32) time.Duration {
	d := firstRetry
	for i := 1; i < tries && d < maxRetry; i++ {
		d *= 2
	}
	spread := d / 8
	return d - spread + time.Duration(uint64(random)*uint64(2*spread)>>32)
}

func (m *machine) message(now time.Time) (outgoing, error) {
	mods := []dhcpv4.Modifier{
		dhcpv4.WithTransactionID(m.xid),
		dhcpv4.WithHwAddr(m.mac),
		dhcpv4.WithRequestedOptions(dhcpv4.OptionSubnetMask, dhcpv4.OptionRouter, dhcpv4.OptionDomainNameServer,
			dhcpv4.OptionDomainName, dhcpv4.OptionIPAddressLeaseTime, dhcpv4.OptionRenewTimeValue, dhcpv4.OptionRebindingTimeValue),
		dhcpv4.WithOption(dhcpv4.OptMaxMessageSize(maxMessage)),
	}
	if m.hostname != "" {
		mods = append(mods, dhcpv4.WithOption(dhcpv4.OptHostName(m.hostname)))
	}
	var o outgoing
	switch m.phase {
	case phaseSelecting:
		mods = append(mods, dhcpv4.WithMessageType(dhcpv4.MessageTypeDiscover))
	case phaseRequesting:
		mods = append(mods, dhcpv4.WithMessageType(dhcpv4.MessageTypeRequest),
			dhcpv4.WithOption(dhcpv4.OptRequestedIPAddress(m.offer.Address.Addr().AsSlice())),
			dhcpv4.WithOption(dhcpv4.OptServerIdentifier(m.offer.Server.AsSlice())))
	default: // renewing and rebinding: no server identifier, RFC 2131 section 4.3.6
		mods = append(mods, dhcpv4.WithMessageType(dhcpv4.MessageTypeRequest),
			dhcpv4.WithClientIP(m.current.Address.Addr().AsSlice()))
		if m.phase == phaseRenewing {
			o.to = m.current.Server
		}
	}
	msg, err := dhcpv4.New(mods...)
	if err != nil {
		return outgoing{}, fmt.Errorf("make message: %w", err)
	}
	msg.NumSeconds = uint16(min(now.Sub(m.began)/time.Second, 65535))
	o.message = msg
	return o, nil
}

// Reasons why a message is not used.
var (
	errNotForUs   = errors.New("not an answer to our message")
	errNotNow     = errors.New("not what is waited for")
	errOtherLease = errors.New("not the lease that was asked for")
)

// receive takes a message. The error says why it was not used; nothing has
// changed then.
func (m *machine) receive(p *dhcpv4.DHCPv4, now time.Time) error {
	if p.OpCode != dhcpv4.OpcodeBootReply || p.TransactionID != m.xid || !bytes.Equal(p.ClientHWAddr, m.mac) {
		return errNotForUs
	}
	switch t := p.MessageType(); {
	case t == dhcpv4.MessageTypeOffer && m.phase == phaseSelecting:
		return m.offered(p, now)
	case t == dhcpv4.MessageTypeAck && (m.phase == phaseRequesting || m.phase == phaseRenewing || m.phase == phaseRebinding):
		return m.acknowledged(p, now)
	case t == dhcpv4.MessageTypeNak && (m.phase == phaseRequesting || m.phase == phaseRenewing || m.phase == phaseRebinding):
		return m.refused(p, now)
	}
	return errNotNow
}

func (m *machine) offered(p *dhcpv4.DHCPv4, now time.Time) error {
	l, err := parseLease(p, now)
	if err != nil {
		return fmt.Errorf("offer: %w", err)
	}
	m.offer = l
	xid := m.xid // the request belongs to the same exchange
	m.enter(phaseRequesting, now)
	m.xid = xid
	m.send(now)
	return nil
}

// asked is the lease that we asked for last.
func (m *machine) asked() *Lease {
	if m.phase == phaseRequesting {
		return m.offer
	}
	return m.current
}

func (m *machine) acknowledged(p *dhcpv4.DHCPv4, now time.Time) error {
	l, err := parseLease(p, m.sent)
	if err != nil {
		return fmt.Errorf("acknowledgement: %w", err)
	}
	asked := m.asked()
	if l.Address.Addr() != asked.Address.Addr() || m.phase != phaseRebinding && l.Server != asked.Server {
		return fmt.Errorf("acknowledgement of %v by %v: %w", l.Address, l.Server, errOtherLease)
	}
	m.phase, m.naks = phaseBound, 0
	m.current, m.offer, m.wake = l, nil, l.Renew
	m.report(now, spec.PhaseReady, fmt.Sprintf("lease from %v until %s", l.Server, clock(l.Expire)))
	return nil
}

// refused handles a NAK: the address must not be used any longer, RFC 2131
// section 3.2. Each further NAK makes the wait before a new start longer.
func (m *machine) refused(p *dhcpv4.DHCPv4, now time.Time) error {
	server, err := addrOption(p, dhcpv4.OptionServerIdentifier)
	if err != nil {
		return fmt.Errorf("refusal: server identifier: %w", err)
	}
	if asked := m.asked(); m.phase != phaseRebinding && server != asked.Server {
		return fmt.Errorf("refusal by %v: %w", server, errOtherLease)
	}
	m.naks++
	wait := backoff(m.naks, m.random())
	m.restart(now, now.Add(wait), spec.PhaseFailed, fmt.Sprintf("server %v refused the lease (NAK)", server))
	return nil
}

func clock(t time.Time) string { return t.UTC().Format(time.RFC3339) }
