// SPDX-License-Identifier: Apache-2.0

package control

import (
	"time"

	"github.com/davit-dpu/davit/firmware/spec"
)

// Versions of the protocol this package speaks.
//
// Rules for changing it:
//  1. A change of any struct here that travels, or of what a field means, adds
//     one to VersionCurrent. Structs of firmware/spec travel too.
//  2. Both ends use the lower of the two VersionCurrent; if that is below
//     either VersionMin, Hello fails with ErrVersion.
//  3. Decoding is strict, so a field newer than the agreed version is left at
//     its zero value (and has omitempty) by the sender.
//  4. A field or operation is never given another meaning: add a new one.
//  5. Hello and HelloReply never lose or rename a field.
//  6. VersionMin rises only when no released davitd or vcard speaks the old one.
const (
	VersionMin     = 2
	VersionCurrent = 2
)

// Limits of the protocol. Each side checks what it receives against them.
const (
	MaxPacket  = 128 * 1024 // one frame
	MaxData    = 16 * 1024  // stream bytes in one frame
	MaxFiles   = 4          // file descriptors with one request
	MaxPending = 256        // unanswered requests of one connection
	MaxText    = 512        // an error's or reason's text
	MaxDevices = 512        // devices of one vcard
	MaxVMMs    = 256        // VMMs one vcard remembers
	MaxDoors   = 64         // doors open at a time
	MaxChecks  = 32         // sandbox checks
	pageSize   = 32         // devices or VMMs in one page of Status
)

// Request is a message from davitd that is answered by exactly one Reply.
type Request interface {
	message
	op() string
	files() int // how many file descriptors come with it
}

// Reply is vcard's answer to a Request.
type Reply interface{ message }

// message is anything with a body on the wire. check refuses what is out of
// bounds; both ends call it on what they send and on what they receive.
type message interface{ check() error }

// Hello is the first request.
type Hello struct {
	Min     int    `json:"min"`
	Current int    `json:"current"`
	Build   string `json:"build"` // version text of davitd, at most 128 characters
}

// HelloReply is what vcard says of itself.
type HelloReply struct {
	Version int          `json:"version"` // agreed
	Build   string       `json:"build"`
	Started time.Time    `json:"started"`
	Sandbox []spec.Check `json:"sandbox,omitempty"` // how it is confined
}

// AttachBus hands vcard its host: the byte stream of the bus and the DMA
// window. Pool offset P is byte P - WindowBase of the window, which is mapped
// from the second file at FileOffset. It is accepted once in a vcard's life;
// ErrExists afterwards, without effect.
//
//	             WindowBase          FileOffset
//	/dev/dax0.0  spec.PoolReserved   0              (the kernel's label hides the pool's head)
//	pool file    spec.PoolReserved   spec.PoolReserved
//
// Files: the stream (a character device or connected unix socket; with Listen
// a listening unix stream socket on which hostd connects), the window.
type AttachBus struct {
	Listen     bool       `json:"listen,omitempty"`
	WindowBase spec.Bytes `json:"windowBase"`
	WindowSize spec.Bytes `json:"windowSize"` // multiple of 2 MiB
	FileOffset spec.Bytes `json:"fileOffset"`
}

// AddDevice makes a volume available to one instance as virtio-blk.
//
// MemoryOffset and MemorySize are the instance's RAM in the pool: the only
// memory its front ends may name. All devices of an instance give the same
// range and no two instances' ranges overlap. With Listen the device has no
// bus: an unmodified VMM connects to a listening unix socket and passes its
// memory as file descriptors, and the range is 0, 0. With Base the volume is an
// overlay's store, made over a base of which this is the name of the content
// (disk.BaseID).
//
// Files: the volume (a regular file or block device, opened for writing unless
// ReadOnly); with Base the base, opened for reading; with Listen the listening
// socket.
type AddDevice struct {
	Instance     string       `json:"instance"`
	Name         string       `json:"name"` // the volume's
	Serial       string       `json:"serial,omitempty"`
	Queues       int          `json:"queues"` // 1..spec.MaxQueues
	ReadOnly     bool         `json:"readOnly,omitempty"`
	Base         []byte       `json:"base,omitempty"` // 32 bytes; none: the volume is no overlay
	Listen       bool         `json:"listen,omitempty"`
	MemoryOffset spec.Bytes   `json:"memoryOffset"`
	MemorySize   spec.Bytes   `json:"memorySize"`
	Generation   string       `json:"generation,omitempty"` // the only VMM that may use it; empty: as set by StartVMM
	Limits       *spec.Limits `json:"limits,omitempty"`     // how fast it works; nil: no limits
}

// LimitDevice changes how fast a device works, at once. Nil: as fast as it can.
type LimitDevice struct {
	Instance string       `json:"instance"`
	Name     string       `json:"name"`
	Limits   *spec.Limits `json:"limits,omitempty"`
}

// RemoveDevice drains a device, ends its session and gives up its volume. The
// reply comes when nothing of it is in flight and the volume is flushed.
type RemoveDevice struct {
	Instance string `json:"instance"`
	Name     string `json:"name"`
}

