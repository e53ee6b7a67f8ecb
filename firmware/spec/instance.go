// SPDX-License-Identifier: Apache-2.0

package spec

import (
	"fmt"
	"strings"
)

// Limits of an instance. They bound what the card allocates on an order's word;
// the card's own resources may refuse less.
const (
	MaxVCPUs       = 64
	MinMemory      = 64 * MiB
	MaxMemory      = 1 * TiB
	MemoryAlign    = 2 * MiB // device-DAX and huge pages map in units of 2 MiB
	MaxVolumes     = 16
	MaxQueues      = 16
	MaxSerial      = 20 // VIRTIO_BLK_T_GET_ID: virtio 1.2, section 5.2.6
	MaxCmdline     = 2048
	SectorSize     = 512
	MaxVolumeBytes = 64 * TiB
)

// RestartPolicy says what the card does when an instance's VMM exits without
// having been told to.
type RestartPolicy string

// Restart policies. The zero value is read as RestartNever.
const (
	RestartNever     RestartPolicy = "never"
	RestartOnFailure RestartPolicy = "on-failure" // not after a guest's own shutdown
	RestartAlways    RestartPolicy = "always"
)

// VolumeKind names what holds a volume's blocks.
type VolumeKind string

// Kinds of volume.
const (
	VolumeFile    VolumeKind = "file"    // a raw file on the card's storage; outlives everything but deletion
	VolumeMemory  VolumeKind = "memory"  // a file in the card's RAM; zeros again after the card's reboot
	VolumeOverlay VolumeKind = "overlay" // what was changed of a file volume that nobody writes; lasts as a file does
)

// Check refuses what is no kind.
func (k VolumeKind) Check() error {
	switch k {
	case VolumeFile, VolumeMemory, VolumeOverlay:
		return nil
	}
	return fmt.Errorf("kind %q is not file, memory or overlay", k)
}

// Volume is one disk of an instance, served by the card as virtio-blk.
type Volume struct {
	Name     string     `json:"name"`               // a Name; unique on the card among those of its kind
	Kind     VolumeKind `json:"kind"`               // file, memory or overlay
	Base     string     `json:"base,omitempty"`     // of an overlay: the file volume below it, which any number may share
	Size     Bytes      `json:"size,omitempty"`     // multiple of 512; 0 = the existing file's size, or that of a new overlay's base
	ReadOnly bool       `json:"readOnly,omitempty"` // VIRTIO_BLK_F_RO is offered, writes fail
	Serial   string     `json:"serial,omitempty"`   // VIRTIO_BLK_T_GET_ID, at most 20 ASCII characters; default: the name
	Queues   int        `json:"queues,omitempty"`   // 1..16; default 1
	Limits   *Limits    `json:"limits,omitempty"`   // nil: none; never changed in place
}

// Firmware is what an instance's VMM starts when no kernel is given.
type Firmware string

// Kinds of guest firmware.
const (
	FirmwareBIOS Firmware = "bios" // SeaBIOS
	FirmwareUEFI Firmware = "uefi" // edk2 OVMF
)

// Boot says how an instance starts: a kernel that the card holds, or, when
// Kernel is empty, the firmware and the first volume.
type Boot struct {
	Kernel   string   `json:"kernel,omitempty"`   // a Name under the card's boot folder
	Initrd   string   `json:"initrd,omitempty"`   // likewise; only with Kernel
	Cmdline  string   `json:"cmdline,omitempty"`  // only with Kernel
	Firmware Firmware `json:"firmware,omitempty"` // only without Kernel; default bios
}

// Instance is a VM as an operator wants it.
type Instance struct {
	Name    string        `json:"name"`
	VCPUs   int           `json:"vcpus"`
	Memory  Bytes         `json:"memory"` // multiple of 2 MiB
	Boot    Boot          `json:"boot"`
	Volumes []Volume      `json:"volumes,omitempty"`
	Restart RestartPolicy `json:"restart,omitempty"`
}

// CheckName refuses a name that is not 1 to 63 lower-case letters, digits,
// dots, underscores and hyphens, beginning and ending with a letter or digit.
// Names become file names, so "..", a slash or a leading dot must not pass.
func CheckName(what, name string) error {
	if !plainName(name) {
		return fmt.Errorf("%s %q: want 1 to 63 of a-z 0-9 . _ -, beginning and ending with a letter or digit", what, name)
	}
	return nil
}

// plainName is written out: every program of a card would compile a regular
// expression each time it starts.
func plainName(name string) bool {
	if len(name) < 1 || len(name) > 63 || strings.Contains(name, "..") {
		return false
	}
	for i := range len(name) {
		c := name[i]
		alphanumeric := c >= 'a' && c <= 'z' || c >= '0' && c <= '9'
		inner := i > 0 && i < len(name)-1 && (c == '.' || c == '_' || c == '-')
		if !alphanumeric && !inner {
			return false
		}
	}
	return true
}

// ParseInstance decodes one YAML document and validates it. Unknown and
// duplicate keys, and a second document, are errors that name the line.
func ParseInstance(text []byte) (*Instance, error) {
	var in Instance
	if err := DecodeYAML(text, &in); err != nil {
		return nil, fmt.Errorf("instance: %w", err)
	}
	if err := in.Validate(); err != nil {
		return nil, err
	}
	return &in, nil
}

