// SPDX-License-Identifier: Apache-2.0

package control

import (
	"bytes"
	"errors"
	"fmt"

	"github.com/fxamacker/cbor/v2"
)

type kind uint8

const (
	kindRequest kind = 1
	kindReply   kind = 2
	kindEvent   kind = 3
	kindCancel  kind = 4
	kindPing    kind = 5
	kindPong    kind = 6
)

// frame is one packet. Its integer keys are the only ones of the protocol:
// bodies use the field names of their structs.
type frame struct {
	Kind  kind            `cbor:"1,keyasint"`
	ID    uint64          `cbor:"2,keyasint"`
	Op    string          `cbor:"3,keyasint,omitempty"`
	Body  cbor.RawMessage `cbor:"4,keyasint,omitempty"`
	Error *Error          `cbor:"5,keyasint,omitempty"`
}

// codec is the one configuration of CBOR: what it encodes is deterministic,
// and what it decodes must be exactly what it would have encoded.
type codec struct {
	enc cbor.EncMode
	dec cbor.DecMode
}

func newCodec() (*codec, error) {
	eo := cbor.CoreDetEncOptions()
	eo.Time = cbor.TimeRFC3339NanoUTC
	eo.TagsMd = cbor.TagsForbidden
	enc, err := eo.EncMode()
	if err != nil {
		return nil, fmt.Errorf("cbor encoder: %w", err)
	}
	dec, err := cbor.DecOptions{
		DupMapKey:         cbor.DupMapKeyEnforcedAPF,
		IndefLength:       cbor.IndefLengthForbidden,
		TagsMd:            cbor.TagsForbidden,
		ExtraReturnErrors: cbor.ExtraDecErrorUnknownField,
		UTF8:              cbor.UTF8RejectInvalid,
		MaxNestedLevels:   8,
		MaxArrayElements:  1024,
		MaxMapPairs:       64,
	}.DecMode()
	if err != nil {
		return nil, fmt.Errorf("cbor decoder: %w", err)
	}
	return &codec{enc: enc, dec: dec}, nil
}

// decode reads b into out and refuses any encoding but the deterministic one.
func (c *codec) decode(b []byte, out any) error {
	if err := c.dec.Unmarshal(b, out); err != nil {
		return err
	}
	again, err := c.enc.Marshal(out)
	if err != nil {
		return err
	}
	if !bytes.Equal(b, again) {
		return errors.New("encoding is not deterministic")
	}
	return nil
}

// decodeFrame reads one packet. The body is not looked at.
func (c *codec) decodeFrame(packet []byte) (*frame, error) {
	if len(packet) > MaxPacket {
		return nil, fmt.Errorf("packet of %d bytes: %w", len(packet), ErrProtocol)
	}
	var f frame
	if err := c.decode(packet, &f); err != nil {
		return nil, fmt.Errorf("frame: %v: %w", err, ErrProtocol)
	}
	if err := f.check(); err != nil {
		return nil, fmt.Errorf("frame: %v: %w", err, ErrProtocol)
	}
	return &f, nil
}

func (f *frame) check() error {
	body, op, fail, id := len(f.Body) != 0, f.Op != "", f.Error != nil, f.ID != 0
	ok := false
	switch f.Kind {
	case kindRequest:
		ok = body && op && !fail && id
	case kindReply:
		ok = body != fail && !op && id
	case kindEvent:
		ok = body && !op && !fail && !id
	case kindCancel:
		ok = !body && !op && !fail && id
	case kindPing, kindPong:
		ok = !body && !op && !fail && !id
	}
	if !ok {
		return fmt.Errorf("kind %d with the wrong parts", f.Kind)
	}
	if fail {
		return f.Error.check()
	}
	return nil
}

// encodeFrame builds one packet around m, which may be nil.
func (c *codec) encodeFrame(f frame, m message) ([]byte, error) {
	if m != nil {
		if err := m.check(); err != nil {
			return nil, fmt.Errorf("%w: %w", ErrInvalid, err)
		}
		body, err := c.enc.Marshal(m)
		if err != nil {
			return nil, fmt.Errorf("encode body: %w", err)
		}
		f.Body = body
	}
	packet, err := c.enc.Marshal(&f)
	if err != nil {
		return nil, fmt.Errorf("encode frame: %w", err)
	}
	if len(packet) > MaxPacket {
		return nil, fmt.Errorf("frame of %d bytes is larger than %d: %w", len(packet), MaxPacket, ErrInvalid)
	}
	return packet, nil
}

// decodeRequest reads a request's body.
func (c *codec) decodeRequest(f *frame) (Request, error) {
	make, ok := requests[f.Op]
	if !ok {
		return nil, fmt.Errorf("operation %.40q is unknown: %w", f.Op, ErrProtocol)
	}
	req := make()
	if err := c.decode(f.Body, req); err != nil {
		return nil, fmt.Errorf("%s: %v: %w", f.Op, err, ErrProtocol)
	}
	return req, nil
}

// decodeBody reads a reply or an event, and checks it.
func decodeBody[T message](c *codec, body []byte, into T) error {
	if err := c.decode(body, into); err != nil {
		return fmt.Errorf("body: %v: %w", err, ErrProtocol)
	}
	if err := into.check(); err != nil {
		return fmt.Errorf("body: %v: %w", err, ErrProtocol)
	}
	return nil
}
