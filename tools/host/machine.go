// SPDX-License-Identifier: Apache-2.0

package host

import (
	"bytes"
	"context"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"time"
)

// onceMachine probes at the first order and keeps what it found. A failed probe
// is tried again.
func onceMachine(cfg Config) func(context.Context) (machine, error) {
	var (
		mu   sync.Mutex
		done *machine
	)
	return func(ctx context.Context) (machine, error) {
		mu.Lock()
		defer mu.Unlock()
		if done == nil {
			m, err := probeMachine(ctx, cfg)
			if err != nil {
				return machine{}, fmt.Errorf("look at %s: %w", cfg.QEMU, err)
			}
			cfg.Log.Info("QEMU probed", "path", cfg.QEMU, "arch", m.arch, "accel", string(m.accel), "sandbox", m.sandbox)
			done = &m
		}
		return *done, nil
	}
}

func probeMachine(ctx context.Context, cfg Config) (machine, error) {
	_, arch, _ := strings.Cut(filepath.Base(cfg.QEMU), "qemu-system-")
	if arch != "x86_64" && arch != "aarch64" {
		return machine{}, fmt.Errorf("%q is not qemu-system-x86_64 or qemu-system-aarch64", filepath.Base(cfg.QEMU))
	}
	ctx, cancel := context.WithTimeout(ctx, 20*time.Second)
	defer cancel()
	help, err := exec.CommandContext(ctx, cfg.QEMU, append(cfg.QEMUArgs[:len(cfg.QEMUArgs):len(cfg.QEMUArgs)], "-help")...).Output()
	if err != nil {
		return machine{}, err
	}
	m := machine{arch: arch, accel: cfg.Accel, sandbox: bytes.Contains(help, []byte("\n-sandbox on"))}
	if m.accel == "" || m.accel == AccelAuto {
		m.accel, err = chooseAccel(ctx, cfg, arch)
	}
	return m, err
}

// accelNote keeps a choice for the next Host on the same boot with the same QEMU.
type accelNote struct {
	Boot  string `json:"boot"`
	QEMU  string `json:"qemu"`
	Accel Accel  `json:"accel"`
}

func chooseAccel(ctx context.Context, cfg Config, arch string) (Accel, error) {
	boot, err := os.ReadFile("/proc/sys/kernel/random/boot_id")
	if err != nil {
		return "", err
	}
	want := accelNote{Boot: strings.TrimSpace(string(boot)), QEMU: cfg.QEMU, Accel: AccelKVM}
	path := filepath.Join(cfg.RunDir, "accel.json")
	var note accelNote
	if readJSON(path, &note) == nil && note.Boot == want.Boot && note.QEMU == want.QEMU && (note.Accel == AccelKVM || note.Accel == AccelTCG) {
		return note.Accel, nil
	}
	if err := probeKVM(ctx, cfg, arch); err != nil {
		cfg.Log.Info("KVM is not used", "reason", err)
		want.Accel = AccelTCG
	}
	if ctx.Err() != nil { // stopped, not answered
		return "", ctx.Err()
	}
	return want.Accel, writeJSON(path, want)
}

// kvmWait is ten times what a healthy KVM needs for what probeKVM asks of it.
const kvmWait = 3 * time.Second

// probeKVM runs a guest: a /dev/kvm that can be opened may still be unable to
// run ordinary code, as nested ones are. On x86 the guest is SeaBIOS, which
// must get through to its last message; elsewhere QEMU must make a vCPU.
func probeKVM(ctx context.Context, cfg Config, arch string) error {
	f, err := os.OpenFile("/dev/kvm", os.O_RDWR, 0)
	if err != nil {
		return err
	}
	_ = f.Close()
	ctx, cancel := context.WithTimeout(ctx, kvmWait)
	defer cancel()
	args := append(cfg.QEMUArgs[:len(cfg.QEMUArgs):len(cfg.QEMUArgs)],
		"-nodefaults", "-no-user-config", "-display", "none", "-m", "64", "-cpu", "host")
	done := "No bootable device"
	if arch == "x86_64" {
		args = append(args, "-machine", "q35,accel=kvm", "-chardev", "stdio,id=d", "-device", "isa-debugcon,iobase=0x402,chardev=d")
	} else {
		args = append(args, "-machine", "virt,accel=kvm,gic-version=host", "-S", "-qmp", "stdio")
		done = `"QMP"`
	}
	cmd := exec.CommandContext(ctx, cfg.QEMU, args...)
	out, err := cmd.StdoutPipe()
	if err != nil {
		return err
	}
	if err := cmd.Start(); err != nil {
		return err
	}
	var seen []byte
	buf := make([]byte, 4096)
	for !bytes.Contains(seen, []byte(done)) {
		n, err := out.Read(buf)
		seen = append(seen, buf[:n]...)
		if err != nil || len(seen) > 1<<20 {
			break
		}
	}
	_ = cmd.Process.Kill()
	_ = cmd.Wait() // it was killed: the status says nothing
	if !bytes.Contains(seen, []byte(done)) {
		return fmt.Errorf("a test guest did not get to %q within %s", done, kvmWait)
	}
	return nil
}
