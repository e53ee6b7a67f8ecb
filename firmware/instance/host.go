// SPDX-License-Identifier: Apache-2.0

package instance

import (
	"context"
	"errors"
	"os"
	"time"

	"github.com/davit-dpu/davit/firmware/disk"
	"github.com/davit-dpu/davit/firmware/spec"
)

// Device is one disk of an instance as the vcard is to serve it.
type Device struct {
	Instance     string
	Generation   string // the only VMM that may use it
	Volume       spec.Volume
	MemoryOffset spec.Bytes // the only part of the pool that its queues may touch
	MemorySize   spec.Bytes
}

// VolumeFiles are what a volume lies in.
type VolumeFiles struct {
	File   *os.File    // the volume's own; an overlay's store
	Base   *os.File    // what an overlay lies over, open for reading; nil for another volume
	BaseID disk.BaseID // of Base: names its content as long as this descriptor is open
}

// Close closes them all.
func (v VolumeFiles) Close() { closeAll(v.File, v.Base) }

// ErrHostLost says that the way to the host ended before its answer came: nobody
// knows whether it did what it was asked.
var ErrHostLost = errors.New("the host went away before it answered")

// Host is what an instance needs of the vcard that serves its host. Calls end
// when ctx does. Files are borrowed for the duration of the call.
type Host interface {
	// AddDevice offers a disk to the host. Adding what is there already is no error.
	AddDevice(ctx context.Context, d Device, files VolumeFiles) error
	// LimitDevice changes how fast a disk works, nil for as fast as it can. A missing
	// one is no error: it gets its limits when it is added.
	LimitDevice(ctx context.Context, instance, name string, limits *spec.Limits) error
	// RemoveDevice drains a disk and revokes its access. A missing one is no error.
	RemoveDevice(ctx context.Context, instance, name string) error
	// StartVMM scrubs the instance's memory, places the boot files in it and has
	// the host start the VMM. Kernel and initrd are nil without a kernel. After
	// ErrHostLost the VMM may run.
	StartVMM(ctx context.Context, order spec.VMMOrder, kernel, initrd *os.File) error
	// StopVMM asks the guest to power down, or with force has the VMM killed. It
	// returns when the request has been passed on.
	StopVMM(ctx context.Context, instance, generation string, force bool) error
}

// DeviceState is a device as the vcard reports it.
type DeviceState struct {
	Instance string
	spec.DeviceStatus
}

// Observation is all that can be seen of a host at one time.
type Observation struct {
	At      time.Time // when the question was asked: answers about later events are not in it
	Serving bool      // the vcard answered; otherwise nothing below is known
	Host    bool      // the host's daemon is connected; otherwise VMMs is what was last seen
	Reason  string    // why Serving or Host is false
	VMMs    []spec.VMMStatus
	Devices []DeviceState
}

// vmm finds the report on one generation of an instance.
func (o *Observation) vmm(instance, generation string) (spec.VMMStatus, bool) {
	for _, v := range o.VMMs {
		if v.Instance == instance && v.Generation == generation {
			return v, true
		}
	}
	return spec.VMMStatus{}, false
}

// devices returns the status of an instance's devices.
func (o *Observation) devices(instance string) []spec.DeviceStatus {
	var out []spec.DeviceStatus
	for _, d := range o.Devices {
		if d.Instance == instance {
			out = append(out, d.DeviceStatus)
		}
	}
	return out
}
