// SPDX-License-Identifier: Apache-2.0

package main

import (
	"fmt"
	"os"
	"strconv"
	"strings"

	"golang.org/x/sys/unix"
)

func main() {
	if err := run(); err != nil {
		fmt.Printf("failed: %v\n", err)
	} else {
		fmt.Println("done")
	}
	_ = unix.IoctlSetInt(1, unix.TCSBRK, 1) // drain the console
	unix.Sync()
	_ = unix.Reboot(unix.LINUX_REBOOT_CMD_POWER_OFF)
}

func run() error {
	for _, m := range []struct{ dir, kind string }{{"/proc", "proc"}, {"/sys", "sysfs"}, {"/dev", "devtmpfs"}} {
		if err := os.MkdirAll(m.dir, 0o755); err != nil {
			return err
		}
		if err := unix.Mount(m.kind, m.dir, m.kind, 0, ""); err != nil && err != unix.EBUSY {
			return fmt.Errorf("mount %s: %w", m.dir, err)
		}
	}
	if err := loadModule("/virtio_blk.ko"); err != nil {
		return err
	}
	args, err := arguments()
	if err != nil {
		return err
	}
	if err := facts(); err != nil {
		return err
	}
	ops, err := strconv.Atoi(args["ops"])
	if err != nil {
		return fmt.Errorf("davit.ops: %w", err)
	}
	return exercise(ops, args["mode"])
}

func loadModule(path string) error {
	f, err := os.Open(path)
	if err != nil {
		return err
	}
	defer func() { _ = f.Close() }()
	if err := unix.FinitModule(int(f.Fd()), "", 0); err != nil {
		return fmt.Errorf("load %s: %w", path, err)
	}
	return nil
}

func arguments() (map[string]string, error) {
	b, err := os.ReadFile("/proc/cmdline")
	if err != nil {
		return nil, err
	}
	args := make(map[string]string)
	for _, f := range strings.Fields(string(b)) {
		if rest, ok := strings.CutPrefix(f, "davit."); ok {
			name, value, _ := strings.Cut(rest, "=")
			args[name] = value
		}
	}
	return args, nil
}

// facts prints what Linux made of the device.
func facts() error {
	const dir = "/sys/block/vda/"
	for _, name := range []string{
		"size", "serial", "ro", "cache_type", "queue/logical_block_size", "queue/physical_block_size", "queue/max_segments",
		"queue/minimum_io_size", "queue/discard_max_bytes", "queue/discard_granularity", "queue/write_zeroes_max_bytes", "queue/write_cache",
	} {
		b, err := os.ReadFile(dir + name)
		if err != nil {
			return err
		}
		fmt.Printf("fact %s %s\n", name, strings.ReplaceAll(strings.TrimSpace(string(b)), " ", "_"))
	}
	queues, err := os.ReadDir(dir + "mq")
	if err != nil {
		return err
	}
	fmt.Printf("fact queues %d\n", len(queues))
	return nil
}
