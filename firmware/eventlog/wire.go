// SPDX-License-Identifier: Apache-2.0

package eventlog

import (
	"bytes"
	"encoding/binary"
	"fmt"
	"slices"
)

// specIDSignature opens the data of the first event (PFP,
// TCG_EfiSpecIdEvent); "03" is the crypto-agile format.
const specIDSignature = "Spec ID Event03\x00"

// Fixed parts of the wire format, in bytes.
const (
	sha1Size       = 20
	maxDigestSize  = 64
	maxSpecIDEvent = 512
)

// vendorInfo of our own logs tells them from the firmware's when somebody
// looks at the bytes; nothing depends on it.
const vendorInfo = "davit"

// Encode returns the log in the format of the package comment. [Parse] of it
// gives an equal log.
func (l *Log) Encode() []byte {
	out := l.header()
	for _, e := range l.events {
		out = encodeEvent(out, e)
	}
	return out
}

// header returns the Spec ID event. Version 2.0 errata 0 and UINTN of 64 bits,
// as the profile demands of UEFI on 64-bit machines.
func (l *Log) header() []byte {
	le := binary.LittleEndian
	spec := append([]byte(specIDSignature), 0, 0, 0, 0 /* platformClass: client */, 0 /* minor */, 2 /* major */, 0 /* errata */, 2 /* uintnSize */)
	spec = le.AppendUint32(spec, uint32(len(l.banks)))
	for _, b := range l.banks {
		spec = le.AppendUint16(spec, uint16(b.alg))
		spec = le.AppendUint16(spec, uint16(b.size))
	}
	spec = append(spec, byte(len(vendorInfo)))
	spec = append(spec, vendorInfo...)

	out := le.AppendUint32(nil, 0)
	out = le.AppendUint32(out, uint32(NoAction))
	out = append(out, make([]byte, sha1Size)...)
	out = le.AppendUint32(out, uint32(len(spec)))
	return append(out, spec...)
}

func encodeEvent(out []byte, e Event) []byte {
	le := binary.LittleEndian
	out = le.AppendUint32(out, e.PCR)
	out = le.AppendUint32(out, uint32(e.Type))
	out = le.AppendUint32(out, uint32(len(e.Digests)))
	for _, d := range e.Digests {
		out = le.AppendUint16(out, uint16(d.Alg))
		out = append(out, d.Sum...)
	}
	out = le.AppendUint32(out, uint32(len(e.Data)))
	return append(out, e.Data...)
}

// Parse reads a whole log. It refuses logs of the old SHA-1 format, bytes left
// over, events without a digest for each algorithm that the log names, and
// anything beyond the package's bounds ([ErrMalformed], [ErrTruncated],
// [ErrTooLarge]). What it returns is unverified. data is not kept.
func Parse(data []byte) (*Log, error) {
	l, n, err := scan(data)
	if err != nil {
		return nil, fmt.Errorf("parse event log at byte %d: %w", n, err)
	}
	return l, nil
}

// scan reads events until the end or the first fault, and returns what was
// read up to there: the log (nil if its header is at fault), the number of
// bytes that make it up, and the fault.
func scan(data []byte) (*Log, int, error) {
	if len(data) > MaxSize {
		return nil, 0, ErrTooLarge
	}
	r := &reader{rest: data}
	l, err := r.header()
	if err != nil {
		return nil, 0, err
	}
	n := len(data) - len(r.rest)
	l.size = n
	for len(r.rest) > 0 {
		if len(l.events) == MaxEvents {
			return l, n, ErrTooLarge
		}
		e, err := r.event(l.banks)
		if err != nil {
			return l, n, err
		}
		l.events = append(l.events, e)
		n = len(data) - len(r.rest)
		l.size = n
	}
	return l, n, nil
}

// reader takes fields off the front of rest. After the first error it only
// repeats that error, so callers check once per structure.
type reader struct {
	rest []byte
	err  error
}

func (r *reader) take(n int) []byte {
	if r.err != nil {
		return nil
	}
	if len(r.rest) < n {
		r.err = ErrTruncated
		return nil
	}
	b := r.rest[:n:n]
	r.rest = r.rest[n:]
	return b
}

