// SPDX-License-Identifier: Apache-2.0

package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"

	"github.com/spf13/cobra"

	"github.com/davit-dpu/davit/initramfs/image"
	"github.com/davit-dpu/davit/secureboot/uki"
	"github.com/davit-dpu/davit/tools/packages"
	"github.com/davit-dpu/davit/tools/rig"
)

func doctorCommand(o *options) *cobra.Command {
	return &cobra.Command{
		Use: "doctor", Short: "What this machine lacks for the emulated server, and the command that mends it", Args: exactly(0),
		RunE: func(cmd *cobra.Command, _ []string) error {
			cache, err := packages.Open(packages.Config{})
			if err != nil {
				return err
			}
			findings := cache.Check(cmd.Context(), append(packages.Default(), packages.TPM2Tools)...)
			missing := 0
			for _, f := range findings {
				if f.Status == packages.StatusMissing {
					missing++
				}
			}
			err = o.print(cmd.OutOrStdout(), findings, func(w io.Writer) {
				for _, f := range findings {
					fmt.Fprintln(w, f)
				}
			})
			if err == nil && missing > 0 {
				err = fmt.Errorf("%d things are missing; each line above has the command that mends it", missing)
			}
			return err
		},
	}
}

func fetchCommand() *cobra.Command {
	var update bool
	cmd := &cobra.Command{
		Use: "fetch", Short: "Fetch what the emulated server and its tests need, so that they work offline", Args: exactly(0),
		RunE: func(cmd *cobra.Command, _ []string) error {
			cache, err := packages.Open(packages.Config{})
			if err != nil {
				return err
			}
			show := newProgress(cmd.OutOrStdout())
			fetch := func(needs ...packages.Need) error {
				if update {
					return cache.Update(cmd.Context(), show.fetch, needs...)
				}
				_, err := cache.Ensure(cmd.Context(), show.fetch, needs...)
				return err
			}
			if err := fetch(packages.Default()...); err != nil {
				return err
			}
			for _, n := range []packages.Need{packages.TPM2Tools, packages.NBDKit} {
				// The tests work without, and say so.
				if err := fetch(n); err != nil && !errors.Is(err, packages.ErrMissing) {
					return err
				}
			}
			return nil
		},
	}
	cmd.Flags().BoolVar(&update, "update", false, "fetch the newest versions, also of what is here")
	return cmd
}

func imageCommand(o *options) *cobra.Command {
	cmd := &cobra.Command{Use: "image", Short: "The card's image: build it, show what is in one"}
	cmd.AddCommand(
		&cobra.Command{Use: "build", Short: "Build and sign the image of the emulated card", Args: exactly(0),
			RunE: func(cmd *cobra.Command, _ []string) error { return o.buildImage(cmd.Context(), cmd.OutOrStdout()) }},
		&cobra.Command{Use: "show FILE", Short: "List the content of a signed image", Args: exactly(1),
			RunE: func(cmd *cobra.Command, args []string) error { return o.showImage(cmd.OutOrStdout(), args[0]) }},
	)
	return cmd
}

func (o *options) buildImage(ctx context.Context, w io.Writer) error {
	ws, err := findWorkshop()
	if err != nil {
		return err
	}
	show := newProgress(w)
	if o.json {
		show = newProgress(os.Stderr)
	}
	var p prepared
	if err := rig.Run(ctx, ws.prepare(&p, show), show.event); err != nil {
		return err
	}
	built := p.image
	return o.print(w, built.Manifest, func(w io.Writer) {
		fmt.Fprintf(w, "%s\t%.1f MiB\n", built.UKI, mib(built.Size))
		if err := built.Manifest.Print(w); err != nil {
			fmt.Fprintln(w, err)
		}
	})
}

func (o *options) showImage(w io.Writer, path string) error {
	data, err := os.ReadFile(path)
	if err != nil {
		return err
	}
	img, err := uki.Open(data)
	if err != nil {
		return fmt.Errorf("%s: %w", filepath.Base(path), err)
	}
	payload, err := image.FromUKI(img)
	if err != nil {
		return err
	}
	manifest, err := image.Inspect(payload)
	if err != nil {
		return err
	}
	var printed error
	return errors.Join(o.print(w, manifest, func(w io.Writer) { printed = manifest.Print(w) }), printed)
}
