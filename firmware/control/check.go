// SPDX-License-Identifier: Apache-2.0

package control

import (
	"encoding/hex"
	"errors"
	"fmt"
	"slices"

	"github.com/davit-dpu/davit/firmware/spec"
)

const maxBuild = 128

var phases = []spec.Phase{
	spec.PhasePending, spec.PhaseStarting, spec.PhaseReady, spec.PhaseRunning,
	spec.PhaseStopping, spec.PhaseStopped, spec.PhaseFailed, spec.PhaseUnknown,
}

func (m *Hello) check() error {
	if m.Min < 1 || m.Current < m.Min {
		return fmt.Errorf("hello: versions %d to %d", m.Min, m.Current)
	}
	return checkText("build", m.Build, maxBuild)
}

func (m *HelloReply) check() error {
	if m.Version < VersionMin || m.Version > VersionCurrent {
		return fmt.Errorf("hello: version %d: %w", m.Version, ErrVersion)
	}
	if len(m.Sandbox) > MaxChecks {
		return fmt.Errorf("sandbox: %d checks are more than %d", len(m.Sandbox), MaxChecks)
	}
	for _, c := range m.Sandbox {
		if !slices.Contains([]string{"passed", "failed", "not-checked"}, c.Result) {
			return fmt.Errorf("sandbox: result %.20q", c.Result)
		}
		if err := errors.Join(checkText("check", c.Name, 64), checkText("detail", c.Detail, MaxText)); err != nil {
			return err
		}
	}
	return checkText("build", m.Build, maxBuild)
}

func (m *AttachBus) check() error {
	const align = spec.MemoryAlign
	if m.WindowSize == 0 || m.WindowSize%align != 0 || m.WindowBase%align != 0 || m.FileOffset%align != 0 {
		return fmt.Errorf("window: base %s, size %s, file offset %s are not multiples of %s", m.WindowBase, m.WindowSize, m.FileOffset, align)
	}
	const most = 1 << 46 // more than any pool; keeps every sum below 2^63
	if m.WindowBase > most || m.WindowSize > most || m.FileOffset > most {
		return errors.New("window: larger than 64TiB")
	}
	return nil
}

func (m *AddDevice) check() error {
	v := spec.Volume{Name: m.Name, Kind: spec.VolumeFile, Serial: m.Serial, Queues: m.Queues, Limits: m.Limits}
	if err := errors.Join(spec.CheckName("instance", m.Instance), v.Validate()); err != nil {
		return err
	}
	if m.Queues < 1 {
		return errors.New("queues: at least 1")
	}
	if n := len(m.Base); m.Base != nil && n != 32 {
		return fmt.Errorf("base: %d bytes, want 32", n)
	}
	if err := checkGeneration(m.Generation, true); err != nil {
		return err
	}
	return checkMemory(m.MemoryOffset, m.MemorySize, m.Listen)
}

func (m *LimitDevice) check() error {
	return errors.Join(spec.CheckName("instance", m.Instance), spec.CheckName("device", m.Name), checkLimits(m.Limits))
}

func (m *RemoveDevice) check() error {
	return errors.Join(spec.CheckName("instance", m.Instance), spec.CheckName("device", m.Name))
}

func (m *StartVMM) check() error {
	if m.Initrd && !m.Kernel {
		return errors.New("an initrd needs a kernel")
	}
	o := m.Order
	o.Kernel, o.Initrd = nil, nil
	if m.Kernel {
		o.Kernel = &spec.Blob{Offset: o.PoolOffset, Length: 1, SHA256: make([]byte, 32)}
	}
	return o.Validate(1 << 46)
}

func (m *StartVMMReply) check() error { return m.Order.Validate(1 << 46) }

func (m *StopVMM) check() error {
	return errors.Join(spec.CheckName("instance", m.Instance), checkGeneration(m.Generation, false))
}

func (m *ConsoleRead) check() error { return spec.CheckName("instance", m.Instance) }

func (m *ConsoleOutput) check() error {
	if m.Offset+uint64(len(m.Data)) < m.Offset {
		return errors.New("console offset overflows")
	}
	return checkData(m.Data)
}

func (m *ConsoleWrite) check() error {
	return errors.Join(spec.CheckName("instance", m.Instance), checkData(m.Data))
}

