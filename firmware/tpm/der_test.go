// SPDX-License-Identifier: Apache-2.0

package tpm

import (
	"encoding/asn1"
	"math/big"
	"testing"
)

func derOf(t *testing.T, r, s []byte) []byte {
	t.Helper()
	der, err := asn1.Marshal(struct{ R, S *big.Int }{new(big.Int).SetBytes(r), new(big.Int).SetBytes(s)})
	if err != nil {
		t.Fatal(err)
	}
	return der
}
