// SPDX-License-Identifier: Apache-2.0

// Init is pid 1 of the card. All that it does is in initramfs/boot.
package main
