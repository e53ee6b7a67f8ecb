// SPDX-License-Identifier: Apache-2.0

package boot

import (
	"context"
	"encoding/hex"
	"errors"
	"fmt"
	"os"
	"path/filepath"

	"github.com/davit-dpu/davit/firmware/measure"
	"github.com/davit-dpu/davit/firmware/supervise/initctl"
	"github.com/davit-dpu/davit/firmware/tpm"
)

// errNoTPMDevice is why nothing can be measured.
var errNoTPMDevice = errors.New("no TPM")

const firmwareLogPath = "/sys/kernel/security/tpm0/binary_bios_measurements"

// stepTPM waits for the TPM and opens the event log. Without a TPM a boot in
// development goes on with a log that nothing vouches for; others stop here.
func stepTPM(ctx context.Context, m *machine) (string, error) {
	detail, err := m.openTPM(ctx)
	if err == nil {
		return detail, nil
	}
	if m.strict() {
		return "", err
	}
	if m.tpm == nil {
		meter, logErr := measure.OpenUnanchored(m.cfg.EventLog)
		if logErr != nil {
			return "", errors.Join(err, logErr)
		}
		m.meter = meter
	}
	return "", err
}

func (m *machine) openTPM(ctx context.Context) (string, error) {
	path := m.board.TPM
	if path == "" {
		return "", fmt.Errorf("%w: board %s has none", errNoTPMDevice, m.board.Name)
	}
	err := waitFor(ctx, filepath.Dir(path), m.patience(m.cfg.TPMWait), exists(path))
	if err != nil {
		return "", fmt.Errorf("%w: %s: %w", errNoTPMDevice, path, err)
	}
	t, err := tpm.Open(path)
	if err != nil {
		return "", err
	}
	m.tpm = t
	firmwareLog, err := readFirmwareLog(firmwareLogPath)
	if err != nil {
		return "", err
	}
	if m.meter, err = measure.Open(ctx, t, m.cfg.EventLog, firmwareLog); err != nil {
		return "", err
	}
	how := fmt.Sprintf("firmware log of %d bytes", len(firmwareLog))
	if firmwareLog == nil {
		how = "no firmware log: booted without UEFI"
	}
	return fmt.Sprintf("%s, banks %v, %s", path, t.Banks(), how), nil
}

// readFirmwareLog gives nil when the kernel was not booted by a firmware that
// measures.
func readFirmwareLog(path string) ([]byte, error) {
	b, err := os.ReadFile(path)
	if errors.Is(err, os.ErrNotExist) {
		return nil, nil
	}
	if err != nil {
		return nil, fmt.Errorf("firmware event log: %w", err)
	}
	return b, nil
}

func stepMeasureLifecycle(ctx context.Context, m *machine) (string, error) {
	if m.meter == nil {
		return "", measure.ErrNoTPM
	}
	if err := m.meter.Bytes(ctx, measure.KindLifecycle, "lifecycle", []byte(m.report.Lifecycle)); err != nil {
		return "", err
	}
	return m.measured(measure.KindLifecycle, string(m.report.Lifecycle))
}

func stepMeasureInit(ctx context.Context, m *machine) (string, error) {
	// What runs must be what is named, or the log would vouch for another file.
	self, err := os.Readlink("/proc/self/exe")
	if err != nil {
		return "", fmt.Errorf("find this program: %w", err)
	}
	if self != m.cfg.Self {
		return "", fmt.Errorf("this program is %q, not %s", self, m.cfg.Self)
	}
	return m.measureAndClose(ctx, measure.KindInit, m.cfg.Self)
}

func stepMeasureModules(ctx context.Context, m *machine) (string, error) {
	if m.modules == nil {
		return "no modules", nil
	}
	return m.measureAndClose(ctx, measure.KindModule, append([]string{m.cfg.ModuleList}, m.modules...)...)
}

// stepMeasureAgent keeps the measured copy: davitd runs from it.
func stepMeasureAgent(ctx context.Context, m *machine) (string, error) {
	if m.meter == nil {
		return "", measure.ErrNoTPM
	}
	files, err := m.files(ctx, measure.KindProgram, m.cfg.Agent)
	if err != nil {
		return "", err
	}
	m.agent = files[0]
	m.note(measure.KindProgram, m.agent)
	return m.measured(measure.KindProgram, m.agent.Name+" "+digest(m.agent))
}

func stepMeasureVcard(ctx context.Context, m *machine) (string, error) {
	return m.measureAndClose(ctx, measure.KindProgram, m.cfg.Vcard)
}

func stepMeasureConfig(ctx context.Context, m *machine) (string, error) {
	return m.measureAndClose(ctx, measure.KindConfig, m.cfg.CardConfig)
}

// stepCloseLog ends measuring by pid 1: the log has one writer at a time, and
// davitd is next.
func stepCloseLog(_ context.Context, m *machine) (string, error) {
	if m.meter == nil {
		return "", measure.ErrNoTPM
	}
	err := errors.Join(m.captures.drop(), m.meter.Close())
	m.meter = nil
	if m.tpm != nil {
		err = errors.Join(err, m.tpm.Close())
		m.tpm = nil
	}
	if err != nil {
		return "", err
	}
	return m.cfg.EventLog, nil
}

// measureAndClose measures files with one event, and keeps nothing of them:
// the image they are in does not change from here on.
func (m *machine) measureAndClose(ctx context.Context, kind measure.Kind, paths ...string) (string, error) {
	if m.meter == nil {
		return "", measure.ErrNoTPM
	}
	files, err := m.files(ctx, kind, paths...)
	if err != nil {
		return "", err
	}
	for _, f := range files {
		m.note(kind, f)
		if err := f.Close(); err != nil {
			return "", fmt.Errorf("close %s: %w", f.Name, err)
		}
	}
	what := files[0].Name + " " + digest(files[0])
	if len(files) > 1 {
		what = fmt.Sprintf("%s and %d modules", files[0].Name, len(files)-1)
	}
	return m.measured(kind, what)
}

// files measures files with one event, as they were when they were read.
func (m *machine) files(ctx context.Context, kind measure.Kind, paths ...string) ([]*measure.Measured, error) {
	read, err := m.captures.takeAll(paths)
	if err != nil {
		return nil, err
	}
	return m.meter.Measure(ctx, kind, read...)
}

// measured says where a measurement went; one that no TPM holds is not "ok".
func (m *machine) measured(kind measure.Kind, what string) (string, error) {
	if !m.meter.Anchored() {
		return "", skip(what + ": logged, no TPM vouches for it")
	}
	return fmt.Sprintf("%s → PCR %d", what, measure.Registers()[string(kind)]), nil
}

func (m *machine) note(kind measure.Kind, f *measure.Measured) {
	if !m.meter.Anchored() {
		return
	}
	m.report.Measurements = append(m.report.Measurements, initctl.Measurement{
		Path: f.Name, PCR: measure.Registers()[string(kind)], Digest: digest(f),
	})
}

func digest(f *measure.Measured) string { return "sha256:" + hex.EncodeToString(f.Digest[:]) }
