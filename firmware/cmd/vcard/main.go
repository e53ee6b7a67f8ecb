// SPDX-License-Identifier: Apache-2.0

// The runtime would keep files of the control group open to follow its CPU
// quota: descriptors that nobody handed to this process.
//go:debug containermaxprocs=0
//go:debug updatemaxprocs=0

package main

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"os/signal"
	"syscall"
	"time"

	"github.com/spf13/pflag"

	"github.com/davit-dpu/davit/firmware/control"
	"github.com/davit-dpu/davit/firmware/spec"
	"github.com/davit-dpu/davit/firmware/vcard"
	"github.com/davit-dpu/davit/firmware/vcard/sandbox"
)

// defaultID is the uid and gid of vcards: in no distribution's range for users
// or services.
const defaultID = 64200

func main() {
	// Standard error may be a pipe whose reader is gone; that must not end I/O.
	signal.Ignore(syscall.SIGPIPE, syscall.SIGHUP)
	sink := vcard.NewLogSink(os.Stderr, 1024)
	log := slog.New(slog.NewTextHandler(sink, nil))
	err := start(log, os.Args[1:])
	if errors.Is(err, pflag.ErrHelp) {
		return
	}
	if err != nil {
		log.Error("vcard", "err", err)
	}
	sink.Close(time.Second)
	if err != nil {
		os.Exit(1)
	}
}

// start runs with what the command line says.
func start(log *slog.Logger, args []string) error {
	fs := pflag.NewFlagSet("vcard", pflag.ContinueOnError)
	mode := fs.String("sandbox", "strict", "strict: all of it or refuse to run; available: what this user can have, and report the rest")
	id := fs.Int("id", defaultID, "user and group to become when started by root")
	if err := fs.Parse(args); err != nil {
		return err
	}
	if fs.NArg() > 0 {
		return fmt.Errorf("argument %q: vcard takes only flags", fs.Arg(0))
	}
	if *mode != "strict" && *mode != "available" {
		return fmt.Errorf("--sandbox=%s: want strict or available", *mode)
	}
	ctx, stop := signal.NotifyContext(context.Background(), syscall.SIGTERM, syscall.SIGINT)
	defer stop()
	return run(ctx, log, sandbox.Config{Strict: *mode == "strict", ID: *id})
}

// run confines the process first and reads foreign bytes afterwards.
func run(ctx context.Context, log *slog.Logger, confine sandbox.Config) error {
	ln, err := control.Listen(control.ListenerFD)
	if err != nil {
		return err
	}
	checks, err := sandbox.Enter(confine)
	if err != nil {
		_ = ln.Close()
		return err
	}
	for _, c := range checks {
		if c.Result != "passed" {
			log.Warn("sandbox is incomplete", "step", c.Name, "reason", c.Detail)
		}
	}
	return vcard.New(vcard.Config{Build: spec.Version, Sandbox: checks, Log: log}).Run(ctx, ln)
}
