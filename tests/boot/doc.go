// SPDX-License-Identifier: Apache-2.0

// Package boot tests the card's init as the real pid 1 of a real kernel on
// QEMU, with an agent in davitd's place that crashes, hangs or asks for what
// the kernel's command line says. There is no UEFI and no TPM here: that is
// part of what is tested, and tests/server has both.
package boot
