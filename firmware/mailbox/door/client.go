// SPDX-License-Identifier: Apache-2.0

package door

import (
	"bytes"
	"context"
	"crypto"
	"crypto/rand"
	"crypto/sha256"
	"crypto/tls"
	"errors"
	"fmt"
	"io"
	"net"
	"time"

	"github.com/davit-dpu/davit/firmware/mailbox"
	"github.com/davit-dpu/davit/firmware/spec"
)

// ErrChannel means that a valid receipt came through a TLS channel that does
// not end at the card that signed it: somebody sits between.
var ErrChannel = errors.New("the TLS channel does not end at the card")

// clockSlack is how far before the card's time a command's validity begins.
const clockSlack = time.Minute

// ClientConfig says whom a client talks to and who it is.
type ClientConfig struct {
	Card    string           // identity that the card must have; "": any that CardKey signs for
	CardKey crypto.PublicKey // the card's receipt key; nil: only Exchange works, until Trust

	Key       crypto.Signer // signs commands; nil: only public requests
	KeyID     string        // "": mailbox.KeyID of Key
	Requester string        // goes into commands, for the card's record
}

// Client is the requester's side of a door. It does one thing at a time and is
// not safe for concurrent use. When the context of a call ends, the connection
// is closed.
type Client struct {
	cfg     ClientConfig
	conn    io.ReadWriteCloser
	binding []byte // of the TLS channel; nil: none
}

// NewClient makes a client on an established connection, and owns it.
func NewClient(conn io.ReadWriteCloser, cfg ClientConfig) (*Client, error) {
	if cfg.Key != nil && cfg.KeyID == "" {
		id, err := mailbox.KeyID(cfg.Key.Public())
		if err != nil {
			return nil, err
		}
		cfg.KeyID = id
	}
	return &Client{cfg: cfg, conn: conn}, nil
}

// DialTLS connects to a card's TLS door at host:port. The certificate is not
// checked: every receipt that the client verifies must name its key, or the
// call fails with ErrChannel.
func DialTLS(ctx context.Context, address string, cfg ClientConfig) (*Client, error) {
	var binding []byte
	dialer := tls.Dialer{Config: clientTLS(&binding)}
	conn, err := dialer.DialContext(ctx, "tcp", address)
	if err != nil {
		return nil, fmt.Errorf("connect to card at %s: %w", address, err)
	}
	return newDialled(conn, cfg, binding)
}

// DialUnix connects to a door on a Unix socket.
func DialUnix(ctx context.Context, path string, cfg ClientConfig) (*Client, error) {
	var dialer net.Dialer
	conn, err := dialer.DialContext(ctx, "unix", path)
	if err != nil {
		return nil, fmt.Errorf("connect to card at %s: %w", path, err)
	}
	return newDialled(conn, cfg, nil)
}

func newDialled(conn net.Conn, cfg ClientConfig, binding []byte) (*Client, error) {
	c, err := NewClient(conn, cfg)
	if err != nil {
		return nil, errors.Join(err, conn.Close())
	}
	c.binding = binding
	return c, nil
}

// Trust sets the receipt key of the card, once it is known from evidence.
func (c *Client) Trust(cardKey crypto.PublicKey) { c.cfg.CardKey = cardKey }

// Close closes the connection.
func (c *Client) Close() error { return c.conn.Close() }

// Exchange sends a command or request as it is and returns what came back,
// verified by nothing but its form.
func (c *Client) Exchange(ctx context.Context, message []byte) (*mailbox.UnverifiedReceipt, error) {
	stop := context.AfterFunc(ctx, func() { _ = c.conn.Close() }) // ends the read or write below
	defer stop()
	if err := WriteFrame(c.conn, Envelope, message); err != nil {
		return nil, fmt.Errorf("send command: %w", c.cause(ctx, err))
	}
	_, body, err := ReadFrame(c.conn, Receipt)
	if err != nil {
		return nil, fmt.Errorf("receive receipt: %w", c.cause(ctx, unexpected(err)))
	}
	return mailbox.ParseReceipt(body)
}