func (r *reader) u8() byte {
	if b := r.take(1); b != nil {
		return b[0]
	}
	return 0
}

func (r *reader) u16() uint16 {
	if b := r.take(2); b != nil {
		return binary.LittleEndian.Uint16(b)
	}
	return 0
}

func (r *reader) u32() uint32 {
	if b := r.take(4); b != nil {
		return binary.LittleEndian.Uint32(b)
	}
	return 0
}

// sized reads a u32 length and that many bytes, at most limit.
func (r *reader) sized(limit int) []byte {
	n := r.u32()
	if r.err == nil && n > uint32(limit) {
		r.err = fmt.Errorf("%d bytes of event data: %w", n, ErrTooLarge)
	}
	return r.take(int(n))
}

// header reads the Spec ID event and returns an empty log for it.
func (r *reader) header() (*Log, error) {
	pcr, typ, digest := r.u32(), EventType(r.u32()), r.take(sha1Size)
	if r.err == nil && (pcr != 0 || typ != NoAction || !bytes.Equal(digest, make([]byte, sha1Size))) {
		return nil, fmt.Errorf("first event is not a Spec ID event: %w", ErrMalformed)
	}
	spec := &reader{rest: r.sized(maxSpecIDEvent), err: r.err}
	signature := spec.take(len(specIDSignature))
	if spec.err == nil && string(signature) != specIDSignature {
		return nil, fmt.Errorf("signature %q is not of the crypto-agile format: %w", signature, ErrMalformed)
	}
	spec.take(8) // platformClass, versions, errata, uintnSize: nothing here depends on them
	banks, err := spec.banks()
	if err != nil {
		return nil, err
	}
	spec.take(int(spec.u8())) // vendorInfo
	if r.err != nil {
		return nil, r.err
	}
	if spec.err != nil || len(spec.rest) != 0 {
		// The event itself was whole: what lacks or is left over is within.
		return nil, fmt.Errorf("spec id event of wrong length: %w", ErrMalformed)
	}
	return &Log{banks: banks}, nil
}

func (r *reader) banks() ([]bank, error) {
	count := r.u32()
	if r.err == nil && (count == 0 || count > MaxAlgs) {
		return nil, fmt.Errorf("%d digest algorithms: %w", count, ErrMalformed)
	}
	var out []bank
	for range count {
		b := bank{Alg(r.u16()), int(r.u16())}
		if r.err != nil {
			break
		}
		repeated := slices.ContainsFunc(out, func(o bank) bool { return o.alg == b.alg })
		if repeated || b.size == 0 || b.size > maxDigestSize || (b.alg.Known() && b.size != b.alg.Size()) {
			return nil, fmt.Errorf("%v with digests of %d bytes: %w", b.alg, b.size, ErrMalformed)
		}
		out = append(out, b)
	}
	return out, nil
}

// event reads a TCG_PCR_EVENT2. Its digests must be exactly the log's: an
// event that lacks one could not be replayed in that bank. Firmware differs in
// their order, so they are put into the log's.
func (r *reader) event(banks []bank) (Event, error) {
	e := Event{PCR: r.u32(), Type: EventType(r.u32())}
	count := r.u32()
	if r.err == nil && count != uint32(len(banks)) {
		return Event{}, fmt.Errorf("event with %d digests in a log with %d algorithms: %w", count, len(banks), ErrMalformed)
	}
	e.Digests = make([]Digest, len(banks))
	for range banks {
		alg := Alg(r.u16())
		i := slices.IndexFunc(banks, func(b bank) bool { return b.alg == alg })
		if r.err != nil {
			return Event{}, r.err
		}
		if i < 0 || e.Digests[i].Sum != nil {
			return Event{}, fmt.Errorf("%v digest not announced or repeated: %w", alg, ErrMalformed)
		}
		e.Digests[i] = Digest{Alg: alg, Sum: bytes.Clone(r.take(banks[i].size))}
	}
	e.Data = bytes.Clone(r.sized(MaxEventData))
	if r.err != nil {
		return Event{}, r.err
	}
	if e.PCR >= NumPCRs && e.Type != NoAction {
		return Event{}, fmt.Errorf("event of pcr %d: %w", e.PCR, ErrMalformed)
	}
	return e, nil
}
