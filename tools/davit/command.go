// SPDX-License-Identifier: Apache-2.0

package main

import (
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"time"

	"github.com/spf13/cobra"

	"github.com/davit-dpu/davit/firmware/mailbox"
	"github.com/davit-dpu/davit/firmware/mailbox/door"
	"github.com/davit-dpu/davit/firmware/spec"
)

func keygenCommand(o *options) *cobra.Command {
	var algorithm, out string
	cmd := &cobra.Command{
		Use: "keygen", Short: "Make a key that can sign commands", Args: exactly(0),
		RunE: func(cmd *cobra.Command, _ []string) error {
			key, err := mailbox.GenerateKey(mailbox.Algorithm(algorithm))
			if err != nil {
				return &usageError{err}
			}
			private, err := mailbox.MarshalPrivateKey(key)
			if err != nil {
				return err
			}
			public, err := mailbox.MarshalPublicKey(key.Public())
			if err != nil {
				return err
			}
			id, err := mailbox.KeyID(key.Public())
			if err != nil {
				return err
			}
			if err := writeNew(out, private, 0o600); err != nil {
				return err
			}
			if err := writeNew(out+".pub", public, 0o644); err != nil {
				return errors.Join(err, os.Remove(out))
			}
			made := map[string]string{"keyID": id, "algorithm": algorithm, "private": out, "public": out + ".pub"}
			return o.print(cmd.OutOrStdout(), made, func(w io.Writer) {
				fmt.Fprintf(w, "key\t%s\t%s\nprivate\t%s\tkeep it secret\npublic\t%s\tput it into a card's configuration, under keys\n", id, algorithm, out, out+".pub")
			})
		},
	}
	cmd.Flags().StringVar(&algorithm, "algorithm", string(mailbox.EdDSA), "EdDSA, ES256 or ES384")
	cmd.Flags().StringVar(&out, "out", "davit.key", "file for the private key; .pub is added for the public one")
	return cmd
}

// writeNew never overwrites: a lost key cannot be made again.
func writeNew(path string, data []byte, mode fs.FileMode) error {
	f, err := os.OpenFile(path, os.O_CREATE|os.O_EXCL|os.O_WRONLY, mode)
	if err != nil {
		return err
	}
	_, err = f.Write(data)
	return errors.Join(err, f.Sync(), f.Close())
}

// signFlags are what goes into a command that is signed away from the card.
type signFlags struct {
	key, keyID, card, nonce, args, reason, lifecycle, out string
	valid                                                 time.Duration
}

func signCommand(o *options) *cobra.Command {
	var f signFlags
	cmd := &cobra.Command{
		Use: "sign OP", Short: "Sign a command into a file, without contact to the card", Args: exactly(1),
		Long: "Sign a command into a file, without contact to the card. The nonce comes from\n" +
			"the card: davit send --challenge prints one. The file is sent with davit send.",
		RunE: func(cmd *cobra.Command, args []string) error { return f.sign(o, cmd, args[0]) },
	}
	cmd.Flags().StringVar(&f.key, "key", "", "private key file (default: that of the enrolled card)")
	cmd.Flags().StringVar(&f.keyID, "key-id", "", "name of the key in the card's configuration (default: from the key)")
	cmd.Flags().StringVar(&f.card, "card-id", "", "identity of the card (default: that of the enrolled card)")
	cmd.Flags().StringVar(&f.nonce, "nonce", "", "nonce that the card issued, hexadecimal")
	cmd.Flags().StringVar(&f.args, "args", "", "arguments of the operation, as JSON")
	cmd.Flags().StringVar(&f.reason, "reason", "", "why, for the card's record")
	cmd.Flags().StringVar(&f.lifecycle, "lifecycle", string(spec.Development), "lifecycle that the card must be in")
	cmd.Flags().DurationVar(&f.valid, "valid", 5*time.Minute, "how long the command is valid from now")
	cmd.Flags().StringVar(&f.out, "out", "command.cose", "file to write")
	return cmd
}

func (f *signFlags) sign(o *options, cmd *cobra.Command, op string) error {
	if f.key == "" || f.card == "" {
		contact, err := o.contact()
		if err != nil {
			return fmt.Errorf("name --key and --card-id, or a card: %w", err)
		}
		f.key, f.card = orElse(f.key, contact.KeyFile), orElse(f.card, contact.CardID)
	}
	key, err := mailbox.ReadPrivateKey(f.key)
	if err != nil {
		return err
	}
	if f.keyID == "" {
		if f.keyID, err = mailbox.KeyID(key.Public()); err != nil {
			return err
		}
	}
	nonce, err := hex.DecodeString(f.nonce)
	if err != nil || len(nonce) == 0 {
		return &usageError{fmt.Errorf("--nonce %q: want the hexadecimal digits that davit send --challenge printed", f.nonce)}
	}
	args, err := parseArgs(f.args)
	if err != nil {
		return &usageError{err}
	}
	now := time.Now()
	command, err := mailbox.Sign(key, f.keyID, mailbox.Request{
		Card: f.card, Op: op, Args: args, Nonce: nonce, NotBefore: now.Add(-time.Minute), NotAfter: now.Add(f.valid),
		Reason: f.reason, Lifecycle: spec.Lifecycle(f.lifecycle),
	})
	if err != nil {
		return err
	}
	if err := os.WriteFile(f.out, command, 0o600); err != nil {
		return err
	}
	fmt.Fprintf(cmd.OutOrStdout(), "%s: %d bytes, sha256 %x\n", f.out, len(command), sha256.Sum256(command))
	return nil
}

