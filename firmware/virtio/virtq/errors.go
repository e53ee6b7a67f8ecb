// SPDX-License-Identifier: Apache-2.0

package virtq

import (
	"errors"
	"fmt"
)

// ErrStopped says that the queue was told to stop. It is the ordinary end.
var ErrStopped = errors.New("queue is stopped")

// Violation is what a driver did wrong.
type Violation string

// The violations that end a queue.
const (
	ViolationLayout   Violation = "ring layout"     // size, address or alignment of the ring
	ViolationAvailIdx Violation = "avail index"     // more entries available than the ring has
	ViolationHead     Violation = "head index"      // chain head outside the descriptor table
	ViolationNext     Violation = "next index"      // next descriptor outside its table
	ViolationLoop     Violation = "chain length"    // loop, or more descriptors than allowed
	ViolationOrder    Violation = "buffer order"    // device-readable after device-writable
	ViolationIndirect Violation = "indirect table"  // not negotiated, nested, chained or of bad size
	ViolationAddress  Violation = "buffer address"  // buffer outside of guest memory
	ViolationLength   Violation = "buffer length"   // empty buffer, or a chain of 4 GiB and more
	ViolationRequest  Violation = "request framing" // buffers too short for the device's request header
	ViolationMemory   Violation = "guest memory"    // memory vanished while in use
	ViolationLog      Violation = "dirty log"       // bitmap vanished, or is too small
)

// ProtocolError says how a driver broke the virtio protocol.
type ProtocolError struct {
	// Violation is the rule that was broken.
	Violation Violation
	// Detail holds the offending numbers.
	Detail string
	// Err is the cause, or nil.
	Err error
}

// Error names the rule and how it was broken.
func (e *ProtocolError) Error() string {
	s := "virtqueue: bad " + string(e.Violation) + ": " + e.Detail
	if e.Err != nil {
		s += ": " + e.Err.Error()
	}
	return s
}

// Unwrap returns the cause.
func (e *ProtocolError) Unwrap() error { return e.Err }

func violation(v Violation, format string, args ...any) *ProtocolError {
	return &ProtocolError{Violation: v, Detail: fmt.Sprintf(format, args...)}
}
