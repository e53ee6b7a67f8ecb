// SPDX-License-Identifier: Apache-2.0

package spec

import (
	"encoding/hex"
	"fmt"
)

// PoolReserved is the head of the host's memory pool that no instance may use:
// the card's kernel keeps the device-DAX label and info block there.
const PoolReserved = 2 * MiB

// MaxBlob bounds one boot file handed to a host.
const MaxBlob = 256 * MiB

// Blob is a boot file that the card has placed in the instance's own memory in
// the pool, for hostd to copy out before it starts the VMM.
type Blob struct {
	Offset Bytes  `json:"offset"` // from the start of the pool
	Length Bytes  `json:"length"`
	SHA256 []byte `json:"sha256"` // 32 bytes
}

// VMMDisk is one vhost-user-blk front end.
type VMMDisk struct {
	Device string `json:"device"` // the volume's name; unique within the instance
	Queues int    `json:"queues"`
}

// VMMOrder is what the card tells its host to run: the host's part of an
// instance and nothing else. Disks appear in boot order.
type VMMOrder struct {
	Instance   string    `json:"instance"`
	Generation string    `json:"generation"` // 32 hexadecimal digits, new for each start
	VCPUs      int       `json:"vcpus"`
	Memory     Bytes     `json:"memory"`
	PoolOffset Bytes     `json:"poolOffset"` // where the instance's RAM begins in the pool
	Firmware   Firmware  `json:"firmware,omitempty"`
	Kernel     *Blob     `json:"kernel,omitempty"`
	Initrd     *Blob     `json:"initrd,omitempty"`
	Cmdline    string    `json:"cmdline,omitempty"`
	Disks      []VMMDisk `json:"disks,omitempty"`
}

// Validate checks an order against a pool of the given size. Both ends call
// it: the card before it sends, the host before it acts.
func (o *VMMOrder) Validate(pool Bytes) error {
	if err := CheckName("instance", o.Instance); err != nil {
		return err
	}
	if b, err := hex.DecodeString(o.Generation); err != nil || len(b) != 16 {
		return fmt.Errorf("generation %q: want 32 hexadecimal digits", o.Generation)
	}
	if o.VCPUs < 1 || o.VCPUs > MaxVCPUs {
		return fmt.Errorf("vcpus: %d is not between 1 and %d", o.VCPUs, MaxVCPUs)
	}
	if o.Memory < MinMemory || o.Memory > MaxMemory || o.Memory%MemoryAlign != 0 {
		return fmt.Errorf("memory: %s is not a multiple of %s between %s and %s", o.Memory, MemoryAlign, MinMemory, MaxMemory)
	}
	if o.PoolOffset%MemoryAlign != 0 || o.PoolOffset < PoolReserved || o.PoolOffset > pool || o.Memory > pool-o.PoolOffset {
		return fmt.Errorf("memory [%s, +%s) is not inside the pool of %s behind its first %s", o.PoolOffset, o.Memory, pool, PoolReserved)
	}
	if err := o.validateBoot(); err != nil {
		return err
	}
	if len(o.Disks) > MaxVolumes {
		return fmt.Errorf("disks: %d are more than %d", len(o.Disks), MaxVolumes)
	}
	seen := map[string]bool{}
	for _, d := range o.Disks {
		if err := CheckName("disk", d.Device); err != nil {
			return err
		}
		if d.Queues < 1 || d.Queues > MaxQueues || seen[d.Device] {
			return fmt.Errorf("disk %s: %d queues are not between 1 and %d, or the name is used twice", d.Device, d.Queues, MaxQueues)
		}
		seen[d.Device] = true
	}
	return nil
}

func (o *VMMOrder) validateBoot() error {
	if o.Kernel == nil {
		if o.Initrd != nil || o.Cmdline != "" {
			return fmt.Errorf("initrd and cmdline need a kernel")
		}
		if o.Firmware != FirmwareBIOS && o.Firmware != FirmwareUEFI {
			return fmt.Errorf("firmware %q is not bios or uefi", o.Firmware)
		}
		return nil
	}
	if len(o.Cmdline) > MaxCmdline || !printable(o.Cmdline) {
		return fmt.Errorf("cmdline: want at most %d printable ASCII characters", MaxCmdline)
	}
	for _, b := range []*Blob{o.Kernel, o.Initrd} {
		if b == nil {
			continue
		}
		end := o.PoolOffset + o.Memory
		if b.Length == 0 || b.Length > MaxBlob || len(b.SHA256) != 32 || b.Offset < o.PoolOffset || b.Offset > end || b.Length > end-b.Offset {
			return fmt.Errorf("boot file [%s, +%s) is not inside the instance's memory", b.Offset, b.Length)
		}
	}
	return nil
}

// VMMState is what the host says of one VMM. The card believes it no further
// than for reporting: a host can lie about its own processes.
type VMMState string

// VMM states.
const (
	VMMRunning VMMState = "running"
	VMMExited  VMMState = "exited"
)

// VMMStatus is the host's report on one VMM.
type VMMStatus struct {
	Instance   string   `json:"instance"`
	Generation string   `json:"generation"`
	State      VMMState `json:"state"`
	Reason     string   `json:"reason,omitempty"`  // for exited: how, as far as the host knows; at most 256 printable characters
	Clean      bool     `json:"clean,omitempty"`   // for exited: the guest shut itself down (QMP SHUTDOWN, reason guest-shutdown)
	Adopted    bool     `json:"adopted,omitempty"` // found running by a hostd that did not start it
}
