// SPDX-License-Identifier: Apache-2.0

// Command guest is pid 1 of the Linux guest in tests/block: it exercises
// /dev/vda as the kernel's command line says, reports on the serial console,
// and powers the machine off.
//
//	davit.mode=verify   a number of operations (davit.ops for each CPU)
//	davit.mode=churn    operations until the host says "stop" on the console
//
// Lines it prints: "fact NAME VALUE", "ready", "ops N", "digest HEX", and last
// "done" or "failed: REASON".
//
// It does not know what serves the disk.
package main
