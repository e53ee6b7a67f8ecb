// SPDX-License-Identifier: Apache-2.0

// Command guest is pid 1 of the Linux guest in tests/block: it exercises
// /dev/vda as the kernel's command line says, reports on the serial console,
// and powers the machine off.
//
//	davit.mode=verify   a number of operations (davit.ops for each CPU)
//	davit.mode=churn    operations until the host says "stop" on the console
//	davit.mode=hold     reads until then, whose results are checked in the end
//
// Lines it prints: "fact NAME VALUE", "ready", "ops N", "size N" when the host says
// "size" in the modes that it stops, "digest HEX", and last "done" or "failed: REASON".
//
// It does not know what serves the disk.
package main
