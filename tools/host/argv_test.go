// SPDX-License-Identifier: Apache-2.0

package host

import (
	"slices"
	"strings"
	"testing"

	"github.com/davit-dpu/davit/firmware/spec"
)

const testGeneration = "00112233445566778899aabbccddeeff"

func testOrder() *spec.VMMOrder {
	return &spec.VMMOrder{
		Instance: "web", Generation: testGeneration, VCPUs: 2, Memory: 256 * spec.MiB, PoolOffset: 64 * spec.MiB,
		Firmware: spec.FirmwareBIOS, Disks: []spec.VMMDisk{{Device: "root", Queues: 2}, {Device: "data", Queues: 1}},
	}
}

func TestArgv(t *testing.T) {
	t.Parallel()
	x86 := machine{arch: "x86_64", accel: AccelTCG, sandbox: true}
	kernel := testOrder()
	kernel.Firmware, kernel.Kernel, kernel.Initrd, kernel.Cmdline = "", &spec.Blob{}, &spec.Blob{}, "root=/dev/vda -append x,y"
	uefi := testOrder()
	uefi.Firmware = spec.FirmwareUEFI
	for _, c := range []struct {
		name  string
		m     machine
		order *spec.VMMOrder
		code  string
		want  []string // each is a run of neighbouring arguments
		never string
	}{
		{"bios", x86, testOrder(), "", []string{
			"-L /q -name guest=web,debug-threads=on -uuid 00112233-4455-6677-8899-aabbccddeeff -nodefaults -no-user-config",
			"-sandbox on,obsolete=deny,elevateprivileges=deny,spawn=deny,resourcecontrol=deny",
			"-machine q35,usb=off,vmport=off,memory-backend=ram,dump-guest-core=off,accel=tcg -cpu max -smp 2 -m 268435456B",
			"-object memory-backend-file,id=ram,size=268435456,mem-path=/p,,ool,offset=67108864,share=on",
			"-chardev socket,id=disk0,path=disk0.sock,reconnect-ms=100 -device vhost-user-blk-pci,id=vd0,chardev=disk0,num-queues=2,bootindex=1,addr=0x8",
			"-device vhost-user-blk-pci,id=vd1,chardev=disk1,num-queues=1,addr=0x9",
			"-chardev socket,id=qmp,fd=3,server=on,wait=off -mon chardev=qmp,mode=control",
			"-chardev socket,id=console,fd=4,server=on,wait=off -serial chardev:console",
			"-boot strict=on"}, "-kernel"},
		{"kernel", x86, kernel, "", []string{"-kernel /proc/self/fd/5", "-initrd /proc/self/fd/6", "-append root=/dev/vda -append x,y"}, "-boot"},
		{"uefi", x86, uefi, "/fw/C,ODE", []string{"readonly=on,file=/fw/C,,ODE", "unit=1,file=vars.fd"}, "-kernel"},
		{"kvm", machine{arch: "x86_64", accel: AccelKVM}, testOrder(), "", []string{"accel=kvm -cpu host"}, "-sandbox"},
		{"arm", machine{arch: "aarch64", accel: AccelTCG}, kernel, "", []string{"-machine virt,memory-backend=ram"}, "q35"},
		{"arm with kvm", machine{arch: "aarch64", accel: AccelKVM}, kernel, "", []string{"-machine virt,gic-version=host,memory-backend=ram"}, "q35"},
	} {
		got, err := argv(c.m, []string{"-L", "/q"}, c.order, "/p,ool", c.code)
		if err != nil {
			t.Errorf("%s: %v", c.name, err)
			continue
		}
		line := strings.Join(got, " ")
		for _, want := range c.want {
			if !strings.Contains(line, want) {
				t.Errorf("%s: no %q in\n%s", c.name, want, line)
			}
		}
		if strings.Contains(line, c.never) {
			t.Errorf("%s: %q in\n%s", c.name, c.never, line)
		}
	}
	got, err := argv(x86, nil, kernel, "/pool", "")
	if err != nil || !slices.Contains(got, kernel.Cmdline) {
		t.Errorf("the kernel's command line is not one argument: %q, %v", got, err)
	}
}

func TestArgvRefuses(t *testing.T) {
	t.Parallel()
	uefi := testOrder()
	uefi.Firmware = spec.FirmwareUEFI
	for name, c := range map[string]struct {
		m     machine
		order *spec.VMMOrder
	}{
		"bios on arm":           {machine{arch: "aarch64"}, testOrder()},
		"uefi without an image": {machine{arch: "x86_64"}, uefi},
	} {
		if got, err := argv(c.m, nil, c.order, "/pool", ""); err == nil || got != nil {
			t.Errorf("%s: %q, %v", name, got, err)
		}
	}
}
