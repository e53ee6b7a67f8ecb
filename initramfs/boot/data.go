// SPDX-License-Identifier: Apache-2.0

package boot

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"golang.org/x/sys/unix"
)

// findPartition gives the device name of the partition with this GPT name; ""
// when there is none. Two of them are an error: a second disk must not take the
// place of the first.
func findPartition(sysBlock, name string) (device string, err error) {
	files, err := filepath.Glob(filepath.Join(sysBlock, "*", "uevent"))
	if err != nil {
		return "", err
	}
	var found []string
	for _, file := range files {
		text, err := os.ReadFile(file)
		if err != nil {
			continue // gone since, or not a device
		}
		if dev, ok := partition(text, name); ok {
			found = append(found, dev)
		}
	}
	switch len(found) {
	case 0:
		return "", nil
	case 1:
		return found[0], nil
	}
	slices.Sort(found)
	return "", fmt.Errorf("partition name %s is used more than once: %s", name, strings.Join(found, " "))
}

// partition takes the device name from a uevent file of a partition with this
// name.
func partition(uevent []byte, name string) (device string, ok bool) {
	var part string
	for line := range bytes.SplitSeq(uevent, []byte("\n")) {
		key, value, _ := strings.Cut(string(line), "=")
		switch key {
		case "DEVNAME":
			device = value
		case "PARTNAME":
			part = value
		}
	}
	if name == "" || part != name || !plainName(device) {
		return "", false
	}
	return device, true
}

// plainName says that a name stays in the folder it is looked up in.
func plainName(s string) bool { return s != "" && s[0] != '.' && !strings.ContainsAny(s, "/\x00") }

// stepData mounts the state directory: the data partition, or memory.
func stepData(ctx context.Context, m *machine) (string, error) {
	dir := m.cfg.StateDir
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return "", fmt.Errorf("state directory: %w", err)
	}
	name := m.board.StatePartition
	var device string
	err := waitFor(ctx, "/dev", m.patience(m.cfg.DataWait), func() (bool, error) {
		var err error
		device, err = findPartition("/sys/class/block", name)
		return device != "", err
	})
	if err == nil {
		err = unix.Mount("/dev/"+device, dir, "ext4", quiet|unix.MS_NOATIME, "errors=remount-ro")
	}
	if err == nil {
		m.report.Persistent = true
		return fmt.Sprintf("/dev/%s on %s", device, dir), nil
	}
	err = fmt.Errorf("partition %s: %w", name, err)
	if m.strict() {
		return "", err
	}
	// In development a card without a disk is of use.
	if tmpErr := unix.Mount("tmpfs", dir, "tmpfs", quiet, "mode=0700"); tmpErr != nil {
		return "", errors.Join(err, fmt.Errorf("memory instead: %w", tmpErr))
	}
	return "", fmt.Errorf("%w; state is in memory and is lost with power", err)
}

// unmountData syncs and unmounts the state directory.
func unmountData(dir string) error {
	unix.Sync()
	err := unix.Unmount(dir, 0)
	if errors.Is(err, unix.EBUSY) {
		// Something still holds a file: read-only is as clean as it gets.
		err = unix.Mount("", dir, "", unix.MS_REMOUNT|unix.MS_RDONLY|quiet, "")
		if err != nil {
			return fmt.Errorf("unmount %s: busy, and read-only: %w", dir, err)
		}
		return fmt.Errorf("unmount %s: busy, made read-only instead", dir)
	}
	if err != nil && !errors.Is(err, unix.EINVAL) && !errors.Is(err, unix.ENOENT) { // those: not mounted
		return fmt.Errorf("unmount %s: %w", dir, err)
	}
	return nil
}

// patience shortens a wait in development, where the thing may not exist at all.
func (m *machine) patience(d time.Duration) time.Duration {
	if m.strict() {
		return d
	}
	return min(d, developmentWait)
}
