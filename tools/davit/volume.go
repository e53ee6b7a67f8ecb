// SPDX-License-Identifier: Apache-2.0

package main

import (
	"cmp"
	"context"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"strings"

	"github.com/spf13/cobra"

	"github.com/davit-dpu/davit/firmware/spec"
)

func volumeCommand(o *options) *cobra.Command {
	cmd := &cobra.Command{Use: "volume", Short: "The card's volumes: list, show, create, delete, limit, digest"}
	cmd.AddCommand(
		volumeListCommand(o), volumeShowCommand(o), volumeCreateCommand(o), volumeDeleteCommand(o),
		volumeLimitCommand(o), volumeDigestCommand(o),
	)
	return cmd
}

// kindFlag adds the flag that tells volumes of the same name apart.
func kindFlag(cmd *cobra.Command, kind *string) {
	cmd.Flags().StringVar(kind, "kind", string(spec.VolumeFile), "file, memory or overlay")
}

func volumeListCommand(o *options) *cobra.Command {
	return &cobra.Command{
		Use: "list", Short: "All volumes of the card", Args: exactly(0),
		RunE: func(cmd *cobra.Command, _ []string) error {
			var list []spec.VolumeStatus
			if err := o.do(cmd.Context(), "volume.list", nil, &list); err != nil {
				return err
			}
			return o.print(cmd.OutOrStdout(), list, func(w io.Writer) {
				fmt.Fprintln(w, "NAME\tKIND\tBASE\tSIZE\tALLOCATED\tINSTANCES")
				for _, v := range list {
					fmt.Fprintf(w, "%s\t%s\t%s\t%s\t%s\t%s\n", v.Name, v.Kind, cmp.Or(v.Base, "-"), v.Size, v.Allocated, users(&v))
				}
			})
		},
	}
}

func users(v *spec.VolumeStatus) string {
	var names []string
	for _, u := range v.Uses {
		names = append(names, u.Instance)
	}
	return cmp.Or(strings.Join(names, ","), "-")
}

func volumeShowCommand(o *options) *cobra.Command {
	var kind string
	cmd := &cobra.Command{
		Use: "show NAME", Short: "All about one volume: who uses it, its limits, what it did", Args: exactly(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			var v spec.VolumeStatus
			if err := o.do(cmd.Context(), "volume.show", map[string]string{"kind": kind, "name": args[0]}, &v); err != nil {
				return err
			}
			return o.print(cmd.OutOrStdout(), v, func(w io.Writer) { printVolume(w, &v) })
		},
	}
	kindFlag(cmd, &kind)
	return cmd
}

func printVolume(w io.Writer, v *spec.VolumeStatus) {
	fmt.Fprintf(w, "volume\t%s, kind %s\n", v.Name, v.Kind)
	if v.Kind == spec.VolumeOverlay {
		fmt.Fprintf(w, "base\t%s\n", cmp.Or(v.Base, "none: the volume that it was made over is gone, or was changed"))
	}
	fmt.Fprintf(w, "size\t%s, of which %s are allocated\n", v.Size, v.Allocated)
	if len(v.Uses) == 0 {
		fmt.Fprintln(w, "used by\tno instance")
	}
	for _, u := range v.Uses {
		access := "reads and writes"
		if u.ReadOnly {
			access = "only reads"
		}
		fmt.Fprintf(w, "used by\tinstance %s, which %s; limits: %s\n", u.Instance, access, u.Limits)
		if u.Device != nil {
			printDevice(w, "device", u.Device)
		}
	}
}

// printDevice shows a device under a label, with a line for each of its queues.
func printDevice(w io.Writer, label string, d *spec.DeviceStatus) {
	fmt.Fprintf(w, "%s\t%s %s, %s (%s)\n", label, d.Kind, d.Capacity, d.Phase, d.Reason)
	if d.Limits != nil {
		fmt.Fprintf(w, "  limits\t%s\n", d.Limits)
	}
	for i, q := range d.Queues {
		fmt.Fprintf(w, "  queue %d\t%d reads %d B, %d writes %d B, %d flushes, %d discards, %d errors, %d waited for the limits\n", i,
			q.Reads, q.ReadBytes, q.Writes, q.WriteBytes, q.Flushes, q.Discards, q.Errors, q.Waited)
	}
}

