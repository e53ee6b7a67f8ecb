// SPDX-License-Identifier: Apache-2.0

package main

import (
	"fmt"
	"os"

	"golang.org/x/sys/unix"
)

func main() {
	if os.Getpid() != 1 {
		fmt.Fprintln(os.Stderr, "not pid 1: this would end the machine")
		os.Exit(2)
	}
	fmt.Println("davit-bench: init runs and has nothing to do")
	// tcdrain(3): the line would be lost with the machine. An error only loses it.
	_ = unix.IoctlSetInt(int(os.Stdout.Fd()), unix.TCSBRK, 1)
	err := unix.Reboot(unix.LINUX_REBOOT_CMD_POWER_OFF)
	fmt.Println("davit-bench: power-off:", err)
	select {} // pid 1 must not return
}
