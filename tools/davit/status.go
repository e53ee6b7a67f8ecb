// SPDX-License-Identifier: Apache-2.0

package main

import (
	"context"
	"crypto/x509"
	"encoding/json"
	"encoding/pem"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"time"

	"github.com/spf13/cobra"

	"github.com/davit-dpu/davit/firmware/evidence"
	"github.com/davit-dpu/davit/firmware/spec"
	"github.com/davit-dpu/davit/tools/davit/terminal"
	"github.com/davit-dpu/davit/tools/rig"
)

func statusCommand(o *options) *cobra.Command {
	return &cobra.Command{
		Use: "status", Short: "What the card is doing, what was checked and what was not", Args: exactly(0),
		RunE: func(cmd *cobra.Command, _ []string) error {
			var st spec.CardStatus
			if err := o.ask(cmd.Context(), "status", nil, &st); err != nil {
				return err
			}
			return o.print(cmd.OutOrStdout(), st, func(w io.Writer) { printStatus(w, &st) })
		},
	}
}

func printStatus(w io.Writer, st *spec.CardStatus) {
	fmt.Fprintf(w, "card\t%s\t%s\n", st.Name, st.CardID)
	fmt.Fprintf(w, "board\t%s\tlifecycle %s, version %s, up %s\n", st.Board, st.Lifecycle, st.Version, ago(st.Booted, st.Time))
	fmt.Fprintf(w, "state\t%s\t%s (for %s)\n", st.Phase, st.Reason, ago(st.Since, st.Time))
	if n := st.Network; n != nil {
		fmt.Fprintf(w, "network\t%s\t%s\n", orElse(n.Interface, "no link"), leaseText(n))
	}
	fmt.Fprintf(w, "instances\t%d\t\n\n", st.Instances)
	fmt.Fprintln(w, "COMPONENT\tPHASE\tFOR\tMEMORY\tREASON")
	for _, c := range st.Components {
		fmt.Fprintf(w, "%s\t%s\t%s\t%s\t%s\n", c.Name, c.Phase, ago(c.Since, st.Time), memoryText(c.Memory), c.Reason)
	}
	fmt.Fprintln(w, "\nCHECK\tRESULT\tDETAIL")
	for _, c := range st.Checks {
		fmt.Fprintf(w, "%s\t%s\t%s\n", c.Name, c.Result, c.Detail)
	}
	for _, a := range st.Alerts {
		fmt.Fprintf(w, "alert\t%s\n", a)
	}
}

// memoryText is a resident set in MiB.
func memoryText(m spec.Bytes) string {
	if m == 0 {
		return "-"
	}
	return fmt.Sprintf("%.1fMiB", float64(m)/float64(spec.MiB))
}

// leaseText is the lease in words; what DHCP did not give is not there.
func leaseText(n *spec.Lease) string {
	if n.Address == "" {
		return fmt.Sprintf("no address: %s (%s)", n.Phase, n.Reason)
	}
	text := n.Address
	if n.Router != "" {
		text += " via " + n.Router
	}
	return fmt.Sprintf("%s, lease from %s until %s", text, n.Server, n.Expires.Format(time.RFC3339))
}

func attestCommand(o *options) *cobra.Command {
	var roots string
	var events bool
	cmd := &cobra.Command{
		Use: "attest", Short: "Ask the card for fresh evidence and appraise it", Args: exactly(0),
		RunE: func(cmd *cobra.Command, _ []string) error {
			contact, err := o.contact()
			if err != nil {
				return err
			}
			pool, err := makerRoots(roots)
			if err != nil {
				return err
			}
			ctx, cancel := context.WithTimeout(cmd.Context(), callTimeout)
			defer cancel()
			report, err := contact.Attest(ctx, pool)
			var bad *rig.NotTrusted
			if errors.As(err, &bad) {
				report = &bad.Report
			} else if err != nil {
				return err
			}
			return errors.Join(printReport(cmd.OutOrStdout(), report, o.json, events), err)
		},
	}
	cmd.Flags().StringVar(&roots, "maker-roots", "", "PEM file with the TPM makers' certificates (default: the run's own maker)")
	cmd.Flags().BoolVar(&events, "events", false, "list every event of the joined logs")
	return cmd
}

func printReport(w io.Writer, report *evidence.Report, asJSON, events bool) error {
	w = terminal.NewEscaper(w)
	if asJSON {
		enc := json.NewEncoder(w)
		enc.SetIndent("", "  ")
		return enc.Encode(report)
	}
	if events {
		if err := report.WriteEvents(w); err != nil {
			return err
		}
	}
	return report.WriteTable(w)
}

// makerRoots reads certificates; an empty path means those of the run's swtpm.
func makerRoots(path string) (*x509.CertPool, error) {
	if path == "" {
		dir, err := runDir()
		if err != nil {
			return nil, err
		}
		path = filepath.Join(dir, rig.MakerRoot)
	}
	text, err := os.ReadFile(path)
	if err != nil {
		return nil, err
	}
	pool, found := x509.NewCertPool(), 0
	for block, rest := pem.Decode(text); block != nil; block, rest = pem.Decode(rest) {
		cert, err := x509.ParseCertificate(block.Bytes)
		if err != nil {
			return nil, fmt.Errorf("%s: %w", path, err)
		}
		pool.AddCert(cert)
		found++
	}
	if found == 0 {
		return nil, fmt.Errorf("%s: no certificate in it", path)
	}
	return pool, nil
}

func enrolCommand(o *options) *cobra.Command {
	var roots, key, out string
	cmd := &cobra.Command{
		Use: "enrol HOST:PORT", Short: "Make first contact with a card and write down who it proved to be", Args: exactly(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			pool, err := makerRoots(roots)
			if err != nil {
				return err
			}
			ctx, cancel := context.WithTimeout(cmd.Context(), callTimeout)
			defer cancel()
			contact, err := rig.Enrol(ctx, args[0], pool)
			var bad *rig.NotTrusted
			if errors.As(err, &bad) {
				return errors.Join(printReport(cmd.OutOrStdout(), &bad.Report, o.json, false), err)
			}
			if err != nil {
				return err
			}
			contact.KeyFile = key
			fmt.Fprintf(cmd.OutOrStdout(), "card %s enrolled in %s\n", contact.CardID, out)
			return contact.Save(out)
		},
	}
	cmd.Flags().StringVar(&roots, "maker-roots", "", "PEM file with the TPM makers' certificates")
	cmd.Flags().StringVar(&key, "key", "", "private key file that commands to this card are signed with")
	cmd.Flags().StringVar(&out, "out", contactFile, "file to write")
	return cmd
}
