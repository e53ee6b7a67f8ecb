// SPDX-License-Identifier: Apache-2.0

package rig

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"

	"github.com/u-root/mkuimage/cpio"

	"github.com/davit-dpu/davit/firmware/spec"
	"github.com/davit-dpu/davit/initramfs/image/disk"
	"github.com/davit-dpu/davit/initramfs/kernel"
	"github.com/davit-dpu/davit/secureboot/uki"
	"github.com/davit-dpu/davit/tools/packages"
)

// Seed is a folder whose content the card's storage has when it is new: boot/
// and volumes/, as an operator would have put them there.
type Seed struct{ Dir string }

// Names of the demonstration instance and of its files on the card.
const (
	DemoName   = "demo"
	DemoVolume = "demo-root"
	demoKernel = "vmlinuz"
	demoInitrd = "initrd"
)

// Sizes of the demonstration's root file system, and of the EFI system partition
// that is before it on a disk that boots by itself.
const (
	demoRootSize = 64 * spec.MiB
	demoESPSize  = 40 * spec.MiB
)

// DemoRootOffset is where the root file system begins on a disk that boots by
// itself: behind the partition table and the EFI system partition.
const DemoRootOffset = spec.MiB + demoESPSize

// NoTimerCheck is for every Linux on an emulated x86 machine. Early in its boot it
// counts the ticks of a timer while it spins for a time that it takes from the
// TSC; an emulator that gets no processor meanwhile delivers too few, and Linux
// panics: "IO-APIC + timer doesn't work!". Under KVM it leaves that out by itself.
const NoTimerCheck = "no_timer_check"

// Demo says how the demonstration instance boots and what it does then.
type Demo struct {
	Disk bool // UEFI firmware boots it from its own disk, instead of a kernel that the card holds
	Load bool // it writes and verifies for as long as it runs
}

// demoModules are what the demonstration's kernel needs beyond what is built
// in: its disk, and its power button.
var demoModules = []string{"virtio_blk", "evdev", "button"}

// Seed fills dir with what the demonstration instance needs: a kernel of the
// distribution, an initramfs and a disk with a static busybox. source is the
// module's folder, where the guest program is built.
func (d Demo) Seed(ctx context.Context, set *packages.Set, source, arch, dir string) (Seed, error) {
	seed := Seed{Dir: dir}
	for _, sub := range []string{"boot", "volumes"} {
		if err := os.MkdirAll(filepath.Join(dir, sub), 0o700); err != nil {
			return Seed{}, err
		}
	}
	guest := filepath.Join(dir, ".guest")
	defer os.Remove(guest)
	if err := buildGuest(ctx, source, arch, guest); err != nil {
		return Seed{}, err
	}
	if err := writeDemoBoot(set, arch, guest, filepath.Join(dir, "boot")); err != nil {
		return Seed{}, fmt.Errorf("demonstration's boot files: %w", err)
	}
	if err := d.writeVolume(ctx, set, arch, guest, dir); err != nil {
		return Seed{}, fmt.Errorf("demonstration's root disk: %w", err)
	}
	return seed, nil
}

func buildGuest(ctx context.Context, source, arch, out string) error {
	cmd := exec.CommandContext(ctx, "go", "build", "-trimpath", "-buildvcs=false", "-ldflags=-s -w", "-o", out, "./tools/rig/guest")
	cmd.Dir = source
	cmd.Env = append(os.Environ(), "CGO_ENABLED=0", "GOOS=linux", "GOARCH="+arch)
	if text, err := cmd.CombinedOutput(); err != nil {
		return fmt.Errorf("build the guest program: %w\n%s", err, text)
	}
	return nil
}

// writeDemoBoot writes the kernel as it is, and an initramfs of the guest
// program and the modules, numbered in load order.
func writeDemoBoot(set *packages.Set, arch, guest, dir string) error {
	root, _, err := set.Where(packages.KernelFor(arch))
	if err != nil {
		return err
	}
	k, err := kernel.Open(root)
	if err != nil {
		return err
	}
	modules, err := k.Resolve(demoModules)
	if err != nil {
		return err
	}
	program, err := os.ReadFile(guest)
	if err != nil {
		return err
	}
	records := []cpio.Record{
		cpio.Directory("dev", 0o755), cpio.CharDev("dev/console", 0o600, 5, 1),
		cpio.Directory("modules", 0o755), cpio.Directory("root", 0o755),
		cpio.StaticFile("init", string(program), 0o755),
	}
	for i, m := range modules.Load {
		records = append(records, cpio.StaticFile(fmt.Sprintf("modules/%02d-%s.ko", i, m.Name), string(m.Data), 0o644))
	}
	cpio.MakeAllReproducible(records)
	var archive bytes.Buffer
	w := cpio.Newc.Writer(&archive)
	if err := errors.Join(cpio.WriteRecords(w, records), cpio.WriteTrailer(w)); err != nil {
		return err
	}
	if err := os.WriteFile(filepath.Join(dir, demoInitrd), archive.Bytes(), 0o600); err != nil {
		return err
	}
	return copyFile(filepath.Join(dir, demoKernel), k.ImagePath())
}

