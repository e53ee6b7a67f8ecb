// SPDX-License-Identifier: Apache-2.0

package measure

import (
	"bytes"
	"context"
	"fmt"
	"slices"

	"github.com/davit-dpu/davit/firmware/eventlog"
)

// reconcile compares the logs with the TPM, for the PCRs of the table, and
// makes up for an extend that a crash prevented.
func (m *Measurer) reconcile(ctx context.Context, firmwareLog []byte) error {
	ours := m.file.Log()
	events := ours.Events()
	for _, e := range events {
		if reason, ok := e.Broken(); ok {
			m.broken = true
			return fmt.Errorf("%w since an earlier run: %s", ErrBroken, reason)
		}
	}
	joined, err := join(firmwareLog, ours)
	if err != nil {
		return err
	}
	bank, err := m.bank(joined)
	if err != nil {
		return err
	}
	now, err := m.tpm.ReadPCRs(ctx, bank, tablePCRs()...)
	if err != nil {
		return err
	}
	want, err := joined.Replay(bank)
	if err != nil {
		return err
	}
	pcr, differ := difference(bank, want, now)
	switch {
	case !differ:
		return nil
	case len(events) == 0:
		return m.breakOff(pcr, fmt.Errorf("pcr %d was extended by others, or a log was lost", pcr))
	}
	before, err := joined.Before(joined.Len() - 1).Replay(bank)
	if err != nil {
		return err
	}
	if other, differ := difference(bank, before, now); differ {
		return m.breakOff(other, fmt.Errorf("pcr %d is not as logged", other))
	}
	return m.extend(ctx, events[len(events)-1])
}

func join(firmwareLog []byte, ours *eventlog.Log) (*eventlog.Log, error) {
	if len(firmwareLog) == 0 {
		return ours, nil
	}
	firmware, err := eventlog.Parse(firmwareLog)
	if err != nil {
		return nil, fmt.Errorf("firmware log: %w", err)
	}
	return eventlog.Join(firmware, ours)
}

// bank picks one bank to compare in; all are extended by the same command.
func (m *Measurer) bank(log *eventlog.Log) (eventlog.Alg, error) {
	for _, a := range append([]eventlog.Alg{eventlog.SHA256}, m.algs...) {
		if slices.Contains(m.algs, a) && slices.Contains(log.Algs(), a) {
			return a, nil
		}
	}
	return 0, fmt.Errorf("firmware log has none of the TPM's banks %v: %w", m.algs, eventlog.ErrNoBank)
}

// difference returns the first PCR of the table in which two sets of values
// differ; one that is not named has its initial value.
func difference(bank eventlog.Alg, want, got eventlog.PCRs) (int, bool) {
	for _, pcr := range tablePCRs() {
		w := want[pcr]
		if w == nil {
			w = eventlog.Initial(bank, pcr)
		}
		if !bytes.Equal(w, got[pcr]) {
			return pcr, true
		}
	}
	return 0, false
}

func tablePCRs() []int {
	var out []int
	for _, row := range Table() {
		out = append(out, row.PCR)
	}
	return out
}
