// SPDX-License-Identifier: Apache-2.0

package vhostuser

// Bits of the device status (Virtio 1.2, 2.1).
const (
	statusNeedsReset = 1 << 6
	// statusDriver are those that a driver sets: ACKNOWLEDGE, DRIVER, DRIVER_OK,
	// FEATURES_OK, FAILED.
	statusDriver = 1 | 2 | 4 | 8 | 128
)

// setStatus stores the device status. It decides about nothing but a reset: when
// rings run follows from their own messages.
func (s *session) setStatus(m *Message) error {
	v, err := m.u64()
	if err != nil {
		return err
	}
	// Front ends add to what they got, which may have NEEDS_RESET in it.
	if v&^(statusDriver|statusNeedsReset) != 0 {
		return m.errorf("unknown bits in status %#x", v)
	}
	if v == 0 {
		s.reset()
	}
	s.driverStatus = v & statusDriver
	return nil
}

// deviceStatus is the device status. A device that was stopped says so.
func (s *session) deviceStatus() uint64 {
	if s.stoppedFor() != nil {
		return s.driverStatus | statusNeedsReset
	}
	return s.driverStatus
}

func (s *session) resetDevice(m *Message) error {
	if err := m.checkEmpty(); err != nil {
		return err
	}
	s.reset()
	return nil
}

// reset brings the device back to its initial state: rings are stopped, disabled
// and not set up, features are forgotten. What belongs to the connection stays:
// memory, calls, protocol features, the back-end channel.
func (s *session) reset() {
	s.haltAll()
	for i := range s.rings {
		s.rings[i].reset()
	}
	s.features, s.driverStatus = 0, 0
	s.recover()
	s.settle()
	s.publish()
}
