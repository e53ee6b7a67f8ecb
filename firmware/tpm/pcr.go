// SPDX-License-Identifier: Apache-2.0

package tpm

import (
	"context"
	"fmt"
	"slices"
	"syscall"

	"github.com/google/go-tpm/tpm2"

	"github.com/davit-dpu/davit/firmware/eventlog"
)

// errBusyDevice is what the kernel answers when the device is open elsewhere.
var errBusyDevice = syscall.EBUSY

// Extend extends one PCR, 0 to 23, in all banks with one command, so that no
// bank is ever without the event. digests must have exactly one for each bank
// of [TPM.Banks], in any order ([ErrNoBank] otherwise). Spec: TPM 2.0 Part 3,
// TPM2_PCR_Extend.
func (t *TPM) Extend(ctx context.Context, pcr int, digests ...eventlog.Digest) error {
	if err := t.extend(ctx, pcr, digests); err != nil {
		return fmt.Errorf("extend pcr %d: %w", pcr, err)
	}
	return nil
}

func (t *TPM) extend(ctx context.Context, pcr int, digests []eventlog.Digest) error {
	if pcr < 0 || pcr >= eventlog.NumPCRs {
		return fmt.Errorf("there are PCRs 0 to %d", eventlog.NumPCRs-1)
	}
	given := map[eventlog.Alg]bool{}
	values := tpm2.TPMLDigestValues{}
	for _, d := range digests {
		if given[d.Alg] || !slices.Contains(t.banks, d.Alg) || len(d.Sum) != d.Alg.Size() {
			return fmt.Errorf("digest by %v of %d bytes: %w", d.Alg, len(d.Sum), ErrNoBank)
		}
		given[d.Alg] = true
		values.Digests = append(values.Digests, hashValue(d))
	}
	if len(given) != len(t.banks) {
		return fmt.Errorf("%d digests for %d active banks: %w", len(given), len(t.banks), ErrNoBank)
	}
	unlock, err := t.lock(ctx)
	if err != nil {
		return err
	}
	defer unlock()
	_, err = tpm2.PCRExtend{
		PCRHandle: tpm2.AuthHandle{Handle: tpm2.TPMHandle(pcr), Auth: tpm2.PasswordAuth(nil)},
		Digests:   values,
	}.Execute(t.link)
	return clear(err)
}

func hashValue(d eventlog.Digest) tpm2.TPMTHA {
	return tpm2.TPMTHA{HashAlg: tpm2.TPMIAlgHash(d.Alg), Digest: d.Sum}
}

// ReadPCRs returns the values of the given PCRs in one bank, all as of one
// moment: if a PCR changes meanwhile they are read again. Spec: Part 3,
// TPM2_PCR_Read.
func (t *TPM) ReadPCRs(ctx context.Context, bank eventlog.Alg, pcrs ...int) (eventlog.PCRs, error) {
	unlock, err := t.lock(ctx)
	if err != nil {
		return nil, fmt.Errorf("read pcrs: %w", err)
	}
	defer unlock()
	for {
		values, same, err := t.readPCRs(bank, pcrs)
		if err != nil {
			return nil, fmt.Errorf("read pcrs of %v: %w", bank, err)
		}
		if same {
			return values, nil
		}
		if err := ctx.Err(); err != nil {
			return nil, fmt.Errorf("read pcrs that keep changing: %w", err)
		}
	}
}

// readPCRs reads in as many commands as it takes, eight PCRs at most come with
// one. same is false if the TPM's update counter moved in between.
func (t *TPM) readPCRs(bank eventlog.Alg, pcrs []int) (values eventlog.PCRs, same bool, err error) {
	if !slices.Contains(t.banks, bank) {
		return nil, false, ErrNoBank
	}
	pcrs = slices.Sorted(slices.Values(pcrs)) // the TPM answers the lowest first
	values = eventlog.PCRs{}
	var counter uint32
	for first := true; ; first = false {
		var missing []int
		for _, p := range pcrs {
			if values[p] == nil {
				missing = append(missing, p)
			}
		}
		if len(missing) == 0 {
			return values, true, nil
		}
		selection, err := selectPCRs(bank, missing)
		if err != nil {
			return nil, false, err
		}
		rsp, err := tpm2.PCRRead{PCRSelectionIn: selection}.Execute(t.link)
		if err != nil {
			return nil, false, clear(err)
		}
		if !first && rsp.PCRUpdateCounter != counter {
			return nil, false, nil
		}
		counter = rsp.PCRUpdateCounter
		if err := takePCRs(values, bank, rsp); err != nil {
			return nil, false, err
		}
		if values[missing[0]] == nil {
			return nil, false, fmt.Errorf("TPM left out pcr %d", missing[0])
		}
	}
}

// takePCRs adds the values of one response, which must bring at least one.
func takePCRs(values eventlog.PCRs, bank eventlog.Alg, rsp *tpm2.PCRReadResponse) error {
	if len(rsp.PCRSelectionOut.PCRSelections) != 1 || len(rsp.PCRValues.Digests) == 0 {
		return fmt.Errorf("TPM returned no values")
	}
	digests := rsp.PCRValues.Digests
	for i, b := range rsp.PCRSelectionOut.PCRSelections[0].PCRSelect {
		for bit := range 8 {
			if b&(1<<bit) == 0 {
				continue
			}
			if len(digests) == 0 || len(digests[0].Buffer) != bank.Size() {
				return fmt.Errorf("TPM returned values that do not fit its selection")
			}
			values[8*i+bit] = digests[0].Buffer
			digests = digests[1:]
		}
	}
	return nil
}

func selectPCRs(bank eventlog.Alg, pcrs []int) (tpm2.TPMLPCRSelection, error) {
	var list []uint
	for _, p := range pcrs {
		if p < 0 || p >= eventlog.NumPCRs {
			return tpm2.TPMLPCRSelection{}, fmt.Errorf("pcr %d: there are PCRs 0 to %d", p, eventlog.NumPCRs-1)
		}
		list = append(list, uint(p))
	}
	return tpm2.TPMLPCRSelection{PCRSelections: []tpm2.TPMSPCRSelection{{
		Hash:      tpm2.TPMIAlgHash(bank),
		PCRSelect: tpm2.PCClientCompatible.PCRs(list...),
	}}}, nil
}

// readBanks asks which banks have any PCR allocated.
func (t *TPM) readBanks() ([]eventlog.Alg, error) {
	rsp, err := tpm2.GetCapability{Capability: tpm2.TPMCapPCRs, PropertyCount: 1}.Execute(t.link)
	if err != nil {
		return nil, fmt.Errorf("read pcr allocation: %w", clear(err))
	}
	selections, err := rsp.CapabilityData.Data.AssignedPCR()
	if err != nil {
		return nil, fmt.Errorf("read pcr allocation: %w", err)
	}
	var banks []eventlog.Alg
	for _, s := range selections.PCRSelections {
		if !slices.ContainsFunc(s.PCRSelect, func(b byte) bool { return b != 0 }) {
			continue
		}
		alg := eventlog.Alg(s.Hash)
		if !alg.Known() {
			return nil, fmt.Errorf("bank %v is active: %w", alg, ErrNoBank)
		}
		banks = append(banks, alg)
	}
	if len(banks) == 0 {
		return nil, fmt.Errorf("no bank is active: %w", ErrNoBank)
	}
	slices.Sort(banks)
	return banks, nil
}
