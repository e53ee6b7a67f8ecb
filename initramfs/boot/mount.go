// SPDX-License-Identifier: Apache-2.0

package boot

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"

	"golang.org/x/sys/unix"
)

// mount is one row of the mount table.
type mount struct {
	source, target, fstype string
	flags                  uintptr
	data                   string
	optional               bool // the card does without; for one, the kernel may lack this file system
}

const (
	quiet    = unix.MS_NOSUID | unix.MS_NODEV | unix.MS_NOEXEC
	quietDev = unix.MS_NOSUID | unix.MS_NOEXEC
)

// mounts are made in this order before anything else happens.
var mounts = []mount{
	{"proc", "/proc", "proc", quiet, "", false},
	{"sysfs", "/sys", "sysfs", quiet, "", false},
	{"devtmpfs", "/dev", "devtmpfs", quietDev, "mode=0755", false},
	{"devpts", "/dev/pts", "devpts", quietDev, "mode=0600,ptmxmode=0600", true},
	{"tmpfs", "/dev/shm", "tmpfs", quiet, "mode=1777", false},
	{"tmpfs", "/run", "tmpfs", quiet, "mode=0755", false},
	// Guests fill memory volumes: not at the cost of /run, which holds the event
	// log and the sockets. Without it the card still runs, with its volumes in /run.
	{"tmpfs", "/run/davit/volumes", "tmpfs", quiet, "mode=0700,size=25%", true},
	{"tmpfs", "/tmp", "tmpfs", quiet, "mode=1777", false},
	{"securityfs", "/sys/kernel/security", "securityfs", quiet, "", true},
	{"cgroup2", "/sys/fs/cgroup", "cgroup2", quiet, "", true},
	{"configfs", "/sys/kernel/config", "configfs", quiet, "", true},
	{"efivarfs", "/sys/firmware/efi/efivars", "efivarfs", quiet, "", true},
	{"pstore", "/sys/fs/pstore", "pstore", quiet, "", true},
}

// directories and links that programs expect; the root file system is made
// read-only later.
var directories = []string{"/run/davit", "/var/lib/davit"}

var links = []struct{ target, path string }{
	{"/proc/self/fd", "/dev/fd"},
	{"/run/davit/resolv.conf", "/etc/resolv.conf"},
}

// sysctl is one kernel setting; a kernel may lack any of them. One that the
// command line may have fixed is tried only.
type sysctl struct {
	name, value string
	try         bool
}

var sysctls = []sysctl{
	{"kernel/printk_devkmsg", "on", true}, // else the kernel drops our lines after ten
	{"kernel/sysrq", "0", false},          // a break on the serial line is no command
	{"kernel/kptr_restrict", "2", false},
	{"kernel/dmesg_restrict", "1", false},
	{"kernel/unprivileged_bpf_disabled", "1", false},
	{"kernel/yama/ptrace_scope", "2", false},
	{"fs/protected_symlinks", "1", false},
	{"fs/protected_hardlinks", "1", false},
}

// mountAll works through the table. A mount that is there already is fine.
func mountAll(table []mount) (detail string, err error) {
	var missing []string
	n := 0
	for _, m := range table {
		err := m.do()
		switch {
		case err == nil:
			n++
		case m.optional:
			missing = append(missing, m.target)
		default:
			return "", fmt.Errorf("mount %s on %s: %w", m.fstype, m.target, err)
		}
	}
	detail = fmt.Sprintf("%d file systems", n)
	if len(missing) > 0 {
		detail += ", without " + strings.Join(missing, " ")
	}
	return detail, nil
}

func (m mount) do() error {
	err := os.MkdirAll(m.target, 0o755)
	if err == nil {
		err = unix.Mount(m.source, m.target, m.fstype, m.flags, m.data)
	}
	if errors.Is(err, unix.EBUSY) {
		return nil
	}
	return err
}

func stepMounts(_ context.Context, m *machine) (string, error) {
	// Old permissions of files made by the kernel or the image builder must
	// not depend on what umask a boot loader or kernel left.
	unix.Umask(0o022)
	detail, err := mountAll(mounts)
	if err != nil {
		return "", err
	}
	for _, d := range directories {
		if err := os.MkdirAll(d, 0o755); err != nil {
			return "", fmt.Errorf("make directory: %w", err)
		}
	}
	for _, l := range links {
		err := os.MkdirAll(filepath.Dir(l.path), 0o755)
		if err == nil {
			err = os.Symlink(l.target, l.path)
		}
		if err != nil && !errors.Is(err, os.ErrExist) {
			return "", fmt.Errorf("make link: %w", err)
		}
	}
	if err := m.term.kmsg.open("/dev/kmsg"); err != nil {
		detail += ", " + err.Error()
	}
	return detail, nil
}

func stepSysctl(_ context.Context, m *machine) (string, error) {
	table := sysctls
	if !m.strict() {
		table = append(append([]sysctl{}, table...), sysctl{"kernel/sysrq", "1", false})
	}
	return setSysctls("/proc/sys", table)
}

func setSysctls(dir string, table []sysctl) (string, error) {
	var missing []string
	for _, s := range table {
		err := writeSetting(dir+"/"+s.name, s.value)
		if errors.Is(err, os.ErrNotExist) {
			missing = append(missing, s.name)
			continue
		}
		if err != nil && !s.try {
			return "", fmt.Errorf("set %s=%s: %w", s.name, s.value, err)
		}
	}
	if len(missing) > 0 {
		return "kernel lacks " + strings.Join(missing, " "), nil
	}
	return fmt.Sprintf("%d settings", len(table)), nil
}

// writeSetting writes a file that exists; it never makes one.
func writeSetting(path, value string) error {
	f, err := os.OpenFile(path, os.O_WRONLY|os.O_TRUNC, 0)
	if err != nil {
		return err
	}
	_, err = f.WriteString(value)
	return errors.Join(err, f.Close())
}

// stepSealRoot makes the root file system read-only: what was measured cannot
// be changed by accident, and not without the right to mount.
func stepSealRoot(_ context.Context, _ *machine) (string, error) {
	if err := unix.Mount("", "/", "", unix.MS_REMOUNT|unix.MS_RDONLY|unix.MS_NOSUID|unix.MS_NODEV, ""); err != nil {
		return "", fmt.Errorf("remount / read-only: %w", err)
	}
	return "/ is read-only", nil
}
