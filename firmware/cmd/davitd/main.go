// SPDX-License-Identifier: Apache-2.0

package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/signal"
	"path/filepath"
	"syscall"

	"github.com/spf13/pflag"

	"github.com/davit-dpu/davit/board/detect"
	"github.com/davit-dpu/davit/firmware/agent"
	"github.com/davit-dpu/davit/firmware/spec"
	"github.com/davit-dpu/davit/firmware/supervise"
	"github.com/davit-dpu/davit/firmware/supervise/initctl"
)

// flags are the paths that differ between a card and a loopback.
type flags struct {
	board, config, state, run, tpm, vcard, pool string
	disks                                       []string
	lenient                                     bool
}

func main() {
	f, err := parse(os.Args[1:])
	switch {
	case errors.Is(err, pflag.ErrHelp):
		return
	case err != nil:
		fmt.Fprintf(os.Stderr, "davitd: %v\n", err)
		os.Exit(2)
	}
	ctx, stop := signal.NotifyContext(context.Background(), syscall.SIGTERM, syscall.SIGINT)
	defer stop()
	if err := run(ctx, f); err != nil {
		fmt.Fprintf(os.Stderr, "davitd: %v\n", err)
		os.Exit(1)
	}
}

// parse reads the command line. It prints the usage when that is asked for.
func parse(args []string) (flags, error) {
	var f flags
	fs := pflag.NewFlagSet("davitd", pflag.ContinueOnError)
	fs.StringVar(&f.board, "board", "", "board; empty: the one in the configuration, or detected")
	fs.StringVar(&f.config, "config", "/etc/davit/config.yaml", "the card's configuration")
	fs.StringVar(&f.state, "state", "/var/lib/davit", "folder that outlives reboots")
	fs.StringVar(&f.run, "run", "/run/davit", "folder that does not")
	fs.StringVar(&f.tpm, "tpm", "", "TPM device, or socket of swtpm; empty: the board's")
	fs.StringVar(&f.vcard, "vcard", "/davit/vcard", "the vcard program")
	fs.StringVar(&f.pool, "pool", "", "loopback: the host's memory pool")
	fs.StringArrayVar(&f.disks, "local-disk", nil, "loopback: offer this file volume to any VMM here as vhost-user-blk, on RUN/disks/VOLUME.sock; repeat for more")
	fs.BoolVar(&f.lenient, "lenient-sandbox", false, "loopback: run the vcard with what confinement this user can have")
	if err := fs.Parse(args); err != nil {
		return flags{}, err
	}
	if fs.NArg() > 0 {
		return flags{}, fmt.Errorf("argument %q: davitd takes only flags", fs.Arg(0))
	}
	return f, nil
}

func run(ctx context.Context, f flags) error {
	ready, err := supervise.Notifier()
	if err != nil {
		return err
	}
	cfg, err := assemble(f)
	if err != nil {
		return err
	}
	cfg.Ready = ready
	return agent.Run(ctx, cfg)
}

// assemble turns flags and board into what the agent works with.
func assemble(f flags) (agent.Config, error) {
	name := f.board
	if name == "" {
		text, err := os.ReadFile(f.config)
		if err != nil {
			return agent.Config{}, err
		}
		card, err := spec.ParseCardConfig(text)
		if err != nil {
			return agent.Config{}, err
		}
		name = card.Board
	}
	b, err := detect.Named(name)
	if name == "" {
		b, err = detect.Detect(os.DirFS("/sys"))
	}
	if err != nil {
		return agent.Config{}, err
	}
	cfg := agent.Config{
		Board: b, ConfigFile: f.config, StateDir: f.state, RunDir: f.run, TPM: f.tpm,
		Vcard: f.vcard, Pool: f.pool, Disks: f.disks, Version: spec.Version, Output: os.Stderr,
	}
	if cfg.TPM == "" {
		cfg.TPM = b.TPM
	}
	if b.StatePartition != "" && (f.lenient || f.pool != "" || len(f.disks) > 0) {
		return agent.Config{}, fmt.Errorf("--lenient-sandbox, --pool and --local-disk are for the loopback board, not for %s", b.Name)
	}
	if f.lenient {
		cfg.VcardArgs = append(cfg.VcardArgs, "--sandbox=available")
	}
	if b.StatePartition != "" { // a card that init booted
		cfg.EventLog = filepath.Join(f.run, "eventlog")
		cfg.Firmware = "/sys/kernel/security/tpm0/binary_bios_measurements"
		cfg.BootReport = filepath.Join(f.run, "boot.json")
		cfg.InitSocket = initctl.SocketPath
		cfg.ResolvConf = filepath.Join(f.run, "resolv.conf")
	}
	return cfg, nil
}
