// SPDX-License-Identifier: Apache-2.0

package packages

import (
	"fmt"
	"regexp"
	"runtime"
	"slices"
)

// Need names one thing that the emulated server cannot do without.
type Need string

// The needs that don't depend on an architecture: programs for this machine.
const (
	QEMU      Need = "qemu"       // system emulators for aarch64 and x86_64, qemu-img
	SWTPM     Need = "swtpm"      // software TPM and its manufacturing tools
	E2fsprogs Need = "e2fsprogs"  // mke2fs and debugfs
	TPM2Tools Need = "tpm2-tools" // optional: a second opinion on event logs in tests
	NBDKit    Need = "nbdkit"     // optional: a server for the NBD client in tests
)

// ArchARM64 and ArchAMD64 are the architectures of cards and instances, in
// Go's and Debian's common spelling.
const (
	ArchARM64 = "arm64"
	ArchAMD64 = "amd64"
)

// KernelFor is the Linux kernel, with its modules, of a virtual machine of the
// given architecture.
func KernelFor(arch string) Need { return Need("kernel-" + arch) }

// FirmwareFor is the UEFI firmware of such a machine.
func FirmwareFor(arch string) Need { return Need("firmware-" + arch) }

// StubFor is the EFI stub that a unified kernel image of that architecture
// starts with.
func StubFor(arch string) Need { return Need("stub-" + arch) }

// BusyboxFor is a static busybox of that architecture.
func BusyboxFor(arch string) Need { return Need("busybox-" + arch) }

// Default is what an emulated server needs: an arm64 card, and instances of
// this machine's architecture.
func Default() []Need {
	needs := []Need{
		QEMU, SWTPM, E2fsprogs,
		KernelFor(ArchARM64), FirmwareFor(ArchARM64), StubFor(ArchARM64),
	}
	instance := runtime.GOARCH
	for _, n := range []Need{KernelFor(instance), FirmwareFor(instance), StubFor(instance), BusyboxFor(instance)} {
		if !slices.Contains(needs, n) {
			needs = append(needs, n)
		}
	}
	return needs
}

// spec is one row of the table: what a need is for, how it is recognised, and
// what brings it.
type spec struct {
	need    Need
	purpose string
	// arch is that of the packages; empty is this machine's.
	arch string
	// min is the lowest upstream version that serves; it holds for the
	// commands and for the first root package.
	min Version
	// commands must all be found on the system, for the system to serve.
	commands []command
	// files are found below the root of the place that meets the need.
	files []file
	// roots are the Debian packages. With closure, what they depend on comes
	// too, libc excepted; without, only packages that keep matches (the
	// roots, when it is nil).
	roots   []string
	closure bool
	keep    *regexp.Regexp
	// backports says that the release itself is too old where the
	// distribution's row in backportsOf says so.
	backports bool
	// libDirs are directories of private libraries, below the library directory.
	libDirs []string
	// static demands that the files are static programs of arch.
	static bool
	// noSystem keeps the system's own files out: a kernel's file name doesn't
	// say its architecture, nor which drivers it has.
	noSystem bool
	// install is what other systems call the packages, by os-release ID.
	install map[string]string
	// optional says that everything works without.
	optional bool
	// build is what helps where the system's packages are too old.
	build string
}

// command is a program that belongs to a need.
type command struct {
	name string
	// versionArgs makes it print its version; nil: only its presence counts.
	versionArgs []string
	// probe is run when set: the answer must contain want.
	probe []string
	want  string
}

// file is a file that belongs to a need, by its logical name, with the places
// where distributions put it, relative to the root; patterns as in
// path/filepath.Match, the last match (the highest version) wins.
type file struct {
	name   string
	places []string
}

// backportsOf lists the releases whose own packages are too old for the needs
// marked backports.
var backportsOf = map[string]bool{"bookworm": true}

