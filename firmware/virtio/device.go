// SPDX-License-Identifier: Apache-2.0

package virtio

import (
	"context"
	"errors"

	"github.com/davit-dpu/davit/firmware/virtio/virtq"
)

// MaxConfigSize is the largest device configuration space in bytes that
// vhost-user carries (VHOST_USER_MAX_CONFIG_SIZE). Bytes that a device does not
// define read as zero.
const MaxConfigSize = 256

// ErrConfig says that an access to the configuration space is outside of it,
// or writes a field that the driver must not write.
var ErrConfig = errors.New("configuration space access refused")

// Info is what a device is: constant for the life of a Device.
type Info struct {
	// Features are the device-type bits offered (0 to 23, 50 and up). The
	// ring and transport bits are added by the transport, which implements them.
	Features Features
	// Queues is the number of virtqueues, 1 to 256.
	Queues int
}

// Queue is one started virtqueue, as given to a device.
type Queue struct {
	*virtq.Queue
	// Index is the virtqueue's number, 0 to Info.Queues-1.
	Index int
	// Features are the bits that the driver accepted, ring bits included.
	Features Features
}

// Device is a virtio device as a transport sees it. All methods may be called
// concurrently. A Device outlives the sessions that serve it.
type Device interface {
	// Info describes the device.
	Info() Info
	// ReadConfig fills p with the configuration space from offset off
	// (Virtio 1.2, 2.5). It fails with ErrConfig when off+len(p) is beyond
	// MaxConfigSize.
	ReadConfig(p []byte, off uint32) error
	// WriteConfig stores p at offset off. It fails with ErrConfig for
	// anything but a field that the driver may write, and then changes nothing.
	WriteConfig(p []byte, off uint32) error
	// Serve processes one queue until ctx is done, then completes what it
	// has taken, or leaves it to whoever serves the queue next, and returns
	// nil: when Serve returns, no access to guest memory on behalf of this
	// queue is under way. An error, normally a
	// *virtq.ProtocolError, means that the driver broke the protocol: the
	// transport stops the whole device.
	Serve(ctx context.Context, q Queue) error
}
