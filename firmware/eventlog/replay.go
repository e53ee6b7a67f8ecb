// SPDX-License-Identifier: Apache-2.0

package eventlog

import (
	"bytes"
	"fmt"
	"slices"
)

// startupLocality opens the data of the NoAction event that tells from which
// locality TPM2_Startup came, which is the initial value of PCR 0 (PFP,
// TCG_EfiStartupLocalityEvent).
const startupLocality = "StartupLocality\x00"

// PCRs maps PCR numbers, 0 to 23, to values.
type PCRs map[int][]byte

// Initial returns the value of a PCR after TPM2_Startup(CLEAR) from locality
// 0: all zero, or all ones for the PCRs of a dynamic launch, 17 to 22 (PC
// Client Platform TPM Profile, section "PCR Attributes"). alg must be known.
func Initial(alg Alg, pcr int) []byte {
	v := make([]byte, alg.Size())
	if pcr >= 17 && pcr <= 22 {
		for i := range v {
			v[i] = 0xff
		}
	}
	return v
}

// Join returns a log with the events of all logs in order, and the algorithms
// that all of them have ([ErrNoBank] if there is none in common). Nil logs are
// passed over; at least one must not be nil.
func Join(logs ...*Log) (*Log, error) {
	logs = slices.DeleteFunc(slices.Clone(logs), func(l *Log) bool { return l == nil })
	if len(logs) == 0 {
		return nil, fmt.Errorf("join no event logs: %w", ErrMalformed)
	}
	joined := &Log{}
	for _, b := range logs[0].banks {
		if !slices.ContainsFunc(logs, func(l *Log) bool { return !l.has(b.alg) }) {
			joined.banks = append(joined.banks, b)
		}
	}
	if len(joined.banks) == 0 {
		return nil, fmt.Errorf("join event logs: %w", ErrNoBank)
	}
	for _, l := range logs {
		for _, e := range l.events {
			e = e.clone()
			e.Digests = slices.DeleteFunc(e.Digests, func(d Digest) bool { return !joined.has(d.Alg) })
			slices.SortFunc(e.Digests, func(a, b Digest) int { return joined.index(a.Alg) - joined.index(b.Alg) })
			joined.events = append(joined.events, e)
		}
	}
	joined.size = len(joined.Encode())
	return joined, nil
}

func (l *Log) index(a Alg) int {
	return slices.IndexFunc(l.banks, func(b bank) bool { return b.alg == a })
}

// Replay computes what the PCRs of bank alg must hold after all events. The
// result has exactly the PCRs that were extended, and PCR 0 if its startup
// locality was not 0; all others have their [Initial] value.
func (l *Log) Replay(alg Alg) (PCRs, error) {
	return l.ReplayFrom(alg, nil)
}

// ReplayFrom is [Log.Replay] onto PCRs that hold start already; those that
// start does not name have their [Initial] value.
func (l *Log) ReplayFrom(alg Alg, start PCRs) (PCRs, error) {
	if !alg.Known() || !l.has(alg) {
		return nil, fmt.Errorf("replay event log in %v: %w", alg, ErrNoBank)
	}
	out := PCRs{}
	for pcr, v := range start {
		out[pcr] = bytes.Clone(v)
	}
	for _, e := range l.events {
		pcr := int(e.PCR)
		if e.Type == NoAction {
			if loc, ok := locality(e); ok && out[0] == nil {
				out[0] = Initial(alg, 0)
				out[0][alg.Size()-1] = loc
			}
			continue
		}
		if out[pcr] == nil {
			out[pcr] = Initial(alg, pcr)
		}
		out[pcr] = alg.Sum(out[pcr], e.Digest(alg))
	}
	return out, nil
}

// locality returns the startup locality if e tells one other than 0.
func locality(e Event) (byte, bool) {
	if e.PCR != 0 || len(e.Data) != len(startupLocality)+1 || !bytes.HasPrefix(e.Data, []byte(startupLocality)) {
		return 0, false
	}
	loc := e.Data[len(startupLocality)]
	return loc, loc != 0
}

// Before returns a log that ends before event n, counted from 0.
func (l *Log) Before(n int) *Log {
	n = max(0, min(n, len(l.events)))
	out := &Log{banks: l.banks}
	for _, e := range l.events[:n] {
		out.events = append(out.events, e.clone())
	}
	out.size = len(out.Encode())
	return out
}