// Validate checks every field on its own and together. It does not know which
// volumes, kernels or how much memory a card has.
func (in *Instance) Validate() error {
	if err := CheckName("instance name", in.Name); err != nil {
		return err
	}
	fail := func(field, format string, args ...any) error {
		return fmt.Errorf("instance %s: %s: %s", in.Name, field, fmt.Sprintf(format, args...))
	}
	if in.VCPUs < 1 || in.VCPUs > MaxVCPUs {
		return fail("vcpus", "%d is not between 1 and %d", in.VCPUs, MaxVCPUs)
	}
	if in.Memory < MinMemory || in.Memory > MaxMemory || in.Memory%MemoryAlign != 0 {
		return fail("memory", "%s is not a multiple of %s between %s and %s", in.Memory, MemoryAlign, MinMemory, MaxMemory)
	}
	switch in.Restart {
	case "", RestartNever, RestartOnFailure, RestartAlways:
	default:
		return fail("restart", "%q is not never, on-failure or always", in.Restart)
	}
	if err := in.Boot.validate(len(in.Volumes)); err != nil {
		return fail("boot", "%v", err)
	}
	if len(in.Volumes) > MaxVolumes {
		return fail("volumes", "%d are more than %d", len(in.Volumes), MaxVolumes)
	}
	seen := map[string]bool{}
	for i := range in.Volumes {
		v := &in.Volumes[i]
		if err := v.Validate(); err != nil {
			return fail(fmt.Sprintf("volumes[%d]", i), "%v", err)
		}
		if seen[v.Name] {
			return fail(fmt.Sprintf("volumes[%d]", i), "name %q is used twice", v.Name)
		}
		seen[v.Name] = true
		for j := range in.Volumes {
			if v.WritesBaseOf(&in.Volumes[j]) {
				return fail(fmt.Sprintf("volumes[%d]", i), "%q is the base of %q: want readOnly", v.Name, in.Volumes[j].Name)
			}
		}
	}
	return nil
}

func (b *Boot) validate(volumes int) error {
	if b.Kernel == "" {
		switch {
		case b.Initrd != "" || b.Cmdline != "":
			return fmt.Errorf("initrd and cmdline need a kernel")
		case b.Firmware != "" && b.Firmware != FirmwareBIOS && b.Firmware != FirmwareUEFI:
			return fmt.Errorf("firmware %q is not bios or uefi", b.Firmware)
		case volumes == 0:
			return fmt.Errorf("neither a kernel nor a volume to boot from")
		}
		return nil
	}
	if b.Firmware != "" {
		return fmt.Errorf("firmware and kernel exclude each other")
	}
	if err := CheckName("kernel", b.Kernel); err != nil {
		return err
	}
	if b.Initrd != "" {
		if err := CheckName("initrd", b.Initrd); err != nil {
			return err
		}
	}
	if len(b.Cmdline) > MaxCmdline || !printable(b.Cmdline) {
		return fmt.Errorf("cmdline: want at most %d printable ASCII characters", MaxCmdline)
	}
	return nil
}

// Validate checks one volume.
func (v *Volume) Validate() error {
	if err := CheckName("name", v.Name); err != nil {
		return err
	}
	if err := v.Kind.Check(); err != nil {
		return err
	}
	if v.Kind == VolumeOverlay {
		if err := CheckName("base", v.Base); err != nil {
			return err
		}
	} else if v.Base != "" {
		return fmt.Errorf("base: only an overlay has one")
	}
	if v.Kind == VolumeMemory && v.Size == 0 {
		return fmt.Errorf("size: a memory volume needs one")
	}
	if v.Size%SectorSize != 0 || v.Size > MaxVolumeBytes {
		return fmt.Errorf("size %s is not a multiple of %d up to %s", v.Size, SectorSize, MaxVolumeBytes)
	}
	if len(v.Serial) > MaxSerial || !printable(v.Serial) {
		return fmt.Errorf("serial %q: want at most %d printable ASCII characters", v.Serial, MaxSerial)
	}
	if v.Queues < 0 || v.Queues > MaxQueues {
		return fmt.Errorf("queues: %d is not between 1 and %d", v.Queues, MaxQueues)
	}
	if v.Limits != nil {
		return v.Limits.Validate()
	}
	return nil
}

// SerialOrName is what VIRTIO_BLK_T_GET_ID answers: the serial, or the first
// 20 characters of the name.
func (v *Volume) SerialOrName() string {
	if v.Serial != "" {
		return v.Serial
	}
	return v.Name[:min(len(v.Name), MaxSerial)]
}

// WritesBaseOf reports whether v changes what lies below the overlay o.
func (v *Volume) WritesBaseOf(o *Volume) bool {
	return v.Kind == VolumeFile && !v.ReadOnly && o.Kind == VolumeOverlay && o.Base == v.Name
}

// QueueCount is Queues with its default.
func (v *Volume) QueueCount() int { return max(v.Queues, 1) }

func printable(s string) bool {
	for i := range len(s) {
		if s[i] < 0x20 || s[i] > 0x7e {
			return false
		}
	}
	return true
}
