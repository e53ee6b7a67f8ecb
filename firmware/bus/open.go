// SPDX-License-Identifier: Apache-2.0

package bus

import (
	"encoding/hex"
	"fmt"

	"github.com/fxamacker/cbor/v2"

	"github.com/davit-dpu/davit/firmware/spec"
)

// Kind says what a channel carries.
type Kind string

// Kinds of channel.
const (
	KindControl   Kind = "control"    // channel 0 only: orders and reports, see Orders
	KindVhostUser Kind = "vhost-user" // opened by the host: one record per vhost-user message, without fds; doorbells are kicks and calls
	KindQMP       Kind = "qmp"        // opened by the card: raw bytes of the VMM's QMP socket
	KindConsole   Kind = "console"    // opened by the card: raw bytes of the VMM's serial console
	KindDoor      Kind = "door"       // opened by the host: raw bytes of one local mailbox client
)

// Open says what a channel is for. Kind decides which fields are set:
// vhost-user all, qmp and console instance and generation, door none.
type Open struct {
	Kind       Kind   `json:"kind"`
	Instance   string `json:"instance,omitempty"`
	Generation string `json:"generation,omitempty"` // 32 hexadecimal digits, as in spec.VMMOrder
	Device     string `json:"device,omitempty"`
}

// Validate checks that exactly the fields of the kind are there and well formed.
func (o Open) Validate() error {
	vmm, device := false, false
	switch o.Kind {
	case KindVhostUser:
		vmm, device = true, true
	case KindQMP, KindConsole:
		vmm = true
	case KindDoor:
	default:
		return fmt.Errorf("channel kind %q is not vhost-user, qmp, console or door", clean(string(o.Kind), 32))
	}
	if err := o.checkVMM(vmm); err != nil {
		return err
	}
	if !device {
		if o.Device != "" {
			return fmt.Errorf("a %s channel has no device", o.Kind)
		}
		return nil
	}
	return spec.CheckName("device", o.Device)
}

func (o Open) checkVMM(wanted bool) error {
	if !wanted {
		if o.Instance != "" || o.Generation != "" {
			return fmt.Errorf("a %s channel has no instance", o.Kind)
		}
		return nil
	}
	if err := spec.CheckName("instance", o.Instance); err != nil {
		return err
	}
	return checkGeneration(o.Generation)
}

func checkGeneration(g string) error {
	if b, err := hex.DecodeString(g); err != nil || len(b) != 16 {
		return fmt.Errorf("generation %q: want 32 hexadecimal digits", clean(g, 40))
	}
	return nil
}

// openerOf says which end opens channels of a kind.
func openerOf(k Kind) Role {
	if k == KindQMP || k == KindConsole {
		return Card
	}
	return Host
}

// maxOpen bounds an OPEN's payload.
const maxOpen = 512

// parseOpen reads and checks an OPEN's payload sent by the given role.
func parseOpen(b []byte, from Role) (Open, error) {
	var o Open
	if len(b) > maxOpen {
		return Open{}, fmt.Errorf("open of %d bytes is longer than %d", len(b), maxOpen)
	}
	if err := unmarshal(b, &o); err != nil {
		return Open{}, fmt.Errorf("decode open: %w", err)
	}
	if err := o.Validate(); err != nil {
		return Open{}, err
	}
	if openerOf(o.Kind) != from {
		return Open{}, fmt.Errorf("a %s may not open a %s channel", from, o.Kind)
	}
	return o, nil
}

// marshal encodes deterministic CBOR (RFC 8949, section 4.2.1). It can only
// fail for types that this package never encodes.
func marshal(v any) ([]byte, error) {
	mode, err := cbor.CoreDetEncOptions().EncMode()
	if err != nil {
		return nil, err
	}
	return mode.Marshal(v)
}

// unmarshal decodes exactly one item: no duplicate or unknown keys, no tags, no
// indefinite lengths, bounded nesting, nothing behind it.
func unmarshal(b []byte, v any) error {
	mode, err := cbor.DecOptions{
		DupMapKey:         cbor.DupMapKeyEnforcedAPF,
		ExtraReturnErrors: cbor.ExtraDecErrorUnknownField,
		IndefLength:       cbor.IndefLengthForbidden,
		TagsMd:            cbor.TagsForbidden,
		MaxNestedLevels:   8,
		MaxArrayElements:  4096,
		MaxMapPairs:       64,
		FieldNameMatching: cbor.FieldNameMatchingCaseSensitive,
	}.DecMode()
	if err != nil {
		return err
	}
	return mode.Unmarshal(b, v)
}
