// SPDX-License-Identifier: Apache-2.0

package vm

import (
	"testing"

	"github.com/davit-dpu/davit/tools/packages"
)

// Need meets needs beyond those of a server, from the same cache.
func Need(t testing.TB, needs ...packages.Need) *packages.Set {
	t.Helper()
	cache, err := packages.Open(packages.Config{})
	if err != nil {
		t.Fatal(err)
	}
	set, err := cache.Ensure(t.Context(), func(s packages.Step) { t.Log(s) }, needs...)
	if err != nil {
		t.Fatal(err)
	}
	return set
}