// writeVolume makes the demonstration's disk anew, without mounting anything.
func (d Demo) writeVolume(ctx context.Context, set *packages.Set, arch, guest, dir string) error {
	tree, err := os.MkdirTemp("", "davit-root-")
	if err != nil {
		return err
	}
	defer os.RemoveAll(tree)
	if err := fillDemoRoot(set, arch, guest, tree); err != nil {
		return err
	}
	volume := filepath.Join(dir, "volumes", DemoVolume+".img")
	if err := os.Remove(volume); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	if d.Disk {
		return d.writeDisk(ctx, set, arch, filepath.Join(dir, "boot"), tree, volume)
	}
	cmd := set.CommandContext(ctx, "mke2fs", "-q", "-t", "ext4", "-b", "4096", "-E", "root_owner=0:0", "-d", tree, volume, fmt.Sprintf("%dk", demoRootSize/spec.KiB))
	if text, err := cmd.CombinedOutput(); err != nil {
		return fmt.Errorf("mke2fs: %w\n%s", err, text)
	}
	return nil
}

// writeDisk makes a disk that UEFI firmware boots: kernel, initramfs and command
// line as one image, which is not signed, and the root on a partition of its own.
func (d Demo) writeDisk(ctx context.Context, set *packages.Set, arch, boot, tree, path string) error {
	stub, err := set.Stub(arch)
	if err != nil {
		return err
	}
	var parts [3][]byte
	for i, file := range []string{stub, filepath.Join(boot, demoKernel), filepath.Join(boot, demoInitrd)} {
		if parts[i], err = os.ReadFile(file); err != nil {
			return err
		}
	}
	image, err := uki.Build(parts[0], uki.Sections{Cmdline: d.cmdline() + " root=/dev/vda2", Linux: parts[1], Initrd: parts[2]})
	if err != nil {
		return err
	}
	return disk.Create(ctx, disk.Options{
		Path: path, UKI: image, ESPSize: int64(demoESPSize), DataSize: int64(demoRootSize), DataTree: tree, Mke2fs: mke2fs(set),
	})
}

// fillDemoRoot fills a folder with what is on the demonstration's root.
func fillDemoRoot(set *packages.Set, arch, guest, tree string) error {
	for _, dir := range []string{"bin", "sbin", "dev", "proc", "sys", "run", "etc", "root", "var"} {
		if err := os.Mkdir(filepath.Join(tree, dir), 0o755); err != nil {
			return err
		}
	}
	busybox, err := set.Busybox(arch)
	if err != nil {
		return err
	}
	for to, from := range map[string]string{"bin/busybox": busybox, "sbin/init": guest} {
		if err := copyFile(filepath.Join(tree, to), from); err != nil {
			return err
		}
		if err := os.Chmod(filepath.Join(tree, to), 0o755); err != nil {
			return err
		}
	}
	for _, name := range []string{"sh", "ls", "cat", "dd", "df", "dmesg", "echo", "free", "mount", "ps", "sha256sum", "sync", "uname", "vi"} {
		if err := os.Symlink("busybox", filepath.Join(tree, "bin", name)); err != nil {
			return err
		}
	}
	return nil
}

// Instance is the demonstration as an operator would write it. The nonce goes to
// the guest, which puts it into what it writes: on the command line, or as the
// serial number of a disk that brings its own command line.
func (d Demo) Instance(nonce string) spec.Instance {
	in := spec.Instance{
		Name: DemoName, VCPUs: 1, Memory: 256 * spec.MiB, Restart: spec.RestartOnFailure,
		Boot:    spec.Boot{Kernel: demoKernel, Initrd: demoInitrd, Cmdline: d.cmdline() + " davit.nonce=" + nonce},
		Volumes: []spec.Volume{{Name: DemoVolume, Kind: spec.VolumeFile, Size: demoRootSize, Queues: 1}},
	}
	if d.Disk {
		in.Boot = spec.Boot{Firmware: spec.FirmwareUEFI}
		in.Volumes[0].Size, in.Volumes[0].Serial = DemoRootOffset+demoRootSize+spec.MiB, nonce
	}
	return in
}

// cmdline is what the guest's kernel is told however it boots.
func (d Demo) cmdline() string {
	text := "console=ttyS0 quiet panic=1 " + NoTimerCheck
	if d.Load {
		text += " davit.load=1"
	}
	return text
}

// makeStorage makes the card's storage when it is not there: the image on an
// EFI system partition, and a data partition with the seed.
func (s *Server) makeStorage(ctx context.Context) error {
	uki, err := os.ReadFile(s.cfg.UKI)
	if err != nil {
		return err
	}
	path := s.path("card.img")
	if _, err := os.Stat(path); err == nil {
		_, err := disk.ReplaceUKI(path, uki)
		return err
	}
	return disk.Create(ctx, disk.Options{
		Path: path, UKI: uki, DataSize: 256 << 20, DataTree: s.cfg.Seed.Dir,
		Mke2fs: mke2fs(s.set),
	})
}

func mke2fs(set *packages.Set) func(context.Context, ...string) *exec.Cmd {
	return func(ctx context.Context, args ...string) *exec.Cmd { return set.CommandContext(ctx, "mke2fs", args...) }
}