func volumeCreateCommand(o *options) *cobra.Command {
	var size spec.Bytes
	cmd := &cobra.Command{
		Use: "create NAME --size BYTES", Short: "Create an empty file volume", Args: exactly(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			if size == 0 {
				return &usageError{errors.New("--size: a volume needs one")}
			}
			var v spec.VolumeStatus
			if err := o.do(cmd.Context(), "volume.create", map[string]any{"name": args[0], "size": size}, &v); err != nil {
				return err
			}
			return o.print(cmd.OutOrStdout(), v, func(w io.Writer) { fmt.Fprintf(w, "volume %s of %s is created\n", v.Name, v.Size) })
		},
	}
	cmd.Flags().TextVar(&size, "size", spec.Bytes(0), "size, a multiple of 512, for example 10GiB")
	return cmd
}

func volumeDeleteCommand(o *options) *cobra.Command {
	var kind string
	cmd := &cobra.Command{
		Use: "delete NAME", Short: "Delete a volume, with all that is in it, that no instance names", Args: exactly(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			if err := o.do(cmd.Context(), "volume.delete", map[string]string{"kind": kind, "name": args[0]}, nil); err != nil {
				return err
			}
			fmt.Fprintf(cmd.OutOrStdout(), "volume %s is deleted\n", args[0])
			return nil
		},
	}
	kindFlag(cmd, &kind)
	return cmd
}

func volumeLimitCommand(o *options) *cobra.Command {
	var l spec.Limits
	var none bool
	cmd := &cobra.Command{
		Use: "limit INSTANCE VOLUME", Short: "Replace the limits of an instance's volume, at once if it runs", Args: exactly(2),
		RunE: func(cmd *cobra.Command, args []string) error {
			wish := map[string]any{"instance": args[0], "volume": args[1]}
			limits := &l
			switch {
			case none && l != spec.Limits{}:
				return &usageError{errors.New("--none goes without other limits")}
			case none:
				limits = nil
			default:
				if err := l.Validate(); err != nil {
					return &usageError{fmt.Errorf("%w; --none removes them", err)}
				}
				wish["limits"] = limits
			}
			if err := o.do(cmd.Context(), "volume.limit", wish, nil); err != nil {
				return err
			}
			fmt.Fprintf(cmd.OutOrStdout(), "limits of volume %s of instance %s: %s\n", args[1], args[0], limits)
			return nil
		},
	}
	cmd.Flags().Uint64Var(&l.IOPS, "iops", 0, "operations a second")
	cmd.Flags().TextVar(&l.Bandwidth, "bandwidth", spec.Bytes(0), "bytes a second, for example 50MiB")
	cmd.Flags().TextVar(&l.Burst, "burst", spec.Duration(0), "how long unused operations and bytes are saved up")
	cmd.Flags().Lookup("burst").DefValue = spec.DefaultBurst.String() // what 0 means
	cmd.Flags().BoolVar(&none, "none", false, "remove all limits")
	return cmd
}

func volumeDigestCommand(o *options) *cobra.Command {
	var kind string
	var offset, length spec.Bytes
	cmd := &cobra.Command{
		Use: "digest NAME", Short: "SHA-256 of a range of a volume, as the card's storage holds it now", Args: exactly(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			sum, err := o.volumeDigest(cmd.Context(), kind, args[0], offset, length)
			if err != nil {
				return err
			}
			fmt.Fprintln(cmd.OutOrStdout(), hex.EncodeToString(sum))
			return nil
		},
	}
	kindFlag(cmd, &kind)
	cmd.Flags().TextVar(&offset, "offset", spec.Bytes(0), "first byte")
	cmd.Flags().TextVar(&length, "length", 4*spec.KiB, "number of bytes")
	return cmd
}

func (o *options) volumeDigest(ctx context.Context, kind, name string, offset, length spec.Bytes) ([]byte, error) {
	var sum []byte
	err := o.do(ctx, "volume.digest", map[string]any{"kind": kind, "name": name, "offset": offset, "length": length}, &sum)
	return sum, err
}
