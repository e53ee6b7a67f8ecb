// SPDX-License-Identifier: Apache-2.0

// Command guest is the init of a card VM for tests: it converts the NVDIMM to
// device-DAX, opens the bus's virtio-serial port, orders one VMM and serves its
// disk from /disk. Each fact is one line on the console.
package main
