// SPDX-License-Identifier: Apache-2.0

package vhostuser

import (
	"errors"
	"io"

	"github.com/davit-dpu/davit/firmware/virtio/guestmem"
	"github.com/davit-dpu/davit/firmware/virtio/virtq"
)

// NoFD stands for a file descriptor that did not come with a message.
const NoFD = -1

// ErrNoFD says that a local message lacks its file descriptor.
var ErrNoFD = errors.New("file descriptor is missing")

// Mapper makes guest memory accessible.
type Mapper interface {
	// Map makes a region of one entry of a memory table, of which nothing has been
	// checked. fd is NoFD on a bus; the caller closes it afterwards.
	Map(r MemRegion, fd int) (guestmem.Region, error)
}

// Kick is a virtq.Kick with an owner.
type Kick interface {
	virtq.Kick
	io.Closer
}

// Call is a virtq.Call with an owner.
type Call interface {
	virtq.Call
	io.Closer
}

// Notifiers opens the notifications of a ring. The fd, or NoFD, is the one
// that came with SET_VRING_KICK or SET_VRING_CALL; it belongs to the callee, also
// on error. queue is in range.
type Notifiers interface {
	OpenKick(queue, fd int) (Kick, error)
	OpenCall(queue, fd int) (Call, error)
}

// FDMapper maps the file descriptors of a local front end.
type FDMapper struct{}

// Map implements Mapper.
func (FDMapper) Map(r MemRegion, fd int) (guestmem.Region, error) {
	if fd == NoFD {
		return guestmem.Region{}, ErrNoFD
	}
	return guestmem.MapFD(fd, r.GuestPhys, r.UserAddr, r.Offset, r.Size)
}