// StartVMM zeroes the instance's RAM, places the boot files at its top, and
// gives the order to the host. Order.Kernel and Order.Initrd are nil or empty
// Blobs: vcard fills them in from the files and the reply carries the result.
// Cancelling it stops the zeroing; once the order has left, Status tells.
//
// Files: the kernel if Kernel, the initrd if Initrd, in this order.
type StartVMM struct {
	Order  spec.VMMOrder `json:"order"`
	Kernel bool          `json:"kernel,omitempty"`
	Initrd bool          `json:"initrd,omitempty"`
}

// StartVMMReply is the order as the host accepted it.
type StartVMMReply struct {
	Order spec.VMMOrder `json:"order"`
}

// StopVMM asks a VMM's guest to power off (QMP system_powerdown), or, with
// Force, its host to kill it. The reply means that the request was passed on;
// the exit is seen as a VMMStatus.
type StopVMM struct {
	Instance   string `json:"instance"`
	Generation string `json:"generation"`
	Force      bool   `json:"force,omitempty"`
}

// ConsoleRead reads an instance's console output from a stream offset. It
// waits until there is some. Output older than vcard's ring is lost, which
// shows as a larger Offset in the reply.
type ConsoleRead struct {
	Instance string `json:"instance"`
	From     uint64 `json:"from"`
}

// ConsoleOutput is console output; the next read is From Offset + len(Data).
type ConsoleOutput struct {
	Offset uint64 `json:"offset"`
	Data   []byte `json:"data"`
}

// ConsoleWrite types on an instance's console.
type ConsoleWrite struct {
	Instance string `json:"instance"`
	Data     []byte `json:"data"`
}

// DoorRead reads from a door; it waits until there is something. An empty
// reply is the end of the stream.
type DoorRead struct {
	Door uint64 `json:"door"`
}

// DoorData is what was read.
type DoorData struct {
	Data []byte `json:"data"`
}

// DoorWrite writes to a door; the reply means that the bus took it.
type DoorWrite struct {
	Door uint64 `json:"door"`
	Data []byte `json:"data"`
}

// DoorClose closes a door from this side.
type DoorClose struct {
	Door uint64 `json:"door"`
}

// StatusRequest asks for one page of Status: everything behind the two keys in
// a snapshot. Snapshot 0 takes a new one, in place of the last.
type StatusRequest struct {
	Snapshot    uint64 `json:"snapshot,omitempty"`
	AfterDevice string `json:"afterDevice,omitempty"`
	AfterVMM    string `json:"afterVMM,omitempty"`
}

// StatusReply is one page of Status, sorted by Device.Key and VMMKey.
type StatusReply struct {
	Status
	Snapshot uint64 `json:"snapshot"` // for the request of the next page
	More     bool   `json:"more,omitempty"`
}

// Shutdown drains all devices, flushes all volumes and ends the process.
type Shutdown struct{}

// Done is the reply of requests that have nothing to say but that they worked.
type Done struct{}

// HostStatus is what vcard knows of its host.
type HostStatus struct {
	spec.Condition            // ready: a bus session exists; pending: none yet or it ended
	Attached       bool       `json:"attached"` // AttachBus was accepted
	Build          string     `json:"build,omitempty"`
	PoolSize       spec.Bytes `json:"poolSize"` // as the host says
	WindowBase     spec.Bytes `json:"windowBase"`
	WindowSize     spec.Bytes `json:"windowSize"`
	Sessions       uint64     `json:"sessions"` // bus sessions since the start
	Alerts         uint64     `json:"alerts"`   // protocol violations by the host or its guests
}

// Device is one device as vcard sees it.
type Device struct {
	Instance string `json:"instance"`
	spec.DeviceStatus
	ReadOnly     bool       `json:"readOnly,omitempty"`
	Listen       bool       `json:"listen,omitempty"`
	Generation   string     `json:"generation,omitempty"` // the VMM it serves or will serve
	MemoryOffset spec.Bytes `json:"memoryOffset"`
	MemorySize   spec.Bytes `json:"memorySize"`
}

// Key orders and identifies a device: instance, slash, name.
func (d *Device) Key() string { return d.Instance + "/" + d.Name }

// VMMKey orders and identifies a VMM: instance, slash, generation.
func VMMKey(v *spec.VMMStatus) string { return v.Instance + "/" + v.Generation }

// DoorStatus is one door of the host.
type DoorStatus struct {
	Door uint64 `json:"door"` // never used twice by one vcard
	Open bool   `json:"open"`
}

// Status is the truth as vcard sees it at one moment.
type Status struct {
	Host    HostStatus       `json:"host"`
	Devices []Device         `json:"devices,omitempty"`
	VMMs    []spec.VMMStatus `json:"vmms,omitempty"`  // running, and the last exits
	Doors   []uint64         `json:"doors,omitempty"` // open ones
}

// Event is a new state of one thing: exactly one field is set. A state that was
// followed by a newer one before it could be delivered is left out.
type Event struct {
	Host   *HostStatus     `json:"host,omitempty"`
	VMM    *spec.VMMStatus `json:"vmm,omitempty"`
	Device *Device         `json:"device,omitempty"` // Phase stopped with Reason "removed" is its last
	Door   *DoorStatus     `json:"door,omitempty"`
}
