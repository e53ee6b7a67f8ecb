// SPDX-License-Identifier: Apache-2.0

// Package spec holds the words of Davit: what an operator wants (Instance,
// CardConfig), what the card orders from its host (VMMOrder), and what is
// reported back (Condition, VMMStatus, InstanceStatus, CardStatus). They are
// plain structs with a Validate method and one strict YAML decoder.
//
// Spec does not know who stores, sends, signs or acts on these structs. The
// same structs travel as YAML (operators), JSON (--json) and CBOR (mailbox,
// control protocol, bus); field names are given once, by the json tags, which
// all three encoders honour.
package spec
