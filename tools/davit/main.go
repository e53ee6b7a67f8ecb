// SPDX-License-Identifier: Apache-2.0

package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/signal"
	"syscall"

	"github.com/spf13/cobra"

	"github.com/davit-dpu/davit/tools/davit/terminal"
)

// options are the flags that all commands share.
type options struct {
	card string
	json bool
}

func main() {
	ctx, stop := signal.NotifyContext(context.Background(), syscall.SIGTERM, syscall.SIGINT, syscall.SIGHUP)
	defer stop()
	os.Exit(run(ctx))
}

func run(ctx context.Context) int {
	err := root().ExecuteContext(ctx)
	if err == nil {
		return 0
	}
	fmt.Fprintln(os.Stderr, "davit:", terminal.Escape(err.Error())) // with what the card, and a host through it, said
	var usage *usageError
	if errors.As(err, &usage) {
		return 2
	}
	return 1
}

// usageError is a command that was typed wrongly: nothing was attempted.
type usageError struct{ error }

func root() *cobra.Command {
	var o options
	cmd := &cobra.Command{
		Use: "davit", Short: "Firmware for SmartNICs and DPUs: run it, build it, command it",
		SilenceErrors: true, SilenceUsage: true,
	}
	cmd.PersistentFlags().StringVar(&o.card, "card", "", "file that describes the card (default: the run of davit up above this folder)")
	cmd.PersistentFlags().BoolVar(&o.json, "json", false, "print JSON for machines")
	cmd.SetFlagErrorFunc(func(_ *cobra.Command, err error) error { return &usageError{err} })
	cmd.AddCommand(
		upCommand(&o), fetchCommand(), doctorCommand(&o), imageCommand(&o),
		statusCommand(&o), attestCommand(&o), instanceCommand(&o), volumeCommand(&o),
		consoleCommand(&o), logCommand(&o), rebootCommand(&o),
		enrolCommand(&o), keygenCommand(&o), signCommand(&o), sendCommand(&o),
	)
	for _, c := range append(cmd.Commands(), cmd) {
		if c.HasSubCommands() && !c.Runnable() {
			group(c)
		}
	}
	return cmd
}

// group makes a command that only holds others refuse what it does not hold;
// cobra would print its help and call that success.
func group(cmd *cobra.Command) {
	cmd.Args = cobra.ArbitraryArgs
	cmd.RunE = func(cmd *cobra.Command, args []string) error {
		if len(args) == 0 {
			return cmd.Help()
		}
		return &usageError{fmt.Errorf("unknown command %q; see %s --help", args[0], cmd.CommandPath())}
	}
}

// exactly is cobra.ExactArgs with our exit code.
func exactly(n int) cobra.PositionalArgs {
	return func(cmd *cobra.Command, args []string) error {
		if len(args) != n {
			return &usageError{fmt.Errorf("want %d arguments, got %d; usage: %s", n, len(args), cmd.UseLine())}
		}
		return nil
	}
}
