// SPDX-License-Identifier: Apache-2.0

package layers

// Module is the path that our own imports begin with.
const Module = "github.com/davit-dpu/davit"

// Family is a folder with all below it: its packages may import each other and
// families on lower floors, never a neighbour on their own floor.
type Family struct {
	Folder string
	Floor  int
}

// Families lists the rooms of the house, floor by floor.
func Families() []Family {
	floors := [][]string{
		0: { // words: formats and facts; no import of ours outside words
			"firmware/spec", "firmware/state", "firmware/eventlog", "firmware/audit",
			"secureboot", "board",
		},
		1: { // mechanisms: one kernel interface or protocol each; no policy
			"firmware/tpm", "firmware/evidence", "firmware/mailbox", "firmware/bus", "firmware/virtio", "firmware/disk",
			"firmware/qmp", "firmware/supervise", "firmware/control", "initramfs/kernel", "tools/packages",
		},
		2: { // services: know the goal; never import each other
			"firmware/measure", "firmware/attest", "firmware/instance", "firmware/dhcp",
		},
		3: { // assembly: the only places that introduce packages to each other
			"firmware/agent", "firmware/vcard", "initramfs/boot", "initramfs/image",
			"tools/host", "tools/rig",
		},
		4: { // commands: flags, then one call
			"firmware/cmd/davitd", "firmware/cmd/vcard", "initramfs/init", "tools/davit", "tools/hostd",
		},
		5: {"tests"}, // sees all, seen by none
	}
	var out []Family
	for floor, folders := range floors {
		for _, f := range folders {
			out = append(out, Family{f, floor})
		}
	}
	return out
}

// Allowances are imports within a floor that the house permits, each with its
// reason.
func Allowances() map[[2]string]string {
	return map[[2]string]string{
		{"firmware/eventlog", "tools/packages"}: "tests get tpm2-tools from the user's package cache",
		{"firmware/tpm", "tools/packages"}:      "tests get swtpm from the user's package cache",
		{"firmware/virtio", "firmware/disk"}:    "a block device serves a volume",
		{"tools/rig", "initramfs/image"}:        "the rig flashes its card with what the image builder made",
	}
}

// Guests lists the modules of others that the house imports, each with what it
// is here for. Everything else must be ours or the standard library's.
func Guests() map[string]string {
	return map[string]string{
		"github.com/diskfs/go-diskfs":       "GPT of the card's storage",
		"github.com/elastic/go-seccomp-bpf": "the vcard's system call filter",
		"github.com/fxamacker/cbor/v2":      "deterministic CBOR, decoded strictly",
		"github.com/goccy/go-yaml":          "strict YAML whose errors name the line",
		"github.com/google/go-tpm":          "TPM 2.0 commands",
		"github.com/insomniacslk/dhcp":      "DHCPv4 client and, in tests, server",
		"github.com/klauspost/compress":     "zstd",
		"github.com/spf13/cobra":            "the command line",
		"github.com/spf13/pflag":            "flags of the card's programs",
		"github.com/u-root/mkuimage":        "the rescue shell's initramfs",
		"github.com/u-root/u-root":          "the rescue shell's commands",
		"github.com/u-root/uio":             "silences u-root's logger while the shell is built",
		"github.com/ulikunitz/xz":           "xz-compressed kernel modules",
		"github.com/veraison/go-cose":       "COSE signatures",
		"github.com/vishvananda/netlink":    "links, addresses and routes",
		"golang.org/x/crypto":               "cryptobyte: the DER of PKCS #7 and certificates",
		"github.com/u-root/gobusybox":       "the rescue shell's commands in one binary",
		"mvdan.cc/sh/v3":                    "the rescue shell",
		"golang.org/x/sync":                 "groups of goroutines with an error",
		"golang.org/x/sys":                  "system calls that the standard library lacks",
		"golang.org/x/term":                 "raw terminals for consoles",
	}
}

// UnsafeRooms are the only families that may import unsafe: guest memory, and
// windows into it, cannot be reached without it.
func UnsafeRooms() []string { return []string{"firmware/virtio", "firmware/bus"} }
