// SPDX-License-Identifier: Apache-2.0

// Package measure records what the card uses before it uses it: an event into
// the card's log, then its digest into a PCR. [Table] is the one place that
// says what goes to which PCR.
//
// # Order, and what a crash leaves behind
//
//	        append event            extend PCR
//	─ idle ────────────► logged ──────────────► idle
//	                       │ │
//	        process dies   │ │  TPM refuses, or its answer is lost
//	                       │ └─────────────────► broken: marked in the log, every further call fails
//	                       ▼
//	   next Open: TPM holds the value before the last event → it is extended now
//	              TPM holds the value after it              → nothing to do
//	              anything else                             → broken
//
// The log comes first, so that it never lacks what the TPM has; it serves as a
// write-ahead log, so that a process killed in between leaves no lasting
// difference. Only one process holds the log at a time: init while it boots,
// the agent from then on.
//
// # What is measured is what is used
//
// A file is read once, into a sealed memfd, whose content is hashed and which
// the caller then reads or executes. Nobody can change it in between, nor
// afterwards.
//
// # What it does not do
//
// What ran before the first call is measured by others: firmware and boot stub
// measured kernel, command line and initramfs (with init and the modules that
// bring up the TPM) into PCRs 4, 9 and 11. Our own events on init and modules
// repeat it under their names, for a reader of the log.
//
// The package does not decide whether the card goes on without a TPM. It says
// [ErrNoTPM] or [ErrBroken]; the boot table decides.
package measure
