// SPDX-License-Identifier: Apache-2.0

package main

import (
	"context"
	"fmt"
	"io"
	"os"
	"time"

	"github.com/spf13/cobra"

	"github.com/davit-dpu/davit/firmware/spec"
	"github.com/davit-dpu/davit/tools/davit/terminal"
)

func instanceCommand(o *options) *cobra.Command {
	cmd := &cobra.Command{Use: "instance", Short: "The card's instances: create, list, show, start, stop, delete"}
	named := func(use, short string, run func(ctx context.Context, w io.Writer, name string) error) *cobra.Command {
		return &cobra.Command{Use: use + " NAME", Short: short, Args: exactly(1),
			RunE: func(cmd *cobra.Command, args []string) error {
				return run(cmd.Context(), cmd.OutOrStdout(), args[0])
			}}
	}
	cmd.AddCommand(
		instanceListCommand(o), instanceCreateCommand(o), instanceStartCommand(o), instanceStopCommand(o),
		named("show", "All about one instance", func(ctx context.Context, w io.Writer, name string) error {
			st, err := o.show(ctx, name)
			if err != nil {
				return err
			}
			return o.print(w, st, func(w io.Writer) { printInstance(w, st) })
		}),
		named("delete", "Forget a stopped instance; its volumes stay", func(ctx context.Context, w io.Writer, name string) error {
			if err := o.do(ctx, "instance.delete", map[string]string{"name": name}, nil); err != nil {
				return err
			}
			fmt.Fprintf(w, "instance %s is deleted; its volumes stay on the card\n", name)
			return nil
		}),
	)
	return cmd
}

func (o *options) show(ctx context.Context, name string) (*spec.InstanceStatus, error) {
	var st spec.InstanceStatus
	if err := o.do(ctx, "instance.show", map[string]string{"name": name}, &st); err != nil {
		return nil, err
	}
	return &st, nil
}

func instanceListCommand(o *options) *cobra.Command {
	return &cobra.Command{
		Use: "list", Short: "All instances of the card", Args: exactly(0),
		RunE: func(cmd *cobra.Command, _ []string) error {
			var list []spec.InstanceStatus
			if err := o.do(cmd.Context(), "instance.list", nil, &list); err != nil {
				return err
			}
			return o.print(cmd.OutOrStdout(), list, func(w io.Writer) {
				fmt.Fprintln(w, "NAME\tPHASE\tWANTED\tFOR\tVCPUS\tMEMORY\tRESTARTS\tREASON")
				for _, st := range list {
					fmt.Fprintf(w, "%s\t%s\t%s\t%s\t%d\t%s\t%d\t%s\n", st.Spec.Name, st.Phase, st.Desired, ago(st.Since, time.Now()),
						st.Spec.VCPUs, st.Spec.Memory, st.Restarts, st.Reason)
				}
			})
		},
	}
}

func instanceCreateCommand(o *options) *cobra.Command {
	return &cobra.Command{
		Use: "create FILE", Short: "Create an instance from a YAML file (- for standard input); it is not started", Args: exactly(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			text, err := readInput(cmd, args[0])
			if err != nil {
				return err
			}
			if _, err := spec.ParseInstance(text); err != nil {
				return err // the card would say the same; this is sooner
			}
			var st spec.InstanceStatus
			if err := o.do(cmd.Context(), "instance.create", map[string]string{"yaml": string(text)}, &st); err != nil {
				return err
			}
			return o.print(cmd.OutOrStdout(), st, func(w io.Writer) {
				fmt.Fprintf(w, "instance %s is created; start it with davit instance start %s\n", st.Spec.Name, st.Spec.Name)
			})
		},
	}
}

func readInput(cmd *cobra.Command, path string) ([]byte, error) {
	in := cmd.InOrStdin()
	if path != "-" {
		f, err := os.Open(path)
		if err != nil {
			return nil, err
		}
		defer f.Close()
		in = f
	}
	text, err := io.ReadAll(io.LimitReader(in, spec.MaxDocument+1))
	if err != nil {
		return nil, err
	}
	if len(text) > spec.MaxDocument {
		return nil, fmt.Errorf("%s: larger than %d bytes", path, spec.MaxDocument)
	}
	return text, nil
}

