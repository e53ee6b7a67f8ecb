// SPDX-License-Identifier: Apache-2.0

package tpm

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"slices"

	"github.com/google/go-tpm/tpm2"
	"github.com/google/go-tpm/tpm2/transport"
	"github.com/google/go-tpm/tpm2/transport/linuxtpm"
	"github.com/google/go-tpm/tpm2/transport/linuxudstpm"

	"github.com/davit-dpu/davit/firmware/eventlog"
)

// Errors that callers decide by.
var (
	// ErrNoTPM: there is no TPM at the path.
	ErrNoTPM = errors.New("no TPM")
	// ErrBusy: another process holds the TPM, or it kept asking for a retry.
	ErrBusy = errors.New("TPM is busy")
	// ErrFailureMode: the TPM failed its self-test and only a reset helps.
	ErrFailureMode = errors.New("TPM is in failure mode")
	// ErrNotStarted: the firmware did not send TPM2_Startup.
	ErrNotStarted = errors.New("TPM was not started by the firmware")
	// ErrNoBank: the TPM has no such PCR bank, or one that cannot be extended here.
	ErrNoBank = errors.New("no such PCR bank")
	// ErrAuth: the endorsement hierarchy has an authorisation value set.
	ErrAuth = errors.New("TPM hierarchy needs an authorisation value")
	// ErrClosed: the TPM was closed.
	ErrClosed = errors.New("TPM is closed")
)

// TPM is an open TPM. All methods may be called concurrently; commands are
// sent one after the other.
type TPM struct {
	turn  chan struct{} // holds one token: whoever has it may use what follows
	link  transport.TPMCloser
	open  bool
	banks []eventlog.Alg // fixed after Open

	ak      *loaded // nil until first use
	receipt *loaded // nil until first use
}

// Open opens the TPM at path: the kernel's resource-managed device
// (/dev/tpmrm0), or the unix socket of an emulator such as swtpm. A socket has
// no resource manager behind it and belongs to this process alone: keys that
// a predecessor left loaded are flushed.
//
// It fails with [ErrNoTPM] if nothing is at path, and with [ErrNoBank] if the
// TPM has an active PCR bank that this package cannot extend, since a bank
// left out could be extended by others with whatever they like.
func Open(path string) (*TPM, error) {
	t, err := open(path)
	if err != nil {
		return nil, fmt.Errorf("open tpm %s: %w", path, err)
	}
	return t, nil
}

func open(path string) (*TPM, error) {
	info, err := os.Stat(path)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, ErrNoTPM
	}
	if err != nil {
		return nil, err
	}
	socket := info.Mode()&fs.ModeSocket != 0
	var raw transport.TPMCloser
	if socket {
		raw, err = linuxudstpm.Open(path)
	} else {
		raw, err = linuxtpm.Open(path)
	}
	if err != nil {
		return nil, clear(err)
	}
	t := &TPM{turn: make(chan struct{}, 1), link: link{raw}, open: true}
	t.turn <- struct{}{}
	if err := t.prepare(socket); err != nil {
		raw.Close()
		return nil, err
	}
	return t, nil
}

func (t *TPM) prepare(socket bool) error {
	banks, err := t.readBanks()
	if err != nil {
		return err
	}
	t.banks = banks
	if socket {
		return t.flushTransient()
	}
	return nil
}

// Close flushes the keys and closes the TPM. Calls that wait for their turn
// fail with [ErrClosed].
func (t *TPM) Close() error {
	<-t.turn
	defer func() { t.turn <- struct{}{} }()
	if !t.open {
		return nil
	}
	var errs []error
	for _, k := range []*loaded{t.ak, t.receipt} {
		if k != nil {
			errs = append(errs, t.flush(k.handle))
		}
	}
	t.open, t.ak, t.receipt = false, nil, nil
	errs = append(errs, t.link.Close())
	if err := errors.Join(errs...); err != nil {
		return fmt.Errorf("close tpm: %w", err)
	}
	return nil
}

// lock waits for the TPM's turn. The function it returns gives the turn back.
func (t *TPM) lock(ctx context.Context) (unlock func(), err error) {
	if err := ctx.Err(); err != nil {
		return nil, err
	}
	select {
	case <-t.turn:
	case <-ctx.Done():
		return nil, ctx.Err()
	}
	unlock = func() { t.turn <- struct{}{} }
	if !t.open {
		unlock()
		return nil, ErrClosed
	}
	return unlock, nil
}

// Banks returns the active PCR banks in ascending order of algorithm.
func (t *TPM) Banks() []eventlog.Alg { return slices.Clone(t.banks) }

// link turns what a transport gives back into the errors of this package.
type link struct{ transport.TPMCloser }

// headerSize is the length of a response without parameters: tag, size, code.
const headerSize = 10

// Send implements [transport.TPM].
func (l link) Send(cmd []byte) ([]byte, error) {
	rsp, err := l.TPMCloser.Send(cmd)
	if err != nil {
		return nil, clear(err)
	}
	if len(rsp) < headerSize {
		// The transport gives back nothing, and no error, when a TPM has
		// answered TPM_RC_RETRY a dozen times.
		return nil, ErrBusy
	}
	return rsp, nil
}

// clear puts a sentinel in front of the errors that have one.
func clear(err error) error {
	for _, m := range []struct{ is, sentinel error }{
		{tpm2.TPMRCFailure, ErrFailureMode},
		{tpm2.TPMRCInitialize, ErrNotStarted},
		{tpm2.TPMRCRetry, ErrBusy},
		{tpm2.TPMRCYielded, ErrBusy},
		{tpm2.TPMRCTesting, ErrBusy},
		{tpm2.TPMRCBadAuth, ErrAuth},
		{tpm2.TPMRCAuthFail, ErrAuth},
		{tpm2.TPMRCLockout, ErrAuth},
		{errBusyDevice, ErrBusy},
	} {
		if errors.Is(err, m.is) && !errors.Is(err, m.sentinel) {
			return fmt.Errorf("%w: %w", m.sentinel, err)
		}
	}
	return err
}