// specOf looks a need up in the table.
func specOf(n Need) (spec, error) {
	for _, s := range table() {
		if s.need == n {
			return s, nil
		}
	}
	return spec{}, fmt.Errorf("need %q: %w", n, ErrUnknownNeed)
}

// table lists all needs. Versions are minima: what the mirrors hold decides.
func table() []spec {
	rows := []spec{qemuSpec(), swtpmSpec(), e2fsprogsSpec(), tpm2ToolsSpec(), nbdkitSpec()}
	for _, arch := range []string{ArchARM64, ArchAMD64} {
		rows = append(rows, kernelSpec(arch), firmwareSpec(arch), stubSpec(arch), busyboxSpec(arch))
	}
	return rows
}

func qemuSpec() spec {
	version := []string{"--version"}
	user := []string{"-M", "none", "-netdev", "help"}
	return spec{
		need: QEMU, purpose: "runs the card and the instances",
		min: Version{10, 0},
		commands: []command{
			{name: "qemu-system-aarch64", versionArgs: version, probe: user, want: "user"},
			{name: "qemu-system-x86_64", versionArgs: version, probe: user, want: "user"},
			{name: "qemu-img", versionArgs: version},
			{name: "qemu-nbd"},
		},
		// The ROMs are recommended only by some releases; QEMU does not start
		// devices without theirs.
		roots:   []string{"qemu-system-arm", "qemu-system-x86", "qemu-utils", "seabios", "ipxe-qemu"},
		closure: true, backports: true,
		install: map[string]string{
			"debian": "qemu-system-arm qemu-system-x86 qemu-utils seabios ipxe-qemu",
			"fedora": "qemu-system-aarch64-core qemu-system-x86-core qemu-img",
			"arch":   "qemu-system-aarch64 qemu-system-x86 qemu-img",
		},
		build: "a later release of the system may have it; else build it from https://www.qemu.org/download/#source: " +
			"./configure --target-list=aarch64-softmmu,x86_64-softmmu --enable-slirp --enable-tools && make && sudo make install",
	}
}

func swtpmSpec() spec {
	version := []string{"--version"}
	return spec{
		need: SWTPM, purpose: "the card's TPM",
		min: Version{0, 7},
		commands: []command{
			{name: "swtpm", versionArgs: version},
			// swtpm_setup --version exits with 1 in 0.7.
			{name: "swtpm_setup"},
			{name: "swtpm_localca"},
			{name: "swtpm_cert"},
			{name: "certtool"},
		},
		roots:   []string{"swtpm", "swtpm-tools", "gnutls-bin"},
		closure: true, libDirs: []string{"swtpm"},
		install: map[string]string{
			"debian": "swtpm swtpm-tools gnutls-bin",
			"fedora": "swtpm swtpm-tools gnutls-utils",
			"arch":   "swtpm gnutls",
		},
	}
}

func e2fsprogsSpec() spec {
	version := []string{"-V"}
	return spec{
		need: E2fsprogs, purpose: "makes and inspects ext4 volumes",
		min:      Version{1, 45},
		commands: []command{{name: "mke2fs", versionArgs: version}, {name: "debugfs", versionArgs: version}, {name: "e2fsck", versionArgs: version}},
		roots:    []string{"e2fsprogs"}, closure: true,
		install: map[string]string{"debian": "e2fsprogs", "fedora": "e2fsprogs", "arch": "e2fsprogs"},
	}
}

func tpm2ToolsSpec() spec {
	return spec{
		need: TPM2Tools, purpose: "checks event logs independently, in tests", optional: true,
		min:      Version{5, 0},
		commands: []command{{name: "tpm2_eventlog", versionArgs: []string{"--version"}}},
		roots:    []string{"tpm2-tools"}, closure: true,
		install: map[string]string{"debian": "tpm2-tools", "fedora": "tpm2-tools", "arch": "tpm2-tools"},
	}
}

