// SPDX-License-Identifier: Apache-2.0

package evidence

import (
	"crypto/x509"
	"fmt"
	"slices"
	"strings"
	"time"
)

// Expectations are what a verifier holds a document against. What is not
// given makes the claim that needs it fail, unless that is exempted.
type Expectations struct {
	// Nonce is the one the verifier chose for this document, and for no other.
	Nonce []byte
	// Registers says to which PCR each kind of the card's events belongs; see
	// measure.Registers.
	Registers map[string]int
	// AttestationKey is the pinned name of the attestation key.
	AttestationKey []byte
	// CardID is the pinned id of the card, the SHA-256 of its endorsement
	// key's public area.
	CardID []byte
	// EndorsementRoots, and intermediates, are the certificates of TPM makers.
	EndorsementRoots         *x509.CertPool
	EndorsementIntermediates *x509.CertPool
	// Now is the time at which the endorsement certificate must be valid.
	Now time.Time
	// PCRs gives for some PCRs of the SHA-256 bank the values that are accepted.
	PCRs map[int][][]byte
	// Exempt names claims whose failure is accepted.
	Exempt []string
}

// notExemptable are the claims that stand under all others.
var notExemptable = []string{"tpm", "nonce", "quote.signature", "pcr.digest", "exemptions"}

// lastStaticPCR: PCRs 0 to this one are always quoted. Those above can be
// reset, or belong to a dynamic launch.
const lastStaticPCR = 15

// checkExemptions finds names that exempt nothing: a misspelt exemption must
// not pass for one.
func (e Expectations) checkExemptions(claims []Claim) error {
	var bad []string
	for _, name := range e.Exempt {
		known := slices.ContainsFunc(claims, func(c Claim) bool { return c.Name == name })
		if !known || slices.Contains(notExemptable, name) {
			bad = append(bad, name)
		}
	}
	if len(bad) > 0 {
		return fmt.Errorf("cannot be exempted, or no such claim: %s", strings.Join(bad, ", "))
	}
	return nil
}
