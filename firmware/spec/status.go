// SPDX-License-Identifier: Apache-2.0

package spec

import "time"

// Version is that of this source tree: programs and images say it.
const Version = "0.1.0"

// Phase is where something is in its life.
type Phase string

// Phases, shared by all that is reported.
const (
	PhasePending  Phase = "pending"  // wanted; waits for something that Reason names
	PhaseStarting Phase = "starting" // being brought up
	PhaseReady    Phase = "ready"    // a functional probe succeeded
	PhaseRunning  Phase = "running"  // an instance whose VMM runs and whose devices are attached
	PhaseStopping Phase = "stopping" // being taken down
	PhaseStopped  Phase = "stopped"  // down, as wanted
	PhaseFailed   Phase = "failed"   // down, not as wanted
	PhaseUnknown  Phase = "unknown"  // cannot be seen at present; Reason says why and what was last seen
)

// Condition is a state with its reason and the time it was entered. Nothing is
// reported without all three.
type Condition struct {
	Phase  Phase     `json:"phase"`
	Reason string    `json:"reason"`
	Since  time.Time `json:"since"`
}

// QueueStats counts what one virtqueue carried since its device was attached.
type QueueStats struct {
	Reads      uint64 `json:"reads"`
	Writes     uint64 `json:"writes"`
	ReadBytes  uint64 `json:"readBytes"`
	WriteBytes uint64 `json:"writeBytes"`
	Flushes    uint64 `json:"flushes"`
	Discards   uint64 `json:"discards"` // discard and write-zeroes requests
	Errors     uint64 `json:"errors"`
	Waited     uint64 `json:"waited,omitempty"` // requests that the volume's limits held back
}

// DeviceStatus is one virtio device of an instance. Its phases:
//
//	pending    no front end is connected
//	starting   a front end has opened it and no queue runs: no driver in the guest yet
//	ready      at least one queue runs
//	failed     guest or front end broke its protocol, or none can be accepted
//	stopping   being removed: what is in flight is completed
//	stopped    removed
type DeviceStatus struct {
	Name     string `json:"name"` // the volume's
	Kind     string `json:"kind"` // "virtio-blk"
	Capacity Bytes  `json:"capacity"`
	Condition
	Limits *Limits      `json:"limits,omitempty"` // in force
	Queues []QueueStats `json:"queues,omitempty"`
}

// VolumeStatus is what the card reports of one volume.
type VolumeStatus struct {
	Name      string      `json:"name"`
	Kind      VolumeKind  `json:"kind"`
	Base      string      `json:"base,omitempty"` // the file volume that an overlay was made over; empty: it is gone, or was changed
	Size      Bytes       `json:"size"`           // as a guest sees it; 0: an overlay whose store cannot be read
	Allocated Bytes       `json:"allocated"`      // blocks in use: less than Size for a sparse file
	Uses      []VolumeUse `json:"uses,omitempty"` // by the instances that name it
}

// VolumeUse is an instance's use of a volume.
type VolumeUse struct {
	Instance string        `json:"instance"`
	ReadOnly bool          `json:"readOnly,omitempty"`
	Limits   *Limits       `json:"limits,omitempty"` // as wanted
	Device   *DeviceStatus `json:"device,omitempty"` // nil: the instance is down
}

// InstanceStatus is what the card reports of one instance.
type InstanceStatus struct {
	Spec       Instance       `json:"spec"`
	Desired    Phase          `json:"desired"` // running or stopped
	Condition                 // of the instance
	Generation string         `json:"generation,omitempty"`
	PoolOffset Bytes          `json:"poolOffset,omitempty"`
	Restarts   int            `json:"restarts"`
	Devices    []DeviceStatus `json:"devices,omitempty"`
}

// Check is one thing that was, or was not, verified. What is not checked yet
// says so: Result "not-checked" never counts as passed.
type Check struct {
	Name   string `json:"name"`
	Result string `json:"result"` // passed, failed or not-checked
	Detail string `json:"detail,omitempty"`
}

// Component is a part of the card with its condition.
type Component struct {
	Name string `json:"name"`
	// Memory is the resident set of the component's process, its program's
	// pages included; 0 for one that has no process of its own, or is not seen.
	Memory Bytes `json:"memory,omitempty"`
	Condition
}

// Lease is the management network as DHCP gave it.
type Lease struct {
	Interface string    `json:"interface"`
	Address   string    `json:"address,omitempty"` // CIDR
	Router    string    `json:"router,omitempty"`
	Server    string    `json:"server,omitempty"`
	Obtained  time.Time `json:"obtained,omitzero"`
	Expires   time.Time `json:"expires,omitzero"`
	Condition
}

// CardStatus is the answer to the status operation.
type CardStatus struct {
	Name       string      `json:"name"`
	CardID     string      `json:"cardID"` // hexadecimal
	Board      string      `json:"board"`
	Lifecycle  Lifecycle   `json:"lifecycle"`
	Version    string      `json:"version"`
	Booted     time.Time   `json:"booted"`
	Time       time.Time   `json:"time"`
	Condition              // of the card as a whole
	Components []Component `json:"components"`
	Network    *Lease      `json:"network,omitempty"`
	Checks     []Check     `json:"checks"`
	Instances  int         `json:"instances"`
	Alerts     []string    `json:"alerts,omitempty"`
}