func nbdkitSpec() spec {
	return spec{
		need: NBDKit, purpose: "serves volumes over NBD, in tests",
		min:      Version{1, 30},
		commands: []command{{name: "nbdkit", versionArgs: []string{"--version"}}},
		roots:    []string{"nbdkit"}, closure: true,
		install: map[string]string{"debian": "nbdkit", "fedora": "nbdkit", "arch": "nbdkit"},
	}
}

func kernelSpec(arch string) spec {
	return spec{
		need: KernelFor(arch), purpose: "kernel and modules of " + arch + " machines",
		arch: arch, min: Version{6, 12},
		files: []file{
			{fileKernel, []string{"boot/vmlinuz-*-cloud-" + arch, "boot/vmlinuz-*"}},
			{fileKernelConfig, []string{"boot/config-*-cloud-" + arch, "boot/config-*"}},
		},
		roots:     []string{"linux-image-cloud-" + arch},
		keep:      regexp.MustCompile(`^linux-(image|modules)-[0-9][^ ]*-cloud-` + arch + `$`),
		backports: true, noSystem: true,
	}
}

func firmwareSpec(arch string) spec {
	s := spec{need: FirmwareFor(arch), purpose: "UEFI of " + arch + " machines", arch: arch}
	if arch == ArchARM64 {
		s.roots = []string{"qemu-efi-aarch64"}
		s.files = []file{
			// Debian 13 builds the one without Secure Boot without TPM support: it
			// measures nothing. Secure Boot is off while the variables hold no keys.
			{fileCode, []string{"usr/share/AAVMF/AAVMF_CODE.secboot.fd", "usr/share/AAVMF/AAVMF_CODE.fd", "usr/share/edk2/aarch64/QEMU_EFI-pflash.raw", "usr/share/edk2/aarch64/QEMU_CODE.fd"}},
			{fileVars, []string{"usr/share/AAVMF/AAVMF_VARS.fd", "usr/share/edk2/aarch64/vars-template-pflash.raw", "usr/share/edk2/aarch64/QEMU_VARS.fd"}},
		}
		s.install = map[string]string{"debian": "qemu-efi-aarch64", "fedora": "edk2-aarch64", "arch": "edk2-aarch64"}
		return s
	}
	s.roots = []string{"ovmf"}
	s.files = []file{
		{fileCode, []string{"usr/share/OVMF/OVMF_CODE_4M.fd", "usr/share/edk2/ovmf/OVMF_CODE_4M.fd", "usr/share/edk2/x64/OVMF_CODE.4m.fd"}},
		{fileVars, []string{"usr/share/OVMF/OVMF_VARS_4M.fd", "usr/share/edk2/ovmf/OVMF_VARS_4M.fd", "usr/share/edk2/x64/OVMF_VARS.4m.fd"}},
	}
	s.install = map[string]string{"debian": "ovmf", "fedora": "edk2-ovmf", "arch": "edk2-ovmf"}
	return s
}

func stubSpec(arch string) spec {
	name := "linuxx64.efi.stub"
	if arch == ArchARM64 {
		name = "linuxaa64.efi.stub"
	}
	s := spec{
		need: StubFor(arch), purpose: "start of unified kernel images of " + arch, arch: arch,
		files: []file{{fileStub, []string{"usr/lib/systemd/boot/efi/" + name}}},
		roots: []string{"systemd-boot-efi"},
	}
	if arch == runtime.GOARCH {
		s.install = map[string]string{"debian": "systemd-boot-efi", "fedora": "systemd-boot-unsigned", "arch": "systemd"}
	}
	return s
}

func busyboxSpec(arch string) spec {
	s := spec{
		need: BusyboxFor(arch), purpose: "user space of small " + arch + " instances", arch: arch,
		files: []file{{fileBusybox, []string{"usr/bin/busybox", "bin/busybox", "usr/sbin/busybox"}}},
		roots: []string{"busybox-static"}, static: true,
	}
	if arch == runtime.GOARCH {
		s.install = map[string]string{"debian": "busybox-static", "fedora": "busybox", "arch": "busybox"}
	}
	return s
}
