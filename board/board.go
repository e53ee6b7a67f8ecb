// SPDX-License-Identifier: Apache-2.0

package board

import "io/fs"

// Bus says how the card's end of the bus is reached.
type Bus struct {
	// Port is the name of the virtio-serial port (as in
	// /sys/class/virtio-ports/*/name). Empty: the agent listens on a unix
	// socket in its run folder instead.
	Port string
	// NVDIMM: the host's memory pool is a persistent-memory region of the card,
	// mapped through device-DAX. Otherwise it is a file named on the command line.
	NVDIMM bool
}

// Board is one kind of card.
type Board struct {
	// Name is what configuration and commands call it.
	Name string
	// Arch is the GOARCH of its processors; empty: any.
	Arch string
	// Modules are the kernel modules to load, by name, in order; their
	// dependencies are found when the image is built.
	Modules []string
	// Consoles are the devices to write boot lines to when the kernel has no
	// active console (no console= argument), most likely first.
	Consoles []string
	// TPM is the resource-managed TPM device; empty: none unless configured.
	TPM string
	// StatePartition is the GPT name of the partition that holds the card's
	// state; empty: a folder named on the command line.
	StatePartition string
	// Bus is how card and host reach each other.
	Bus Bus
	// Cmdline is what the board's kernel needs on its command line.
	Cmdline string
	// Matches says whether sysfs (the tree under /sys) is that of this board.
	Matches func(sysfs fs.FS) bool
}
