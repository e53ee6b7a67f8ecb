// SPDX-License-Identifier: Apache-2.0

package main

import (
	"fmt"
	"os"

	"github.com/davit-dpu/davit/initramfs/boot"
)

func main() {
	if err := boot.Run(boot.Default()); err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(2)
	}
}
