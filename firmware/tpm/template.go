// SPDX-License-Identifier: Apache-2.0

package tpm

import (
	"crypto/sha256"

	"github.com/google/go-tpm/tpm2"

	"github.com/davit-dpu/davit/firmware/eventlog"
)

// quoteBank is the PCR bank that is quoted. Every PC Client TPM has it.
const quoteBank = eventlog.SHA256

// Labels that tell our primary keys from each other and from others' of the
// same template. To change one is to give every card new keys.
const (
	akLabel      = "davit attestation key 1"
	receiptLabel = "davit receipt key 1"
)

// akTemplate is of a key that signs only what the TPM generates: restricted.
func akTemplate() tpm2.TPMTPublic { return signTemplate(akLabel, true) }

// receiptTemplate is of a key that signs digests given to it.
func receiptTemplate() tpm2.TPMTPublic { return signTemplate(receiptLabel, false) }

// signTemplate is of an ECDSA P-256 key bound to its TPM. The label goes into
// the template's unique field, from which the TPM derives the key.
func signTemplate(label string, restricted bool) tpm2.TPMTPublic {
	unique := sha256.Sum256([]byte(label))
	return tpm2.TPMTPublic{
		Type:    tpm2.TPMAlgECC,
		NameAlg: tpm2.TPMAlgSHA256,
		ObjectAttributes: tpm2.TPMAObject{
			FixedTPM:            true,
			FixedParent:         true,
			SensitiveDataOrigin: true,
			UserWithAuth:        true,
			NoDA:                true,
			Restricted:          restricted,
			SignEncrypt:         true,
		},
		Parameters: tpm2.NewTPMUPublicParms(tpm2.TPMAlgECC, &tpm2.TPMSECCParms{
			Scheme: tpm2.TPMTECCScheme{
				Scheme:  tpm2.TPMAlgECDSA,
				Details: tpm2.NewTPMUAsymScheme(tpm2.TPMAlgECDSA, &tpm2.TPMSSigSchemeECDSA{HashAlg: tpm2.TPMAlgSHA256}),
			},
			CurveID: tpm2.TPMECCNistP256,
		}),
		Unique: tpm2.NewTPMUPublicID(tpm2.TPMAlgECC, &tpm2.TPMSECCPoint{
			X: tpm2.TPM2BECCParameter{Buffer: unique[:]},
			Y: tpm2.TPM2BECCParameter{Buffer: make([]byte, 32)},
		}),
	}
}

func ecdsaSHA256() tpm2.TPMTSigScheme {
	return tpm2.TPMTSigScheme{
		Scheme:  tpm2.TPMAlgECDSA,
		Details: tpm2.NewTPMUSigScheme(tpm2.TPMAlgECDSA, &tpm2.TPMSSchemeHash{HashAlg: tpm2.TPMAlgSHA256}),
	}
}
