// SPDX-License-Identifier: Apache-2.0

// Package mailbox is the card's one door for change: signed commands in,
// signed receipts out, a record of each kept.
//
//	bytes ──Parse──► Unverified ──signature, place, time, nonce, policy──► *Command ──► Op ──► receipt
//	            │                                   │
//	            └────────────── *Refusal ◄──────────┘   (signed and recorded as well)
//
// Unverified and Command are different types, only a Mailbox makes a Command,
// and ops take nothing else. docs/mailbox.md is the protocol for those who
// write another implementation.
//
// # Messages
//
// All are core deterministic CBOR (RFC 8949 section 4.2.1) without tags
// (but for COSE's own), floats and undefined; anything else is refused.
//
//	command = COSE_Sign1, tag 18, EdDSA/ES256/ES384, over
//	          {1: version, 2: card, 3: op, 4: args, 5: nonce, 6: not-before,
//	           7: not-after, 8: requester, 9: reason, 10: lifecycle}
//	request = {0: content type, 1: version, 2: card, 3: op, 4: args, 5: nonce}
//	          unsigned; for public ops only
//	receipt = COSE_Sign1, tag 18, ES256, over
//	          {1: version, 2: card, 3: SHA-256 of the command, 4: code, 5: text,
//	           6: result, 7: time (ms), 8: audit index, 9: nonce of the request,
//	           10: TLS key hash of the door}
//
// # Order of checks
//
// What costs little comes first, and nothing that the policy says shows before
// the signature is verified. Each check has its own code:
//
//	1 too-large            9 no-such-nonce, replayed
//	2 malformed           10 not-allowed
//	3 unsupported-alg…    11 unknown-op
//	4 unknown-key         12 bad-args, no-stream
//	5 bad-signature       13 busy
//	6 wrong-card          14 replayed (a race lost), busy
//	7 wrong-lifecycle     15 audit-failed
//	8 not-yet-valid, expired
//
// # Freshness
//
// A command holds a nonce that the card issued to whoever asked. Nonces are
// authenticated with a key that is made at random when the mailbox is made,
// kept in memory only, and gone with the process. So a nonce, and with it a
// command, works in one life of the agent: after a power cut or restart, at
// whatever moment it comes, every command signed before is refused. Within one
// life a nonce is marked used, under a lock, before the command is executed.
// Nothing needs to be persisted for this, hence nothing can be rolled back.
//
// # What it does not know
//
// It does not know what ops do, where keys are stored, or how bytes reach it.
// The argument T of Handle is the only thing that it knows about an op.
package mailbox
