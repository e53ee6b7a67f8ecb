// SPDX-License-Identifier: Apache-2.0

package main

import (
	"cmp"
	"fmt"
	"os"
	"path/filepath"
	"time"

	"golang.org/x/sys/unix"
)

// disk is what the card serves first: the root, or the disk that has it.
const disk = "vda"

func main() {
	stage, err := "initramfs", error(nil)
	if os.Args[0] == "/sbin/init" {
		stage, err = "root", runRoot()
	} else {
		err = runInitramfs()
	}
	// Reached on an error only. Pid 1 must not return: the kernel would panic
	// and the reason scroll away.
	fmt.Printf("DAVIT-GUEST %s: %v\n", stage, err)
	unix.Sync()
	if err := unix.Reboot(unix.LINUX_REBOOT_CMD_POWER_OFF); err != nil {
		fmt.Println("power off:", err)
	}
	select {}
}

// runInitramfs gets from the initramfs to the disk; it only returns an error.
func runInitramfs() error {
	for _, m := range []struct{ source, target, kind string }{
		{"devtmpfs", "/dev", "devtmpfs"}, {"proc", "/proc", "proc"}, {"sysfs", "/sys", "sysfs"},
	} {
		if err := mount(m.source, m.target, m.kind, 0); err != nil {
			return err
		}
	}
	if err := loadModules("/modules"); err != nil {
		return err
	}
	root := cmp.Or(argument("root"), "/dev/"+disk)
	if err := waitFor(root, 30*time.Second); err != nil {
		return err
	}
	if err := mount(root, "/root", "ext4", 0); err != nil {
		return err
	}
	for _, dir := range []string{"dev", "proc", "sys"} {
		if err := unix.Mount("/"+dir, "/root/"+dir, "", unix.MS_MOVE, ""); err != nil {
			return fmt.Errorf("move /%s: %w", dir, err)
		}
	}
	if err := os.Chdir("/root"); err != nil {
		return err
	}
	if err := unix.Mount(".", "/", "", unix.MS_MOVE, ""); err != nil {
		return fmt.Errorf("move the root: %w", err)
	}
	if err := unix.Chroot("."); err != nil {
		return fmt.Errorf("chroot: %w", err)
	}
	return unix.Exec("/sbin/init", []string{"/sbin/init"}, os.Environ())
}

func mount(source, target, kind string, flags uintptr) error {
	if err := os.MkdirAll(target, 0o755); err != nil {
		return err
	}
	if err := unix.Mount(source, target, kind, flags, ""); err != nil {
		return fmt.Errorf("mount %s on %s: %w", source, target, err)
	}
	return nil
}

// loadModules inserts the files of dir by name: they are numbered in order.
func loadModules(dir string) error {
	files, err := filepath.Glob(filepath.Join(dir, "*.ko"))
	if err != nil {
		return err
	}
	for _, name := range files {
		f, err := os.Open(name)
		if err != nil {
			return err
		}
		err = unix.FinitModule(int(f.Fd()), "", 0)
		f.Close()
		if err != nil {
			return fmt.Errorf("load %s: %w", name, err)
		}
	}
	return nil
}

// waitFor waits until the kernel has made a device node.
func waitFor(path string, limit time.Duration) error {
	tick := time.NewTicker(10 * time.Millisecond)
	defer tick.Stop()
	deadline := time.After(limit)
	for {
		if _, err := os.Stat(path); err == nil {
			return nil
		}
		select {
		case <-tick.C:
		case <-deadline:
			return fmt.Errorf("%s did not appear in %v", path, limit)
		}
	}
}
