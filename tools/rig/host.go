// SPDX-License-Identifier: Apache-2.0

package rig

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"runtime"
	"syscall"

	"github.com/davit-dpu/davit/tools/packages"
)

// systemEmulators names QEMU's programs by GOARCH.
var systemEmulators = map[string]string{packages.ArchAMD64: "qemu-system-x86_64", packages.ArchARM64: "qemu-system-aarch64"}

// StartHost starts davit-hostd: the host's only part of ours. Everything else
// on the host is started by it when the card says so. Killed with SIGKILL it
// leaves its VMMs running; they are adopted by the next StartHost.
func (s *Server) StartHost(ctx context.Context) error {
	if err := os.MkdirAll(s.HostDir(), 0o700); err != nil {
		return err
	}
	cmd, err := s.HostCommand()
	if err != nil {
		return err
	}
	p, err := s.start("hostd", cmd, syscall.SIGTERM)
	if err != nil {
		return err
	}
	s.Host = p
	return waitSocket(ctx, p, s.HostDoor())
}

// HostCommand is what an operator of the host would have in a unit file. The
// environment and leading arguments are those of a QEMU that may lie in an
// unpacked tree.
func (s *Server) HostCommand() (*exec.Cmd, error) {
	emulator := systemEmulators[runtime.GOARCH]
	qemu := s.set.Command(emulator)
	if qemu.Err != nil {
		return nil, qemu.Err
	}
	accel := "tcg"
	if s.cfg.KVM {
		accel = "kvm"
	}
	args := []string{"--accel", accel, "--bus", "unix:" + s.cfg.busSocket, "--pool", s.pool, "--run", s.HostDir(), "--qemu", qemu.Path, "--kill-on-exit"}
	for _, a := range qemu.Args[1:] {
		args = append(args, "--qemu-arg", a)
	}
	if fw, err := s.set.Firmware(runtime.GOARCH); err == nil {
		args = append(args, "--firmware-uefi", fw.Code+","+fw.Vars)
	} else if !errors.Is(err, packages.ErrMissing) {
		return nil, fmt.Errorf("firmware for instances: %w", err)
	}
	cmd := exec.Command(s.cfg.Hostd, args...)
	cmd.Env = qemu.Env
	return cmd, nil
}
