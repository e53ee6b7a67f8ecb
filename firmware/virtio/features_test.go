// SPDX-License-Identifier: Apache-2.0

package virtio

import "testing"

func TestHas(t *testing.T) {
	f := FeatureVersion1 | FeatureEventIdx
	for want, has := range map[Features]bool{
		0: true, FeatureVersion1: true, f: true, FeatureIndirectDesc: false, f | FeatureIndirectDesc: false,
	} {
		if got := f.Has(want); got != has {
			t.Errorf("%#x.Has(%#x) = %v", uint64(f), uint64(want), got)
		}
	}
}
