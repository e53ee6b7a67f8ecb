// SPDX-License-Identifier: Apache-2.0

// Package eventlog reads, writes and replays the crypto-agile event log of the
// TCG PC Client Platform Firmware Profile (PFP), sections "Event Logging" and
// "Event Descriptions".
//
// A log is a sequence of little-endian records. The first has the old SHA-1
// shape and only names the digest algorithms of all that follow:
//
//	TCG_PCR_EVENT   u32 pcr = 0 | u32 type = EV_NO_ACTION | 20 zero bytes | u32 size | TCG_EfiSpecIdEvent
//	TCG_PCR_EVENT2  u32 pcr | u32 type | u32 count | count × (u16 alg | digest) | u32 size | event data
//
// The firmware writes one such log; the card goes on in a second one, a file
// that starts with a Spec ID event of its own and so is a valid log by itself.
// [Join] puts ours behind the firmware's, and [Log.Replay] of the two together
// gives the values that the TPM's PCRs must have.
//
// # What a replay vouches for
//
// When a replay matches a quoted PCR, then the digests extended into that PCR
// and their order are as logged. Nothing else is:
//
//   - The event type is never verified. An EV_NO_ACTION event is not extended
//     at all, so nothing in it is verified.
//   - The event data is verified only where it hashes to the digest
//     ([Event.DataMatches]). Most firmware events do not: their digest is of
//     the thing measured and their data is a mere label.
//   - Events of a PCR that was not quoted are not verified.
//
// In the events that the card writes (see [Measurement]) the digest is the
// hash of the event data itself, and the data names what was measured with its
// size and SHA-256. A matching replay therefore vouches for names and content
// digests alike, and a swapped label is found.
//
// # Order
//
// The writer of a log appends an event before it extends the PCR, so that the
// log never lacks an extend. [File] writes each event with one write; a tail cut off by a
// crash was never extended, and is found and removed when the file is opened
// again. A tail that was written but not extended is for the caller to detect,
// who can read the TPM.
//
// The package does not know any TPM, which PCR is for what, or what the
// firmware's event data mean.
package eventlog