func orElse(a, b string) string {
	if a != "" {
		return a
	}
	return b
}

// parseArgs turns JSON into what CBOR encodes the same way: whole numbers stay
// whole numbers.
func parseArgs(text string) (any, error) {
	if text == "" {
		return nil, nil
	}
	var args any
	if err := json.Unmarshal([]byte(text), &args); err != nil {
		return nil, fmt.Errorf("--args: %w", err)
	}
	return wholeNumbers(args), nil
}

func wholeNumbers(v any) any {
	switch v := v.(type) {
	case map[string]any:
		for k := range v {
			v[k] = wholeNumbers(v[k])
		}
	case []any:
		for i := range v {
			v[i] = wholeNumbers(v[i])
		}
	case float64:
		if n := int64(v); float64(n) == v {
			return n
		}
	}
	return v
}

func sendCommand(o *options) *cobra.Command {
	var challenge, viaHost bool
	cmd := &cobra.Command{
		Use: "send FILE", Short: "Send a signed command from a file and print the card's receipt",
		Args: func(cmd *cobra.Command, args []string) error {
			if challenge {
				return exactly(0)(cmd, args)
			}
			return exactly(1)(cmd, args)
		},
		RunE: func(cmd *cobra.Command, args []string) error {
			contact, err := o.contact()
			if err != nil {
				return err
			}
			dial := contact.Dial
			if viaHost {
				dial = contact.DialHost
			}
			client, err := dial(cmd.Context())
			if err != nil {
				return err
			}
			defer client.Close()
			if challenge {
				return o.printChallenge(cmd, client)
			}
			command, err := os.ReadFile(args[0])
			if err != nil {
				return err
			}
			receipt, err := client.Send(cmd.Context(), command)
			var answer *door.Answer
			if errors.As(err, &answer) {
				receipt = answer.Receipt
			} else if err != nil {
				return err
			}
			return errors.Join(o.printReceipt(cmd.OutOrStdout(), receipt), err)
		},
	}
	cmd.Flags().BoolVar(&challenge, "challenge", false, "ask the card for a nonce instead")
	cmd.Flags().BoolVar(&viaHost, "via-host", false, "through the host and the bus instead of the management network")
	return cmd
}

func (o *options) printChallenge(cmd *cobra.Command, client *door.Client) error {
	receipt, err := client.Request(cmd.Context(), mailbox.ChallengeOp, nil)
	if err != nil {
		return err
	}
	var ch mailbox.Challenge
	if err := receipt.Decode(&ch); err != nil {
		return err
	}
	return o.print(cmd.OutOrStdout(), ch, func(w io.Writer) {
		fmt.Fprintf(w, "card\t%s\nnonce\t%x\nexpires\t%s\nlifecycle\t%s\n", ch.Card, ch.Nonce, ch.Expires.Format(time.RFC3339), ch.Lifecycle)
	})
}

func (o *options) printReceipt(w io.Writer, r *mailbox.Receipt) error {
	var result any
	if len(r.Result) > 0 {
		if err := r.Decode(&result); err != nil {
			return err
		}
	}
	shown := map[string]any{
		"card": r.Card, "command": hex.EncodeToString(r.Command[:]), "code": r.Code, "text": r.Text,
		"time": r.Time, "auditIndex": r.AuditIndex, "result": stringKeys(result),
	}
	return o.print(w, shown, func(w io.Writer) {
		fmt.Fprintf(w, "card\t%s\ncommand\t%x\ncode\t%s\ntext\t%s\ntime\t%s\naudit\trecord %d\n",
			r.Card, r.Command, r.Code, r.Text, r.Time.Format(time.RFC3339Nano), r.AuditIndex)
		if result != nil {
			text, err := json.Marshal(stringKeys(result))
			if err == nil {
				fmt.Fprintf(w, "result\t%s\n", text)
			}
		}
	})
}

// stringKeys makes a decoded CBOR value fit for JSON.
func stringKeys(v any) any {
	switch v := v.(type) {
	case map[any]any:
		out := map[string]any{}
		for k, e := range v {
			out[fmt.Sprint(k)] = stringKeys(e)
		}
		return out
	case []any:
		for i := range v {
			v[i] = stringKeys(v[i])
		}
	case []byte:
		return hex.EncodeToString(v)
	}
	return v
}
