// SPDX-License-Identifier: Apache-2.0

// Package nbd drives the NBD client with the real peers, qemu-nbd and nbdkit,
// which are killed and come back in the middle of verified I/O. Both come from package
// tools/packages.
package nbd