func (m *DoorRead) check() error  { return nil }
func (m *DoorData) check() error  { return checkData(m.Data) }
func (m *DoorWrite) check() error { return checkData(m.Data) }
func (m *DoorClose) check() error { return nil }
func (m *Shutdown) check() error  { return nil }
func (m *Done) check() error      { return nil }

func (m *StatusRequest) check() error {
	return errors.Join(checkText("afterDevice", m.AfterDevice, 128), checkText("afterVMM", m.AfterVMM, 128))
}

func (m *StatusReply) check() error {
	if len(m.Devices) > pageSize || len(m.VMMs) > pageSize || len(m.Doors) > MaxDoors {
		return errors.New("status: a page holds too much")
	}
	err := m.Host.check()
	for i := range m.Devices {
		err = errors.Join(err, m.Devices[i].check())
	}
	for i := range m.VMMs {
		err = errors.Join(err, checkVMM(&m.VMMs[i]))
	}
	return err
}

func (m *Event) check() error {
	set := 0
	var err error
	if m.Host != nil {
		set, err = set+1, m.Host.check()
	}
	if m.VMM != nil {
		set, err = set+1, checkVMM(m.VMM)
	}
	if m.Device != nil {
		set, err = set+1, m.Device.check()
	}
	if m.Door != nil {
		set++
	}
	if set != 1 {
		return fmt.Errorf("event: %d subjects", set)
	}
	return err
}

func (h *HostStatus) check() error {
	return errors.Join(checkCondition(h.Condition), checkText("build", h.Build, maxBuild))
}

func (d *Device) check() error {
	if len(d.Queues) > spec.MaxQueues {
		return fmt.Errorf("device: %d queues", len(d.Queues))
	}
	return errors.Join(spec.CheckName("instance", d.Instance), spec.CheckName("device", d.Name),
		checkText("kind", d.Kind, 32), checkLimits(d.Limits), checkCondition(d.Condition), checkGeneration(d.Generation, true))
}

func checkLimits(l *spec.Limits) error {
	if l == nil {
		return nil
	}
	return l.Validate()
}

func checkVMM(v *spec.VMMStatus) error {
	if v.State != spec.VMMRunning && v.State != spec.VMMExited {
		return fmt.Errorf("vmm: state %.20q", v.State)
	}
	return errors.Join(spec.CheckName("instance", v.Instance), checkGeneration(v.Generation, false), checkText("reason", v.Reason, 256))
}

func checkCondition(c spec.Condition) error {
	if !slices.Contains(phases, c.Phase) {
		return fmt.Errorf("phase %.20q", c.Phase)
	}
	return checkText("reason", c.Reason, MaxText)
}

func checkMemory(offset, size spec.Bytes, local bool) error {
	switch {
	case local && (offset != 0 || size != 0):
		return errors.New("memory: a device with its own socket gets its memory from its front end")
	case local:
		return nil
	case size == 0 || size > spec.MaxMemory || offset > 1<<46 || size%spec.MemoryAlign != 0 || offset%spec.MemoryAlign != 0:
		return fmt.Errorf("memory: [%s, +%s) is not a range of whole %s", offset, size, spec.MemoryAlign)
	}
	return nil
}

func checkGeneration(g string, optional bool) error {
	if g == "" && optional {
		return nil
	}
	if b, err := hex.DecodeString(g); err != nil || len(b) != 16 {
		return fmt.Errorf("generation %.40q: want 32 hexadecimal digits", g)
	}
	return nil
}

func checkData(b []byte) error {
	if len(b) > MaxData {
		return fmt.Errorf("data: %d bytes are more than %d", len(b), MaxData)
	}
	return nil
}

// checkText refuses what could forge a log line or a terminal sequence.
func checkText(what, s string, most int) error {
	if len(s) > most {
		return fmt.Errorf("%s: %d characters are more than %d", what, len(s), most)
	}
	for i := range len(s) {
		if s[i] < 0x20 || s[i] > 0x7e {
			return fmt.Errorf("%s: not printable ASCII", what)
		}
	}
	return nil
}

// Text makes s fit for a reason or an error on the wire: printable ASCII of at
// most most bytes, everything else a question mark.
func Text(s string, most int) string {
	b := []byte(s[:min(len(s), most)])
	for i, c := range b {
		if c < 0x20 || c > 0x7e {
			b[i] = '?'
		}
	}
	return string(b)
}
