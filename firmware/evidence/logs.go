// SPDX-License-Identifier: Apache-2.0

package evidence

import (
	"bytes"
	"encoding/hex"
	"errors"
	"fmt"
	"maps"
	"slices"

	"github.com/davit-dpu/davit/firmware/eventlog"
)

// source is a log that could be read, with its name in reports.
type source struct {
	name string
	log  *eventlog.Log
}

// eventLogs reads both logs and joins what could be read: a log that lacks
// shows in the replay too.
func (a *appraisal) eventLogs() {
	_, err := a.readLog("firmware", a.doc.FirmwareLog)
	a.claim("log.firmware", "readable", fmt.Sprintf("%d bytes", len(a.doc.FirmwareLog)), err)
	card, err := a.readLog("card", a.doc.CardLog)
	if err == nil {
		err = intact(card)
	}
	a.claim("log.card", "readable and whole", fmt.Sprintf("%d bytes", len(a.doc.CardLog)), err)
	seen, err := a.checkCardEvents(card)
	a.claim("log.card.events", "each in the PCR of its kind", seen, err)

	var logs []*eventlog.Log
	for _, s := range a.logs {
		logs = append(logs, s.log)
	}
	if joined, err := eventlog.Join(logs...); err == nil {
		a.joined = joined
	}
}

func (a *appraisal) readLog(name string, data []byte) (*eventlog.Log, error) {
	if data == nil {
		return nil, fmt.Errorf("the document has no %s log", name)
	}
	log, err := eventlog.Parse(data)
	if err != nil {
		return nil, err
	}
	if !slices.Contains(log.Algs(), eventlog.SHA256) {
		return nil, fmt.Errorf("%s log: %w", name, eventlog.ErrNoBank)
	}
	a.logs = append(a.logs, source{name, log})
	return log, nil
}

func intact(log *eventlog.Log) error {
	for _, e := range log.Events() {
		if reason, ok := e.Broken(); ok {
			return fmt.Errorf("the card could not extend what it logged: %s", reason)
		}
	}
	return nil
}

// checkCardEvents holds each of the card's events against its own digest and
// the table of PCRs.
func (a *appraisal) checkCardEvents(log *eventlog.Log) (seen string, err error) {
	switch {
	case log == nil:
		return "", errors.New("there is no card log to look at")
	case len(a.expect.Registers) == 0:
		return "", errors.New("no table of PCRs is given")
	case log.Len() == 0:
		return "0 events", errors.New("the card measured nothing")
	}
	for i, e := range log.Events() {
		if _, ok := e.Broken(); ok {
			continue // told by log.card
		}
		m, err := e.Measurement()
		if err != nil {
			return fmt.Sprintf("event %d", i), err
		}
		if pcr, ok := a.expect.Registers[m.Kind]; !ok || pcr != int(e.PCR) {
			return fmt.Sprintf("event %d", i), fmt.Errorf("an event of kind %q is in pcr %d", m.Kind, e.PCR)
		}
	}
	return fmt.Sprintf("%d events", log.Len()), nil
}

// registers compares each PCR with the replay and with reference values, and
// lists the events with what is known of each.
func (a *appraisal) registers() {
	replay := eventlog.PCRs{}
	if a.joined != nil {
		// Only a bank that lacks can be at fault, and each log has it.
		if r, err := a.joined.Replay(eventlog.SHA256); err == nil {
			replay = r
		}
	}
	matched := map[int]bool{}
	for _, pcr := range a.replayedPCRs(replay) {
		want := replay[pcr]
		if want == nil {
			want = eventlog.Initial(eventlog.SHA256, pcr)
		}
		err := a.checkReplay(pcr, want)
		matched[pcr] = err == nil
		a.claim(fmt.Sprintf("pcr.%d.replay", pcr), hex.EncodeToString(want), hex.EncodeToString(a.quoted[pcr]), err)
		a.report.Registers = append(a.report.Registers, Register{pcr, hex.EncodeToString(a.quoted[pcr]), hex.EncodeToString(want)})
	}
	a.references()
	a.listEvents(matched)
}

// replayedPCRs are those that must be quoted, those that are, and those that
// the logs speak of.
func (a *appraisal) replayedPCRs(replay eventlog.PCRs) []int {
	set := map[int]bool{}
	for n := range lastStaticPCR + 1 {
		set[n] = true
	}
	for n := range a.quoted {
		set[n] = true
	}
	for n := range replay {
		set[n] = true
	}
	return slices.Sorted(maps.Keys(set))
}

func (a *appraisal) checkReplay(pcr int, want []byte) error {
	got, ok := a.quoted[pcr]
	switch {
	case a.quoted == nil:
		return errors.New("there are no quoted values")
	case a.joined == nil:
		return errors.New("there is no log to replay")
	case !ok:
		return errors.New("the logs extend it, and it is not quoted")
	case !bytes.Equal(got, want):
		return errors.New("the logs do not give the quoted value")
	}
	return nil
}

func (a *appraisal) references() {
	if len(a.expect.PCRs) == 0 {
		a.claim("pcr.reference", "reference values", "", errors.New("no reference values are given"))
		return
	}
	for _, pcr := range slices.Sorted(maps.Keys(a.expect.PCRs)) {
		accepted := a.expect.PCRs[pcr]
		got := a.quoted[pcr]
		var err error
		if got == nil {
			err = errors.New("it is not quoted")
		} else if !slices.ContainsFunc(accepted, func(v []byte) bool { return bytes.Equal(v, got) }) {
			err = errors.New("it has none of the accepted values")
		}
		expected := fmt.Sprintf("one of %d values", len(accepted))
		if len(accepted) == 1 {
			expected = hex.EncodeToString(accepted[0])
		}
		a.claim(fmt.Sprintf("pcr.%d.reference", pcr), expected, hex.EncodeToString(got), err)
	}
}

func (a *appraisal) listEvents(matched map[int]bool) {
	for _, s := range a.logs {
		for _, e := range s.log.Events() {
			out := Event{
				Log:        s.name,
				PCR:        e.PCR,
				Type:       e.Type.String(),
				Digest:     hex.EncodeToString(e.Digest(eventlog.SHA256)),
				Replayed:   e.Type != eventlog.NoAction && matched[int(e.PCR)],
				DataHashed: e.DataMatches(),
				Data:       e.Data,
			}
			if m, err := e.Measurement(); err == nil && s.name == "card" {
				out.Measured = measured(m)
			}
			a.report.Events = append(a.report.Events, out)
		}
	}
}

func measured(m eventlog.Measurement) *Measured {
	out := &Measured{Kind: m.Kind}
	for _, it := range m.Items {
		out.Items = append(out.Items, Item{it.Name, it.Size, hex.EncodeToString(it.Digest[:])})
	}
	return out
}
