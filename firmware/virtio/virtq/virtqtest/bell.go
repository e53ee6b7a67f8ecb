// SPDX-License-Identifier: Apache-2.0

package virtqtest

// Bell is a notification in either direction: a virtq.Kick whose driver calls
// Signal, or a virtq.Call whose driver calls Wait. It holds one notification.
type Bell chan struct{}

// NewBell makes a silent bell.
func NewBell() Bell { return make(Bell, 1) }

// Wait blocks until there was a Signal or Interrupt since the last Wait.
func (b Bell) Wait() error {
	<-b
	return nil
}

// Signal rings the bell and never blocks.
func (b Bell) Signal() {
	select {
	case b <- struct{}{}:
	default:
	}
}

// Interrupt is Signal: notifications may be spurious.
func (b Bell) Interrupt() { b.Signal() }

// Rang reports whether there was a Signal since the last Wait or Rang.
func (b Bell) Rang() bool {
	select {
	case <-b:
		return true
	default:
		return false
	}
}
