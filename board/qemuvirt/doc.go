// SPDX-License-Identifier: Apache-2.0

// Package qemuvirt is the emulated card: QEMU's aarch64 "virt" machine with
// UEFI. It knows the machine as the guest sees it, not how QEMU is started.
package qemuvirt
