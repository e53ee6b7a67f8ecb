// SPDX-License-Identifier: Apache-2.0

package qemuvirt

import (
	"io/fs"
	"strings"

	"github.com/davit-dpu/davit/board"
)

// BusPort is the name of the virtio-serial port that ends in hostd.
const BusPort = "org.davit.bus.0"

// StatePartition is the GPT partition name of the card's state.
const StatePartition = "davit-data"

// Board is QEMU's aarch64 "virt" machine as an emulated card: TPM on the
// tpm-tis-device bus, the host's memory as an NVDIMM, the bus on virtio-serial.
func Board() board.Board {
	return board.Board{
		Name: "qemuvirt",
		Arch: "arm64",
		Modules: []string{
			// Entropy, before the TPM: the kernel draws from the first source it gets,
			// and each draw from a TPM is a session with elliptic curves in software.
			"virtio_rng",
			"tpm_tis",                                                // MMIO TPM
			"virtio_net",                                             // management network
			"libnvdimm", "nfit", "nd_pmem", "device_dax", "dax_pmem", // host memory
		},
		Consoles:       []string{"ttyAMA0", "hvc0"},
		TPM:            "/dev/tpmrm0",
		StatePartition: StatePartition,
		Bus:            board.Bus{Port: BusPort, NVDIMM: true},
		Cmdline:        "console=ttyAMA0 panic=5",
		Matches: func(sysfs fs.FS) bool {
			vendor, err := fs.ReadFile(sysfs, "class/dmi/id/sys_vendor")
			if err != nil || strings.TrimSpace(string(vendor)) != "QEMU" {
				return false
			}
			product, err := fs.ReadFile(sysfs, "class/dmi/id/product_name")
			return err == nil && strings.Contains(string(product), "Virtual Machine")
		},
	}
}
