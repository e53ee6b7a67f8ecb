// SPDX-License-Identifier: Apache-2.0

// Package dhcp gives the management interface its address: a DHCPv4 client
// (RFC 2131) that keeps its lease and says how it stands.
//
//	          DISCOVER          OFFER            ACK
//	init ───────────► selecting ─────► requesting ────► bound
//	 ▲  ▲                 ▲                │ │            │ T1, or link back
//	 │  │ wait, longer    └── no answer ───┘ │ NAK        ▼
//	 │  │ each time                          │         renewing ──ACK──► bound
//	 │  └────────────────────────────────────┘            │ T2
//	 │                                                    ▼
//	 └──────────── NAK, or lease expired ──────────── rebinding ──ACK──► bound
//
// lease is the pure half: it takes messages and times, and says what to send,
// when to be woken, and which address to set or remove. Everything in a message
// was written by somebody on the network; it is validated into a Lease before
// anything of it is used, and a message that is not valid is not answered.
// client is the thin half: raw socket, netlink, resolv.conf.
//
// Addresses are given to the kernel with their remaining lifetime, so that one
// whose lease has run out goes away even if nobody is left to remove it; they
// stay when the client ends, so that a restarted agent keeps its connections.
//
// What it does not do: authenticate the server (DHCP cannot), probe for an
// address conflict, IPv6, options other than mask, router, name servers and
// domain. The clock is not set from the network.
package dhcp
