// SPDX-License-Identifier: Apache-2.0

package main

import (
	"io"
	"strings"
	"testing"
)

func TestFlags(t *testing.T) {
	t.Parallel()
	for want, args := range map[string][]string{
		"want unix:PATH":          {"--bus", "tcp:1", "--pool", "p", "--run", "r"},
		"--pool is missing":       {"--bus", "unix:b", "--run", "r"},
		"--run is missing":        {"--bus", "unix:b", "--pool", "p"},
		"want auto, kvm or tcg":   {"--bus", "unix:b", "--pool", "p", "--run", "r", "--accel", "xen"},
		"want CODE,VARS":          {"--bus", "unix:b", "--pool", "p", "--run", "r", "--firmware-uefi", "x"},
		"unknown flag: --nothing": {"--nothing"},
		"unknown command":         {"x"},
		"executable file":         {"--bus", "unix:b", "--pool", "p", "--run", t.TempDir(), "--qemu", "no-such-qemu"},
	} {
		cmd := command()
		cmd.SetArgs(args)
		cmd.SetOut(io.Discard)
		if err := cmd.ExecuteContext(t.Context()); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%q: %v, want %q", args, err, want)
		}
	}
}
