// SPDX-License-Identifier: Apache-2.0

package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"strings"

	"github.com/spf13/cobra"
	"golang.org/x/term"

	"github.com/davit-dpu/davit/firmware/mailbox/door"
	"github.com/davit-dpu/davit/tools/davit/terminal"
)

// leave is the key that ends a console: Ctrl-], as in telnet and virsh.
const leave = 0x1d

func consoleCommand(o *options) *cobra.Command {
	var raw bool
	cmd := &cobra.Command{
		Use: "console card|instance/NAME", Short: "Join a serial console; Ctrl-] leaves it", Args: exactly(1),
		Long: "Join a serial console; Ctrl-] leaves it.\n\n" +
			"What draws passes: colours, the cursor, the other screen. What would reach into the\n" +
			"terminal is dropped: clipboard, title, printer, mouse, and questions that the terminal\n" +
			"answers by typing.",
		RunE: func(cmd *cobra.Command, args []string) error {
			contact, err := o.contact()
			if err != nil {
				return err
			}
			if args[0] == "card" {
				if contact.CardConsole == "" {
					return errors.New("this card's serial line is not on this machine: use a terminal program on its device (115200 8N1)")
				}
				conn, err := net.Dial("unix", contact.CardConsole)
				if err != nil {
					return fmt.Errorf("the card's serial line: %w", err)
				}
				defer conn.Close()
				return join(cmd, conn, raw, func(bool) error { return nil })
			}
			name, ok := strings.CutPrefix(args[0], "instance/")
			if !ok {
				return &usageError{fmt.Errorf("console %q: want card or instance/NAME", args[0])}
			}
			client, err := contact.Dial(cmd.Context())
			if err != nil {
				return err
			}
			defer client.Close()
			stream, err := client.Stream(cmd.Context(), "instance.console", map[string]string{"name": name}, "")
			if err != nil {
				return err
			}
			return join(cmd, stream, raw, func(ended bool) error {
				if !ended {
					return nil // we leave; closing the connection tells the card
				}
				_, err := stream.Wait() // why the card ended it
				return err
			})
		},
	}
	cmd.Flags().BoolVar(&raw, "raw", false, "pass everything on: only for a console whose every writer you trust")
	return cmd
}

// join connects this terminal, or standard input and output, with a console
// until the user leaves or the console ends; end is then told which. Output is
// filtered also where it goes to a file: somebody will show that on a terminal.
func join(cmd *cobra.Command, console io.ReadWriter, raw bool, end func(ended bool) error) error {
	out := cmd.OutOrStdout()
	if !raw {
		out = terminal.NewFilter(out)
	}
	if in, ok := cmd.InOrStdin().(*os.File); ok && term.IsTerminal(int(in.Fd())) {
		fmt.Fprintln(cmd.ErrOrStderr(), "joined; Ctrl-] leaves")
		old, err := term.MakeRaw(int(in.Fd()))
		if err != nil {
			return err
		}
		defer term.Restore(int(in.Fd()), old)
	}
	left, ended := make(chan error, 1), make(chan error, 1)
	go func() { left <- typeInto(console, cmd.InOrStdin()) }()
	go func() {
		_, err := io.Copy(out, console)
		ended <- err
	}()
	select {
	case err := <-left:
		return errors.Join(err, end(false))
	case err := <-ended:
		return errors.Join(err, end(true))
	case <-cmd.Context().Done():
		return end(false)
	}
}

// typeInto copies keys until the leaving one. Input that ends (a script's)
// leaves the console joined, so that its output is still seen.
func typeInto(console io.Writer, in io.Reader) error {
	buf := make([]byte, 1024)
	for {
		n, err := in.Read(buf)
		for i := range n {
			if buf[i] == leave {
				_, err := console.Write(buf[:i])
				return err
			}
		}
		if n > 0 {
			if _, err := console.Write(buf[:n]); err != nil {
				return err
			}
		}
		if errors.Is(err, io.EOF) {
			select {}
		}
		if err != nil {
			return err
		}
	}
}

func logCommand(o *options) *cobra.Command {
	var lines uint32
	var follow bool
	cmd := &cobra.Command{
		Use: "log", Short: "The card's log", Args: exactly(0),
		RunE: func(cmd *cobra.Command, _ []string) error {
			contact, err := o.contact()
			if err != nil {
				return err
			}
			client, err := contact.Dial(cmd.Context())
			if err != nil {
				return err
			}
			defer client.Close()
			return tail(cmd.Context(), client, cmd.OutOrStdout(), lines, follow)
		},
	}
	cmd.Flags().Uint32VarP(&lines, "lines", "n", 50, "how many of the newest lines")
	cmd.Flags().BoolVarP(&follow, "follow", "f", false, "go on with new lines")
	return cmd
}

func tail(ctx context.Context, client *door.Client, w io.Writer, lines uint32, follow bool) error {
	stream, err := client.Stream(ctx, "log.tail", map[string]any{"lines": lines, "follow": follow}, "")
	if err != nil {
		return err
	}
	if _, err := io.Copy(terminal.NewEscaper(w), stream); err != nil {
		if ctx.Err() != nil {
			return nil // left with Ctrl-C
		}
		return err
	}
	_, err = stream.Wait()
	return err
}

func rebootCommand(o *options) *cobra.Command {
	return &cobra.Command{
		Use: "reboot", Short: "Reboot the card; its host's instances wait for their disks meanwhile", Args: exactly(0),
		RunE: func(cmd *cobra.Command, _ []string) error {
			if err := o.do(cmd.Context(), "reboot", nil, nil); err != nil {
				return err
			}
			fmt.Fprintln(cmd.OutOrStdout(), "the card reboots")
			return nil
		},
	}
}
