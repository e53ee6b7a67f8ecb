// SPDX-License-Identifier: Apache-2.0

// Package attest puts evidence together for whoever asks with a nonce, and
// holds the key that signs the card's receipts.
//
//	verifier ──nonce──► Evidence: take the card's log ┐ with no measurement
//	                              read PCRs           │ under way
//	                              quote over them     ┘
//	         ◄─document─          add firmware log, keys, boot report
//
// With a TPM, the keys are the TPM's. Without one (a card in development, the
// loopback board) the receipt key is a software key in the state folder, the
// card's id is derived from it, and evidence says that there is no TPM: no
// appraisal passes it.
//
// The package does not judge evidence, and does not know which PCR is for what.
package attest
