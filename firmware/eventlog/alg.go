// SPDX-License-Identifier: Apache-2.0

package eventlog

import (
	"crypto"
	_ "crypto/sha1"   // firmware still keeps a SHA-1 bank
	_ "crypto/sha256" // the bank that we quote
	_ "crypto/sha512" // SHA-384 and SHA-512 banks
	"fmt"
)

// Alg is a digest algorithm by its TPM_ALG_ID (TPM 2.0 Part 2, section 6.3).
type Alg uint16

// The algorithms that can be computed here. Others may occur in a log that is
// parsed; they are carried along and cannot be replayed.
const (
	SHA1   Alg = 0x0004
	SHA256 Alg = 0x000b
	SHA384 Alg = 0x000c
	SHA512 Alg = 0x000d
)

// String returns the usual name, or the number of an algorithm unknown here.
func (a Alg) String() string {
	switch a {
	case SHA1:
		return "sha1"
	case SHA256:
		return "sha256"
	case SHA384:
		return "sha384"
	case SHA512:
		return "sha512"
	}
	return fmt.Sprintf("alg 0x%04x", uint16(a))
}

// Known reports whether digests of this algorithm can be computed here.
func (a Alg) Known() bool { return a.hash() != 0 }

// Size returns the digest's length in bytes, 0 for an algorithm unknown here.
func (a Alg) Size() int {
	if !a.Known() {
		return 0
	}
	return a.hash().Size()
}

// Sum returns the digest over the concatenation of parts. The algorithm must
// be [Alg.Known]; for others Sum returns nil.
func (a Alg) Sum(parts ...[]byte) []byte {
	if !a.Known() {
		return nil
	}
	h := a.hash().New()
	for _, p := range parts {
		h.Write(p)
	}
	return h.Sum(nil)
}

func (a Alg) hash() crypto.Hash {
	switch a {
	case SHA1:
		return crypto.SHA1
	case SHA256:
		return crypto.SHA256
	case SHA384:
		return crypto.SHA384
	case SHA512:
		return crypto.SHA512
	}
	return 0
}

// Digest is a digest with its algorithm (TPMT_HA).
type Digest struct {
	Alg Alg
	Sum []byte
}

// DigestsOf returns the digests of data by each of algs, in their order. All
// must be [Alg.Known].
func DigestsOf(data []byte, algs ...Alg) []Digest {
	out := make([]Digest, len(algs))
	for i, a := range algs {
		out[i] = Digest{Alg: a, Sum: a.Sum(data)}
	}
	return out
}
