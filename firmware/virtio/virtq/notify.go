// SPDX-License-Identifier: Apache-2.0

package virtq

// Kick is how a driver tells of new available buffers: an eventfd, a doorbell.
type Kick interface {
	// Wait blocks until there was a kick since the last Wait, or Interrupt was
	// called. It may return nil without either. An error is final.
	Wait() error
	// Interrupt makes the current, or else the next, Wait return. It may be
	// called at any time.
	Interrupt()
}

// Call is how a device tells of used buffers.
type Call interface {
	// Signal notifies the driver. It must not block.
	Signal()
}
