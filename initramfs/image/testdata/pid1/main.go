// SPDX-License-Identifier: Apache-2.0

// Command pid1 is the init of test images: one line, and power-off.
package main

import (
	"fmt"
	"os"
	"syscall"
)

func main() {
	release, err := os.ReadFile("/etc/os-release")
	fmt.Printf("pid %d: davit test image is up\n%s%v\n", os.Getpid(), release, err)
	if os.Getpid() == 1 {
		syscall.Sync()
		if err := syscall.Reboot(syscall.LINUX_REBOOT_CMD_POWER_OFF); err != nil {
			fmt.Println(err)
		}
	}
}
