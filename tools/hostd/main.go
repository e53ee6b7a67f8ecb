// SPDX-License-Identifier: Apache-2.0

package main

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"os/signal"
	"runtime"
	"strings"
	"syscall"

	"github.com/spf13/cobra"

	"github.com/davit-dpu/davit/firmware/bus"
	"github.com/davit-dpu/davit/firmware/spec"
	"github.com/davit-dpu/davit/tools/host"
)

func main() {
	ctx, stop := signal.NotifyContext(context.Background(), syscall.SIGTERM, syscall.SIGINT)
	defer stop()
	if err := command().ExecuteContext(ctx); err != nil {
		fmt.Fprintln(os.Stderr, "davit-hostd:", err)
		os.Exit(1)
	}
}

func command() *cobra.Command {
	var busAddr, firmware, accel string
	cfg := host.Config{Log: slog.New(slog.NewTextHandler(os.Stderr, nil)), Build: spec.Version}
	cmd := &cobra.Command{
		Use:           "davit-hostd --bus unix:PATH --pool FILE --run DIR",
		Short:         "Run VMMs on this host as its card orders",
		Args:          cobra.NoArgs,
		SilenceUsage:  true,
		SilenceErrors: true,
		RunE: func(cmd *cobra.Command, _ []string) error {
			path, ok := strings.CutPrefix(busAddr, "unix:")
			switch {
			case !ok || path == "":
				return fmt.Errorf("--bus %q: want unix:PATH", busAddr)
			case cfg.Pool == "":
				return errors.New("--pool is missing: the file of the memory pool")
			case cfg.RunDir == "":
				return errors.New("--run is missing: a directory for sockets and records")
			}
			cfg.Dial, cfg.Accel = bus.DialUnix(path), host.Accel(accel)
			switch cfg.Accel {
			case host.AccelAuto, host.AccelKVM, host.AccelTCG:
			default:
				return fmt.Errorf("--accel %q: want auto, kvm or tcg", accel)
			}
			if firmware != "" {
				if cfg.UEFICode, cfg.UEFIVars, ok = strings.Cut(firmware, ","); !ok {
					return fmt.Errorf("--firmware-uefi %q: want CODE,VARS", firmware)
				}
			}
			return run(cmd.Context(), cfg)
		},
	}
	f := cmd.Flags()
	f.StringVar(&busAddr, "bus", "", "where the card is: unix:PATH of its virtio-serial port's or bus listener's socket")
	f.StringVar(&cfg.Pool, "pool", "", "file of the memory pool that the card can reach")
	f.StringVar(&cfg.RunDir, "run", "", "directory for sockets and records; made if missing")
	f.StringVar(&cfg.QEMU, "qemu", defaultQEMU(), "QEMU program, 10.0 or newer")
	f.StringArrayVar(&cfg.QEMUArgs, "qemu-arg", nil, "argument put before all others; repeat for more")
	f.StringVar(&accel, "accel", string(host.AccelAuto), "auto, kvm or tcg")
	f.StringVar(&firmware, "firmware-uefi", "", "CODE,VARS: images for instances with UEFI firmware")
	f.BoolVar(&cfg.KillOnExit, "kill-on-exit", false, "kill all VMMs at the end instead of leaving them to the next davit-hostd")
	return cmd
}

func run(ctx context.Context, cfg host.Config) error {
	h, err := host.Open(ctx, cfg)
	if err != nil {
		return err
	}
	err = h.Run(ctx)
	if errors.Is(err, context.Canceled) {
		err = nil // told to stop
	}
	return errors.Join(err, h.Close())
}

// defaultQEMU emulates this machine's own architecture.
func defaultQEMU() string {
	if runtime.GOARCH == "arm64" {
		return "qemu-system-aarch64"
	}
	return "qemu-system-x86_64"
}
