// SPDX-License-Identifier: Apache-2.0

package virtio

// Features is a set of virtio feature bits (Virtio 1.2, 2.2).
type Features uint64

// Feature bits that do not depend on the device type, and that our transports
// and rings implement (Virtio 1.2, section 6).
const (
	FeatureIndirectDesc Features = 1 << 28
	FeatureEventIdx     Features = 1 << 29
	FeatureVersion1     Features = 1 << 32
	FeatureRingPacked   Features = 1 << 34
)

// Has reports whether every bit of want is in f.
func (f Features) Has(want Features) bool { return f&want == want }
