// SPDX-License-Identifier: Apache-2.0

package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"text/tabwriter"
	"time"

	"github.com/davit-dpu/davit/firmware/mailbox/door"
	"github.com/davit-dpu/davit/tools/davit/terminal"
	"github.com/davit-dpu/davit/tools/rig"
)

// Places in a checkout: one folder, which make clean removes.
const (
	stateDir    = ".davit"
	contactFile = "card.json"
)

// runDir is the folder of the run whose checkout or folder we are in.
func runDir() (string, error) {
	dir, err := os.Getwd()
	if err != nil {
		return "", err
	}
	for {
		run := filepath.Join(dir, stateDir, "run")
		if _, err := os.Stat(run); err == nil {
			return run, nil
		}
		parent := filepath.Dir(dir)
		if parent == dir {
			return "", errors.New("no run of the emulated server here: start one with make run (or davit up), or name a card with --card")
		}
		dir = parent
	}
}

// contact reads what is known of the card.
func (o *options) contact() (*rig.Contact, error) {
	path := o.card
	if path == "" {
		dir, err := runDir()
		if err != nil {
			return nil, err
		}
		path = filepath.Join(dir, contactFile)
	}
	c, err := rig.LoadContact(path)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, fmt.Errorf("%w; no card has been enrolled there: wait until davit up says ready, or use davit enrol", err)
	}
	return c, err
}

// callTimeout bounds one command; streams have none.
const callTimeout = 30 * time.Second

// ask sends one request for a public op and decodes its result.
func (o *options) ask(ctx context.Context, op string, args, result any) error {
	return o.call(ctx, result, func(ctx context.Context, c *door.Client) (decoder, error) { return c.Request(ctx, op, args) })
}

// do signs and sends one command and decodes its result.
func (o *options) do(ctx context.Context, op string, args, result any) error {
	return o.call(ctx, result, func(ctx context.Context, c *door.Client) (decoder, error) { return c.Do(ctx, op, args, "") })
}

type decoder interface{ Decode(v any) error }

func (o *options) call(ctx context.Context, result any, send func(context.Context, *door.Client) (decoder, error)) error {
	contact, err := o.contact()
	if err != nil {
		return err
	}
	ctx, cancel := context.WithTimeout(ctx, callTimeout)
	defer cancel()
	client, err := contact.Dial(ctx)
	if err != nil {
		return err
	}
	defer client.Close()
	receipt, err := send(ctx, client)
	if err != nil {
		return err
	}
	if result == nil {
		return nil
	}
	return receipt.Decode(result)
}

// print writes v as JSON, or calls text to print it for people.
// Nothing in it steers a terminal: cards pass on what hosts and guests say.
func (o *options) print(w io.Writer, v any, text func(w io.Writer)) error {
	w = terminal.NewEscaper(w)
	if o.json {
		enc := json.NewEncoder(w)
		enc.SetIndent("", "  ")
		return enc.Encode(v)
	}
	t := tabwriter.NewWriter(w, 0, 4, 2, ' ', 0)
	text(t)
	return t.Flush()
}

// ago is how long something has been so, to the second.
func ago(since, now time.Time) string {
	if since.IsZero() {
		return "-"
	}
	return now.Sub(since).Round(time.Second).String()
}
