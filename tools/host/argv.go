// SPDX-License-Identifier: Apache-2.0

package host

import (
	"fmt"
	"strings"

	"github.com/davit-dpu/davit/firmware/spec"
)

// Accel is how guest code is run.
type Accel string

// Accelerators. The zero value is AccelAuto.
const (
	AccelAuto Accel = "auto" // KVM where a guest was seen to run with it, else TCG
	AccelKVM  Accel = "kvm"
	AccelTCG  Accel = "tcg"
)

// machine is what the host's QEMU and processor decide about a command line.
type machine struct {
	arch    string // "x86_64" or "aarch64"
	accel   Accel  // kvm or tcg
	sandbox bool   // QEMU has the seccomp sandbox
}

// Numbers of the inherited file descriptors: os/exec gives ExtraFiles[i] the
// number 3+i.
const (
	fdQMP = 3 + iota
	fdConsole
	fdKernel
	fdInitrd
)

// Names in a VMM's directory, which is its working directory: relative names
// keep socket addresses short however long the run directory's path is.
const (
	qmpSocket     = "qmp.sock"
	consoleSocket = "console.sock"
	varsFile      = "vars.fd"
)

func diskSocket(i int) string { return fmt.Sprintf("disk%d.sock", i) }

// argv is the fixed template of a VMM's command line. pool and code are
// absolute paths; everything else in it was checked by order.Validate.
func argv(m machine, prefix []string, order *spec.VMMOrder, pool, code string) ([]string, error) {
	if order.Kernel == nil && order.Firmware == spec.FirmwareBIOS && m.arch != "x86_64" {
		return nil, fmt.Errorf("firmware bios: %s has none", m.arch)
	}
	if order.Kernel == nil && order.Firmware == spec.FirmwareUEFI && code == "" {
		return nil, fmt.Errorf("firmware uefi: this host was started without --firmware-uefi")
	}
	a := append([]string(nil), prefix...)
	a = append(a, "-name", "guest="+order.Instance+",debug-threads=on", "-uuid", uuidOf(order.Generation),
		"-nodefaults", "-no-user-config", "-display", "none")
	if m.sandbox {
		a = append(a, "-sandbox", "on,obsolete=deny,elevateprivileges=deny,spawn=deny,resourcecontrol=deny")
	}
	a = append(a, "-machine", m.machineOption(), "-cpu", m.cpu(),
		"-smp", fmt.Sprint(order.VCPUs), "-m", fmt.Sprintf("%dB", uint64(order.Memory)),
		"-object", fmt.Sprintf("memory-backend-file,id=ram,size=%d,mem-path=%s,offset=%d,share=on",
			uint64(order.Memory), quote(pool), uint64(order.PoolOffset)))
	a = append(a,
		"-chardev", fmt.Sprintf("socket,id=qmp,fd=%d,server=on,wait=off", fdQMP), "-mon", "chardev=qmp,mode=control",
		"-chardev", fmt.Sprintf("socket,id=console,fd=%d,server=on,wait=off", fdConsole), "-serial", "chardev:console")
	for i, d := range order.Disks {
		first := ""
		if i == 0 { // firmware boots no disk that has no place in the order
			first = ",bootindex=1"
		}
		a = append(a,
			"-chardev", fmt.Sprintf("socket,id=disk%d,path=%s,reconnect-ms=100", i, diskSocket(i)),
			"-device", fmt.Sprintf("vhost-user-blk-pci,id=vd%d,chardev=disk%d,num-queues=%d%s,addr=0x%x", i, i, d.Queues, first, 0x8+i))
	}
	return append(a, bootOptions(order, code)...), nil
}

func bootOptions(order *spec.VMMOrder, code string) []string {
	switch {
	case order.Kernel != nil:
		a := []string{"-kernel", fmt.Sprintf("/proc/self/fd/%d", fdKernel)}
		if order.Initrd != nil {
			a = append(a, "-initrd", fmt.Sprintf("/proc/self/fd/%d", fdInitrd))
		}
		if order.Cmdline != "" {
			a = append(a, "-append", order.Cmdline)
		}
		return a
	case order.Firmware == spec.FirmwareUEFI:
		return []string{
			"-drive", "if=pflash,format=raw,unit=0,readonly=on,file=" + quote(code),
			"-drive", "if=pflash,format=raw,unit=1,file=" + varsFile,
		}
	}
	return []string{"-boot", "strict=on"}
}

func (m machine) machineOption() string {
	kind := "q35,usb=off,vmport=off"
	if m.arch == "aarch64" {
		kind = "virt"
		if m.accel == AccelKVM {
			kind += ",gic-version=host"
		}
	}
	return kind + ",memory-backend=ram,dump-guest-core=off,accel=" + string(m.accel)
}

func (m machine) cpu() string {
	if m.accel == AccelKVM {
		return "host"
	}
	return "max"
}

// quote doubles commas, which separate options in QEMU's syntax.
func quote(path string) string { return strings.ReplaceAll(path, ",", ",,") }

// uuidOf writes a checked generation as QEMU's -uuid wants it.
func uuidOf(g string) string {
	g = strings.ToLower(g)
	return strings.Join([]string{g[:8], g[8:12], g[12:16], g[16:20], g[20:]}, "-")
}