func (c *Client) cause(ctx context.Context, err error) error {
	if ctx.Err() != nil {
		return ctx.Err()
	}
	return err
}

// Send sends a command that was signed before, and verifies the receipt. A
// refusal is a *Answer error.
func (c *Client) Send(ctx context.Context, command []byte) (*mailbox.Receipt, error) {
	u, err := c.Exchange(ctx, command)
	if err != nil {
		return nil, err
	}
	return c.accept(u, sha256.Sum256(command))
}

// Request asks for a public op without a signature and verifies the receipt,
// which is fresh: it is about a request with a nonce of this call.
func (c *Client) Request(ctx context.Context, op string, args any) (*mailbox.Receipt, error) {
	nonce := make([]byte, 16)
	if _, err := rand.Read(nonce); err != nil {
		return nil, err
	}
	request, err := mailbox.PublicRequest(c.cfg.Card, op, args, nonce)
	if err != nil {
		return nil, err
	}
	u, err := c.Exchange(ctx, request)
	if err != nil {
		return nil, err
	}
	return c.accept(u, sha256.Sum256(request))
}

// Do gets a nonce, signs the command, sends it, and verifies the receipt.
func (c *Client) Do(ctx context.Context, op string, args any, reason string) (*mailbox.Receipt, error) {
	command, err := c.sign(ctx, op, args, reason)
	if err != nil {
		return nil, err
	}
	return c.Send(ctx, command)
}

// sign makes a command with a nonce fetched from the card. The validity window
// is by the card's clock, so that the requester's need not be right.
func (c *Client) sign(ctx context.Context, op string, args any, reason string) ([]byte, error) {
	if c.cfg.Key == nil {
		return nil, fmt.Errorf("sign %s: there is no key", op)
	}
	receipt, err := c.Request(ctx, mailbox.ChallengeOp, nil)
	if err != nil {
		return nil, fmt.Errorf("get nonce: %w", err)
	}
	var ch mailbox.Challenge
	if err := receipt.Decode(&ch); err != nil {
		return nil, fmt.Errorf("get nonce: %w", err)
	}
	return mailbox.Sign(c.cfg.Key, c.cfg.KeyID, mailbox.Request{
		Card: receipt.Card, Op: op, Args: args, Nonce: ch.Nonce,
		NotBefore: ch.Time.Add(-clockSlack), NotAfter: ch.Expires,
		Requester: c.cfg.Requester, Reason: reason, Lifecycle: spec.Lifecycle(ch.Lifecycle),
	})
}

// accept verifies a receipt: key, command, card and channel. It is fresh because
// every command and request holds a nonce, and the receipt its digest.
func (c *Client) accept(u *mailbox.UnverifiedReceipt, command mailbox.Digest) (*mailbox.Receipt, error) {
	if c.cfg.CardKey == nil {
		return nil, fmt.Errorf("%w: the card's receipt key is not known", mailbox.ErrReceipt)
	}
	r, err := u.Verify(c.cfg.CardKey, command)
	if err != nil {
		return nil, err
	}
	if c.cfg.Card != "" && r.Card != c.cfg.Card {
		return nil, fmt.Errorf("%w: it is from card %q", mailbox.ErrReceipt, r.Card)
	}
	if c.binding != nil && !bytes.Equal(r.Binding, c.binding) {
		return nil, ErrChannel
	}
	if err := r.Err(); err != nil {
		return nil, &Answer{Receipt: r}
	}
	return r, nil
}

// Answer is the error of a command that the card refused, or executed without
// success. It holds the verified receipt, and unwraps to the *mailbox.Refusal.
type Answer struct{ Receipt *mailbox.Receipt }

// Error implements error.
func (a *Answer) Error() string { return "card answers " + a.Receipt.Err().Error() }

// Unwrap gives the *mailbox.Refusal.
func (a *Answer) Unwrap() error { return a.Receipt.Err() }
