// SPDX-License-Identifier: Apache-2.0

package door

import (
	"crypto/sha256"
	"errors"
	"net"
	"testing"
	"testing/synctest"
	"time"

	"github.com/davit-dpu/davit/firmware/mailbox"
)

func TestRateIsPerPeer(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		s := newCard(t).server(func(c *Config) { c.Rate = 10 })
		greedy, other := join(t, s, "greedy"), join(t, s, "other")
		begin := time.Now()
		for range 20 + 50 {
			if err := ask(t, greedy); err != nil {
				t.Fatal(err)
			}
		}
		if took := time.Since(begin); took != 5*time.Second {
			t.Errorf("70 commands at 10 a second, 20 at once, took %v, want 5s", took)
		}
		begin = time.Now()
		if err := ask(t, other); err != nil || time.Since(begin) != 0 {
			t.Errorf("another peer waits %v (%v)", time.Since(begin), err)
		}
		// A second connection of the greedy peer has no bucket of its own.
		again := join(t, s, "greedy")
		begin = time.Now()
		if err := ask(t, again); err != nil || time.Since(begin) == 0 {
			t.Errorf("the greedy peer's second connection waits %v (%v)", time.Since(begin), err)
		}
	})
}

// What is refused and not signed costs five times as much, whatever the code is.
func TestBadCommandsCostMore(t *testing.T) {
	t.Parallel()
	wrongCard, err := mailbox.PublicRequest("another", "status", nil, nil)
	if err != nil {
		t.Fatal(err)
	}
	badArgs, err := mailbox.PublicRequest("", "status", map[string]string{"no": "such"}, nil)
	if err != nil {
		t.Fatal(err)
	}
	for code, message := range map[mailbox.Code][]byte{
		mailbox.Malformed: []byte("garbage"), mailbox.WrongCard: wrongCard, mailbox.BadArgs: badArgs,
	} {
		synctest.Test(t, func(t *testing.T) {
			c := newCard(t)
			conn := join(t, c.server(func(c *Config) { c.Rate = 10 }), "hostile")
			begin := time.Now()
			for range 54 {
				if got := c.send(t, conn, message); got != code {
					t.Fatalf("code %s, want %s", got, code)
				}
			}
			// 54 commands at the cost of 5, less what was there, at 10 a second.
			if took := time.Since(begin); took < 24*time.Second {
				t.Errorf("54 times %s took %v, want about 25s", code, took)
			}
		})
	}
}

// send gives the code of the receipt.
func (c *card) send(t *testing.T, conn net.Conn, message []byte) mailbox.Code {
	t.Helper()
	if err := WriteFrame(conn, Envelope, message); err != nil {
		t.Fatal(err)
	}
	_, body, err := ReadFrame(conn, Receipt)
	if err != nil {
		t.Fatal(err)
	}
	u, err := mailbox.ParseReceipt(body)
	if err != nil {
		t.Fatal(err)
	}
	r, err := u.Verify(c.receipt.Public(), sha256.Sum256(message))
	if err != nil {
		t.Fatal(err)
	}
	return r.Code
}

func TestRefusedCommandsOfAKnownKeyCostNoMore(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		c := newCard(t)
		client, err := NewClient(join(t, c.server(func(c *Config) { c.Rate = 10 }), "operator"), c.client())
		if err != nil {
			t.Fatal(err)
		}
		begin := time.Now()
		for range 10 {
			if _, err := client.Do(t.Context(), "echo", map[string]string{"no": "such"}, ""); !errors.Is(err, &mailbox.Refusal{Code: mailbox.BadArgs}) {
				t.Fatalf("error %v, want %s", err, mailbox.BadArgs)
			}
		}
		if took := time.Since(begin); took > time.Second {
			t.Errorf("10 refused commands of the operator took %v", took)
		}
	})
}
