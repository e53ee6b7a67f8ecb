// SPDX-License-Identifier: Apache-2.0

// Package control is the protocol between davitd (the client: it holds the
// keys) and vcard (the server: it reads what hosts and guests write).
//
// One packet of a unix SOCK_SEQPACKET socket is one frame: deterministic CBOR
// (RFC 8949, section 4.2.1) of at most MaxPacket bytes, decoded strictly:
// unknown and duplicate keys, indefinite lengths, tags and any other encoding
// of the same value are refused, and a refused frame ends the connection.
//
//	frame = { 1: kind, 2: id, ? 3: op, ? 4: body, ? 5: error }
//
//	client                                              server (vcard)
//	  | -- request(id, op, body) + file descriptors ------> |   fds only this way
//	  | <------------------------ reply(id, body | error) - |   in any order
//	  | -- cancel(id) ------------------------------------> |   its reply still comes
//	  | <------------------------------- event(op, body) -- |   state, newest wins
//	  | <------------------------------------------ ping -- |   is this client alive?
//	  | -- pong ------------------------------------------> |
//
// The first request is Hello; it settles the version. Nothing else is answered
// before it.
//
// Trust. vcard trusts davitd. davitd does not trust vcard, which a guest may
// have taken over: the Client checks every length, name, character and number
// that it hands on, bounds what it stores, accepts no file descriptor and lets
// an unanswered request end with its context. What remains true only if vcard
// is honest is its content: states, counters and console output.
//
// Events carry whole states, never differences, and are merged per subject
// while a reader is slow: neither side ever waits for the other's reader, or
// queues without bound. Byte streams (consoles, doors) are pulled by the
// client with requests that wait, for the same reason. Losing the connection
// loses nothing: Status is the truth.
//
// One controller is connected at a time. A second one is refused while the
// first answers a ping, and replaces it when it does not. When a controller's
// connection ends its waiting requests are cancelled and its doors are closed;
// devices go on.
//
// The package does not know what a device, an order or a bus does, nor how
// vcard confines itself; Command only gives vcard a process of its own.
package control
