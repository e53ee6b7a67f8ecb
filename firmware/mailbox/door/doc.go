// SPDX-License-Identifier: Apache-2.0

// Package door carries mailbox messages over byte streams: a TLS 1.3 listener,
// a Unix socket, or any other stream such as a channel of the bus. Every door
// speaks the same frames to the same mailbox.
//
//	frame = u32 length of body (big-endian) | u8 kind | body
//
//	kind  name      direction         body
//	1     envelope  requester → card  a command or public request, at most 64 KiB
//	2     receipt   card → requester  at most 4 MiB
//	3     data      both              within a stream, at most 32 KiB
//	4     end       both              empty: this side sends no more data
//
// One connection carries one command after the other:
//
//	         ┌──────────────────── receipt (final) ───────────────────┐
//	         ▼                                                        │
//	     ┌──────┐  envelope   ┌─────────┐ receipt "accepted"  ┌───────┴──┐
//	────►│ idle ├────────────►│ running ├────────────────────►│ stream   │
//	     └──────┘             └────┬────┘                     │ data ⇄   │
//	         ▲      receipt        │                          │ end  ⇄   │
//	         └─────────────────────┘                          └──────────┘
//
// The card sends its end before the final receipt, and then waits for the
// requester's end. A frame of any other kind ends the connection.
//
// # What protects the mailbox
//
// All of this happens before any signature is looked at:
//
//   - sizes: memory grows with what has arrived, not with what was announced;
//   - time: a frame, a TLS handshake and silence between commands are bounded;
//     whoever takes longer loses the connection;
//   - connections: bounded for each door and each peer (an IPv4 address, an
//     IPv6 /64, or a name for other streams). When there is no room, an idle
//     connection of the peer that has most of them is closed. Idle is every one
//     that does not execute an authenticated command: signed by a known key, for
//     this card and for now, with a fresh nonce;
//   - rate: each peer has a token bucket; a command that is refused, and is not
//     authenticated, costs five. Who is overdrawn is not read from.
//
// Every connection has its own goroutine and every peer its own bucket: one
// that is slow or hostile waits for itself.
//
// # Channel binding
//
// The TLS certificate is made at start, self-signed, and means nothing by
// itself. The SHA-256 of its SubjectPublicKeyInfo is in every receipt, under
// the signature of the card's receipt key. A Client compares it with the
// certificate it saw: a relay in the middle has another key and is found with
// the first receipt, before any command is signed.
//
// The package does not know what commands mean, who may send them, or how they
// are signed; it asks the mailbox.
package door
