// SPDX-License-Identifier: Apache-2.0

package mailbox

import (
	"errors"
	"reflect"
	"sync"

	"github.com/fxamacker/cbor/v2"
)

// modes are the CBOR modes of the protocol.
type modes struct {
	enc     cbor.EncMode
	strict  cbor.DecMode // unknown fields are errors
	lenient cbor.DecMode // unknown fields are ignored: results of newer cards
	err     error
}

var codecs = sync.OnceValue(func() (m modes) {
	encoding := cbor.CoreDetEncOptions()
	encoding.Time = cbor.TimeRFC3339NanoUTC
	encoding.TagsMd = cbor.TagsForbidden
	encoding.NilContainers = cbor.NilContainerAsEmpty // a nil list is an empty list, not a null
	decoding := cbor.DecOptions{
		DupMapKey:         cbor.DupMapKeyEnforcedAPF,
		IndefLength:       cbor.IndefLengthForbidden,
		TagsMd:            cbor.TagsForbidden,
		FieldNameMatching: cbor.FieldNameMatchingCaseSensitive,
		MaxNestedLevels:   maxDepth,
		IntDec:            cbor.IntDecConvertSignedOrFail,
		DefaultMapType:    reflect.TypeFor[map[string]any](),
	}
	var errs [3]error
	m.enc, errs[0] = encoding.EncMode()
	m.lenient, errs[1] = decoding.DecMode()
	decoding.ExtraReturnErrors = cbor.ExtraDecErrorUnknownField
	m.strict, errs[2] = decoding.DecMode()
	m.err = errors.Join(errs[:]...)
	return m
})

// encode gives v in core deterministic encoding.
func encode(v any) ([]byte, error) {
	m := codecs()
	if m.err != nil {
		return nil, m.err
	}
	return m.enc.Marshal(v)
}

// decodeStrict decodes one deterministic item into a struct that must know
// every field.
func decodeStrict(data []byte, v any) error {
	if err := commandDialect.check(data); err != nil {
		return err
	}
	m := codecs()
	if m.err != nil {
		return m.err
	}
	return m.strict.Unmarshal(data, v)
}

// decodeResult decodes one deterministic item and leaves fields that v does
// not know: a newer card may say more.
func decodeResult(data []byte, v any) error {
	if err := resultDialect.check(data); err != nil {
		return err
	}
	m := codecs()
	if m.err != nil {
		return m.err
	}
	return m.lenient.Unmarshal(data, v)
}
