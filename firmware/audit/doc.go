// SPDX-License-Identifier: Apache-2.0

// Package audit keeps the card's record of commands: append-only, hash-chained
// and bounded. Every command that was executed or refused leaves a record, and
// a record that was altered, removed or reordered is found by Verify, on the
// card at every start and off the card from an export.
//
// # Format
//
// A log is a folder of segments, audit-<first index, 16 hex digits>.log. A
// segment is a 16-byte magic followed by frames; an export is the segments one
// after the other, oldest first.
//
//	segment = "davit-audit-log" 0x01, frame, ...
//	frame   = u32 length of body (big-endian) | body | SHA-256(body)
//	body    = deterministic CBOR map (RFC 8949 section 4.2.1), at most 4 KiB:
//	          1 version (1)      2 index (from 1)   3 hash of the body before
//	          4 time (ms, Unix)  5 kind             6 digest of the command
//	          7 op               8 key id           9 door
//	         10 code            11 reason          12 digest of the receipt
//	         13 index referred to                  14 count
//
// Keys 6 to 14 are left out when empty. Field 3 of record 1 is 32 zero bytes.
// The hash of the last body is the head: whoever knows an earlier head (a PCR,
// a receipt's audit index with an export) can tell that nothing before it was
// changed. Without such an anchor a log that was cut off at a record boundary
// is indistinguishable from a shorter log; Head exists so that it can be
// anchored.
//
// # What is durable when
//
// Append returns after fsync: a command's "accepted" record is on the disk
// before the command runs. Concurrent appends share one fsync. An append whose
// write failed is undone and reported; after a failed fsync the log refuses
// everything until it is opened again, because nobody knows what is on the
// disk then.
//
// # Opening
//
//	no segment               → segment 1 is made (atomically), index starts at 1
//	all verify               → an "open" record is added; it names commands that
//	                           were accepted and have no outcome
//	last frame incomplete, or its end never written (zeros)
//	                         → power cut: the frame is cut off and, in the same
//	                           atomic rename, replaced by a "torn" record that
//	                           holds its length and digest
//	anything else            → ErrCorrupt: the log is not opened
//
// # Bound
//
// A segment that reaches its size is closed and the next one begins with a
// "segment" record that says which record is the oldest one kept. Then segments
// beyond the configured number are removed, oldest first.
//
// The package does not know what a command is, who may send one, or what a PCR
// is. It never deletes or rewrites a complete record on its own.
package audit