func instanceStartCommand(o *options) *cobra.Command {
	return &cobra.Command{
		Use: "start NAME", Short: "Start an instance and wait until it runs", Args: exactly(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			if err := o.do(cmd.Context(), "instance.start", map[string]string{"name": args[0]}, nil); err != nil {
				return err
			}
			return o.follow(cmd, args[0], 2*time.Minute, func(st *spec.InstanceStatus) (bool, error) {
				if st.Phase == spec.PhaseFailed {
					return true, fmt.Errorf("instance %s failed: %s", st.Spec.Name, st.Reason)
				}
				return st.Phase == spec.PhaseRunning, nil
			})
		},
	}
}

func instanceStopCommand(o *options) *cobra.Command {
	var grace time.Duration
	var force bool
	cmd := &cobra.Command{
		Use: "stop NAME", Short: "Stop an instance: ask its guest, then force it", Args: exactly(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			if force {
				grace = 0
			}
			if grace < 0 || grace%time.Second != 0 {
				return &usageError{fmt.Errorf("--grace %v: want whole seconds", grace)}
			}
			wish := map[string]any{"name": args[0], "graceSeconds": uint32(grace / time.Second)}
			if err := o.do(cmd.Context(), "instance.stop", wish, nil); err != nil {
				return err
			}
			return o.follow(cmd, args[0], grace+time.Minute, func(st *spec.InstanceStatus) (bool, error) {
				return st.Phase == spec.PhaseStopped || st.Phase == spec.PhaseFailed, nil
			})
		},
	}
	cmd.Flags().DurationVar(&grace, "grace", 30*time.Second, "time for the guest's own power-off")
	cmd.Flags().BoolVar(&force, "force", false, "kill the VMM at once")
	return cmd
}

// follow prints each new phase until done says that it is over.
func (o *options) follow(cmd *cobra.Command, name string, limit time.Duration, done func(*spec.InstanceStatus) (bool, error)) error {
	ctx, cancel := context.WithTimeoutCause(cmd.Context(), limit, fmt.Errorf("instance %s did not get there in %v; see davit instance show %s", name, limit, name))
	defer cancel()
	tick := time.NewTicker(250 * time.Millisecond)
	defer tick.Stop()
	last := ""
	for {
		st, err := o.show(ctx, name)
		if err != nil {
			return err
		}
		if now := string(st.Phase) + ": " + st.Reason; now != last && !o.json {
			fmt.Fprintf(cmd.OutOrStdout(), "%s %s\n", name, terminal.Escape(now))
			last = now
		}
		if over, err := done(st); over || err != nil {
			if o.json && err == nil {
				return o.print(cmd.OutOrStdout(), st, nil)
			}
			return err
		}
		select {
		case <-tick.C:
		case <-ctx.Done():
			return context.Cause(ctx)
		}
	}
}

func printInstance(w io.Writer, st *spec.InstanceStatus) {
	fmt.Fprintf(w, "instance\t%s\n", st.Spec.Name)
	fmt.Fprintf(w, "state\t%s (%s) for %s; wanted %s\n", st.Phase, st.Reason, ago(st.Since, time.Now()), st.Desired)
	fmt.Fprintf(w, "size\t%d vCPUs, %s\n", st.Spec.VCPUs, st.Spec.Memory)
	if st.Spec.Boot.Kernel != "" {
		fmt.Fprintf(w, "boot\tkernel %s, initrd %s, cmdline %q\n", st.Spec.Boot.Kernel, st.Spec.Boot.Initrd, st.Spec.Boot.Cmdline)
	} else {
		fmt.Fprintf(w, "boot\tfirmware %s and the first volume\n", orElse(string(st.Spec.Boot.Firmware), string(spec.FirmwareBIOS)))
	}
	if st.Generation != "" {
		fmt.Fprintf(w, "vmm\tgeneration %s, memory at %s of the host's pool\n", st.Generation, st.PoolOffset)
	}
	fmt.Fprintf(w, "restarts\t%d, policy %s\n", st.Restarts, orElse(string(st.Spec.Restart), string(spec.RestartNever)))
	for _, d := range st.Devices {
		printDevice(w, "disk "+d.Name, &d)
	}
}
