// SPDX-License-Identifier: Apache-2.0

// Package evidence is the document by which a card shows what it is and what
// it runs, and the appraisal of it. Appraising needs no TPM and is done
// wherever the verifier is.
//
// # Format
//
// Version 1 is deterministic CBOR (RFC 8949, section 4.2.1), a map with
// integer keys; no other encoding of the same content is accepted:
//
//	1 version = 1            4 receipt key (SubjectPublicKeyInfo, DER)
//	2 nonce, 16..64 bytes    5 firmware's event log, as the kernel has it (absent: none)
//	3 TPM part               6 card's event log (absent: none)
//	  (absent: see 8)        7 boot report, JSON (absent: none)
//	                         8 why there is no TPM part, text
//	TPM part:
//	1 quote   {1 TPMS_ATTEST, 2 TPMT_SIGNATURE}      5 receipt key {1 TPMT_PUBLIC, 2 certification {1 TPMS_ATTEST, 2 TPMT_SIGNATURE}}
//	2 attestation key TPMT_PUBLIC                    6 PCR values of the SHA-256 bank {number: value}
//	3 endorsement key TPMT_PUBLIC
//	4 endorsement certificate, X.509 DER (absent: none)
//
// The TPM signs over its PCRs and 32 bytes of qualifying data, the binding:
//
//	SHA-256("davit evidence 1" 00 | H(nonce) | H(receipt key) | H(endorsement key) | H(boot report))
//
// with H = SHA-256, of nothing where a part is absent. So a nonce that the
// verifier has just chosen makes all of the document new: the logs are bound by
// the PCRs, the keys and the boot report by the binding.
//
// # Appraisal
//
// [Appraise] turns a document into claims, each with what was expected, what
// was seen and a verdict. It fails closed: what is absent, unsupported or was
// not expected of anybody fails, unless the expectations exempt the claim by
// its name, and then the report says so. Four claims cannot be exempted,
// since without them no other means anything: tpm, nonce, quote.signature and
// pcr.digest. A card without TPM never passes.
//
//	tpm               there is a TPM part
//	nonce             the quote binds the verifier's nonce, the keys and the boot report
//	quote.signature   signed by an attestation key that signs only what a TPM states
//	pcr.digest        the listed PCR values are those quoted, all of 0..15
//	ak.identity       the attestation key is the pinned one
//	card.identity     the endorsement key is that of the pinned card
//	ek.certificate    the endorsement key is certified by a maker's root
//	receipt.key       the receipt key is in the same TPM, by word of the attestation key
//	log.firmware      the firmware's log is there and can be read
//	log.card          the card's log is there, can be read, and says of itself that it is whole
//	log.card.events   each event of it hashes to its digest, and its kind belongs to its PCR
//	pcr.N.replay      the joined logs give the quoted value of PCR N
//	pcr.N.reference   PCR N has one of the values expected; pcr.reference if none are given
//	boot.report       there is a boot report, and it is JSON
//	exemptions        each exemption names a claim that may be exempted
//
// # What is not proved
//
// That the attestation key and the endorsement key are in the same TPM takes
// an exchange (TPM2_ActivateCredential) at enrolment; a single document cannot
// show it. The verifier pins the attestation key it learned then: ak.identity.
// Event types, and the data of firmware events that do not hash to their
// digest, are whatever the log's holder wrote; see firmware/eventlog.
//
// The package does not know which PCR is for what: the caller gives the table.
package evidence
