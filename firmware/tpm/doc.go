// SPDX-License-Identifier: Apache-2.0

// Package tpm is the card's use of its TPM 2.0: extend and read PCRs, quote
// them, and hold the keys by which the card is known.
//
//	endorsement hierarchy (seed fixed by the TPM's maker, survives TPM2_Clear)
//	  ├─ EK        RSA-2048, TCG default template L-1; its public area names the card (CardID)
//	  ├─ AK        ECC P-256, restricted: signs only what the TPM itself states (quote, certify)
//	  └─ receipt   ECC P-256, unrestricted: signs digests of receipts; certified by the AK
//
// All three are primary keys: the TPM derives them from its seed and a
// template, so they are the same after each start, and nothing is stored.
// Private parts never leave the TPM (fixedTPM, sensitiveDataOrigin).
//
// The keys have no authorisation value: what keeps others from their use is
// that only the agent is given the TPM. Binding them to a measured boot by a
// policy is not done here.
//
// TPM commands cannot be called back. A context ends the wait for the TPM's
// turn, never a command that was sent: callers see either its result, or an
// error with the command not sent.
//
// The package does not know which PCR is for what, nor what a quote is worth;
// see firmware/measure and firmware/evidence.
package tpm
