// SPDX-License-Identifier: Apache-2.0

// Package bus carries everything that passes between a card and its host:
// messages and doorbells over one byte stream, and data through a DMA window
// on the host's memory pool. docs/bus.md is the protocol's text; this package
// is its only implementation and serves both ends.
//
//	           ┌──────────── Run: dial, session, handler, again ───────────┐
//	stream ──► decoder ──► Session ──► Channel 0: control (orders, states) │
//	(virtio-serial port,   (HELLO,     Channel n: vhost-user, qmp,         │
//	 unix socket)           PING,                 console, door            │
//	                        credits)   Ring(queue): doorbells, coalesced   │
//	           └────────────────────────────────────────────────────────────┘
//
// A session's life, the same on both ends:
//
//	opening ──peer's HELLO that echoes our nonce──► established ──► ended(reason)
//	   │                                                              ▲
//	   └── stream error, version, role ───────────────────────────────┘
//
// established ends for one reason only: the stream failed, the peer restarted
// (a HELLO with another nonce), the peer is silent, the peer broke the
// protocol or garbled the stream, the peer said BYE, or this end closed it.
// All channels end with the session; nothing is carried over to the next one.
//
// A channel's life:
//
//	opener:   opening ──ACCEPT──► open ──CLOSE either way──► closing ──CLOSE──► gone
//	             └──CLOSE (refused)──────────────────────────────────────────────┘
//	acceptor: offered ──Accept──► open … ; offered ──Refuse──► closing …
//
// The host is hostile to the card: all that is received is bounded before it
// is stored (frame ≤ 16 KiB, channel ≤ its 64 KiB window, channels ≤
// Config.MaxChannels, offers ≤ a small backlog) and checked before it is used;
// what breaks a rule ends the session with ErrProtocol.
//
// Doorbells are latched bits. A doorbell may overtake data written before it,
// several may arrive as one, and one may arrive for a ring that is not started
// yet: whoever starts a ring must look at it once.
//
// The package does not know what vhost-user, QMP or mailbox messages mean, and
// it starts no VMM: Orders and ServeOrders carry the orders, others act.
package bus
