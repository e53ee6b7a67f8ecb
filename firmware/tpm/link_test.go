// SPDX-License-Identifier: Apache-2.0

package tpm

import (
	"encoding/binary"
	"errors"
	"fmt"
	"syscall"
	"testing"

	"github.com/google/go-tpm/tpm2"

	"github.com/davit-dpu/davit/firmware/eventlog"
)

// answering is a transport that gives one answer to everything.
type answering struct {
	rsp []byte
	err error
}

func (a answering) Send([]byte) ([]byte, error) { return a.rsp, a.err }
func (a answering) Close() error                { return nil }

// response is a header with a code and nothing else.
func response(code tpm2.TPMRC) []byte {
	b := binary.BigEndian.AppendUint16(nil, uint16(tpm2.TPMSTNoSessions))
	b = binary.BigEndian.AppendUint32(b, headerSize)
	return binary.BigEndian.AppendUint32(b, uint32(code))
}

func TestErrors(t *testing.T) {
	t.Parallel()
	for name, test := range map[string]struct {
		link answering
		want error
	}{
		"failure mode":      {answering{rsp: response(tpm2.TPMRCFailure)}, ErrFailureMode},
		"no startup":        {answering{rsp: response(tpm2.TPMRCInitialize)}, ErrNotStarted},
		"busy":              {answering{rsp: response(tpm2.TPMRCRetry)}, ErrBusy},
		"still testing":     {answering{rsp: response(tpm2.TPMRCTesting)}, ErrBusy},
		"hierarchy auth":    {answering{rsp: response(tpm2.TPMRCBadAuth)}, ErrAuth},
		"held by another":   {answering{err: fmt.Errorf("open: %w", syscall.EBUSY)}, ErrBusy},
		"retries exhausted": {answering{}, ErrBusy},
		"short response":    {answering{rsp: []byte{0x80, 1, 0}}, ErrBusy},
		"truncated":         {answering{rsp: response(tpm2.TPMRCSuccess)}, nil},
	} {
		tpm := &TPM{turn: make(chan struct{}, 1), link: link{test.link}, open: true, banks: []eventlog.Alg{eventlog.SHA256}}
		tpm.turn <- struct{}{}
		check := func(what string, err error) {
			if err == nil || (test.want != nil && !errors.Is(err, test.want)) {
				t.Errorf("%s: %s = %v, want %v", name, what, err, test.want)
			}
		}
		banks, err := tpm.readBanks()
		check("readBanks", err)
		if banks != nil {
			t.Errorf("%s: readBanks returns both", name)
		}
		_, err = tpm.ReadPCRs(t.Context(), eventlog.SHA256, 0)
		check("ReadPCRs", err)
		_, err = tpm.AK(t.Context())
		check("AK", err)
		_, err = tpm.Endorsement(t.Context())
		check("Endorsement", err)
	}
}
