// SPDX-License-Identifier: Apache-2.0

// Package bus tests the bus between a card and a host with the real programs of
// the host: davit-hostd and QEMU. The card is a small one of the test's own,
// which gives orders and serves disks; guests are a boot sector that writes and
// verifies for ever, and a stock kernel.
//
// Whatever is killed, the guest must see no error and no wrong data, and the
// host must tell the truth about its VMMs.
package bus
