// SPDX-License-Identifier: Apache-2.0

package measure

import (
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"sync"

	"github.com/davit-dpu/davit/firmware/eventlog"
	"github.com/davit-dpu/davit/firmware/tpm"
)

// Errors that the boot table decides by.
var (
	// ErrNoTPM: there is no TPM to measure into.
	ErrNoTPM = errors.New("no TPM to measure into")
	// ErrBroken: log and TPM have parted; nothing more is measured.
	ErrBroken = errors.New("measurements are broken")
	// ErrClosed: the measurer was closed.
	ErrClosed = errors.New("measurer is closed")
)

// Measurer writes the card's event log and extends the TPM. All methods may be
// called concurrently; measurements are made one after the other.
type Measurer struct {
	mu     sync.Mutex
	tpm    *tpm.TPM       // nil if unanchored
	file   *eventlog.File // guarded by mu; nil when closed
	algs   []eventlog.Alg
	broken bool // guarded by mu
}

// Open goes on with the log at logPath, or starts it. It takes the log until
// Close or the end of the process; meanwhile others get [eventlog.ErrBusy].
//
// firmwareLog is the log that the kernel passes on from the firmware
// (/sys/kernel/security/tpm0/binary_bios_measurements), empty if there is none.
// Both logs together are compared with the TPM. An event that was logged but
// not yet extended is extended now; if they differ in any other way the log is
// marked, and Open fails with [ErrBroken].
//
// t is not closed by the Measurer. A nil t is [ErrNoTPM].
func Open(ctx context.Context, t *tpm.TPM, logPath string, firmwareLog []byte) (*Measurer, error) {
	if t == nil {
		return nil, ErrNoTPM
	}
	m, err := openLog(logPath, t, t.Banks())
	if err != nil {
		return nil, err
	}
	if err := m.reconcile(ctx, firmwareLog); err != nil {
		return nil, errors.Join(fmt.Errorf("compare event log with tpm: %w", err), m.Close())
	}
	return m, nil
}

// OpenUnanchored starts or goes on with a log that no TPM vouches for. It is
// for a development boot without TPM, which must choose it: evidence with such
// a log fails.
func OpenUnanchored(logPath string) (*Measurer, error) {
	return openLog(logPath, nil, []eventlog.Alg{eventlog.SHA256})
}

func openLog(path string, t *tpm.TPM, algs []eventlog.Alg) (*Measurer, error) {
	f, err := eventlog.OpenFile(path, algs...)
	if err != nil {
		return nil, err
	}
	return &Measurer{tpm: t, file: f, algs: algs}, nil
}

// Anchored reports whether measurements go into a TPM.
func (m *Measurer) Anchored() bool { return m.tpm != nil }

// Bytes measures data under a name. It is for what is not a file: a lifecycle
// state, the use of a privileged operation.
func (m *Measurer) Bytes(ctx context.Context, kind Kind, name string, data []byte) error {
	item := eventlog.Item{Name: name, Size: uint64(len(data)), Digest: sha256.Sum256(data)}
	return m.record(ctx, kind, item)
}

// Snapshot calls fn with the log's bytes while no measurement is under way:
// what fn reads from the TPM agrees with them. fn must not call the Measurer.
func (m *Measurer) Snapshot(fn func(log []byte) error) error {
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.file == nil {
		return ErrClosed
	}
	return fn(m.file.Encode())
}

// Close releases the log. The TPM stays open.
func (m *Measurer) Close() error {
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.file == nil {
		return nil
	}
	f := m.file
	m.file = nil
	return f.Close()
}

// record logs one event with the given items, then extends.
func (m *Measurer) record(ctx context.Context, kind Kind, items ...eventlog.Item) error {
	pcr, err := register(kind)
	if err != nil {
		return fmt.Errorf("measure: %w", err)
	}
	e, err := eventlog.Measurement{Kind: string(kind), Items: items}.Event(pcr, m.algs...)
	if err != nil {
		return fmt.Errorf("measure %s: %w", kind, err)
	}
	m.mu.Lock()
	defer m.mu.Unlock()
	switch {
	case m.file == nil:
		return fmt.Errorf("measure %s: %w", kind, ErrClosed)
	case m.broken:
		return fmt.Errorf("measure %s: %w", kind, ErrBroken)
	case ctx.Err() != nil:
		return fmt.Errorf("measure %s: %w", kind, ctx.Err())
	}
	if err := m.file.Append(e); err != nil {
		return fmt.Errorf("measure %s: %w", kind, err)
	}
	if m.tpm == nil {
		return nil
	}
	if err := m.extend(ctx, e); err != nil {
		return fmt.Errorf("measure %s: %w", kind, err)
	}
	return nil
}

// extend brings an event that was logged into the TPM. It is past the point
// where a context may stop it: the log and the TPM would differ.
func (m *Measurer) extend(ctx context.Context, e eventlog.Event) error {
	err := m.tpm.Extend(context.WithoutCancel(ctx), int(e.PCR), e.Digests...)
	if err == nil {
		return nil
	}
	return m.breakOff(int(e.PCR), err)
}

// breakOff ends all measuring, and says so in the log.
func (m *Measurer) breakOff(pcr int, cause error) error {
	m.broken = true
	err := fmt.Errorf("%w: %w", ErrBroken, cause)
	if mark := m.file.Append(eventlog.BrokenEvent(pcr, cause.Error(), m.algs...)); mark != nil {
		return errors.Join(err, mark)
	}
	return err
}
