// SPDX-License-Identifier: Apache-2.0

package mailbox

import (
	"context"
	"crypto/ed25519"
	"crypto/rand"
	"testing"
	"time"
)

// commands makes as many good commands as wanted.
func (f *fixture) commands(n int) [][]byte {
	out := make([][]byte, n)
	for i := range out {
		nonce := f.box.nonces.issue()
		out[i] = f.sign(Request{
			Card: testCard, Op: "instance.stop", Args: stopArgs{Name: "web"}, Nonce: nonce,
			NotBefore: noon, NotAfter: noon.Add(time.Hour), Requester: "alice", Reason: "maintenance", Lifecycle: "production",
		})
	}
	return out
}

// BenchmarkBareVerify is the yardstick: one Ed25519 verification over as many
// bytes as a command has.
func BenchmarkBareVerify(b *testing.B) {
	public, private, err := ed25519.GenerateKey(rand.Reader)
	if err != nil {
		b.Fatal(err)
	}
	message := newFixture(b, nil).commands(1)[0]
	sig := ed25519.Sign(private, message)
	b.ResetTimer()
	for b.Loop() {
		if !ed25519.Verify(public, message, sig) {
			b.Fatal("does not verify")
		}
	}
}

// BenchmarkCheck is all that is done before a command is accepted: parse,
// signature, place, time, nonce, policy, arguments, and using up the nonce.
func BenchmarkCheck(b *testing.B) {
	f := newFixture(b, func(c *Config) { c.Used = 1 << 30 })
	commands := f.commands(b.N)
	b.ResetTimer()
	for _, command := range commands {
		cmd, _, err := f.box.check(&attempt{}, command)
		if err != nil {
			b.Fatal(err)
		}
		if err := cmd.use(); err != nil {
			b.Fatal(err)
		}
	}
}

// BenchmarkSubmit adds dispatch, an audit in memory, the op and the signature
// of the receipt (ECDSA P-256 in software).
func BenchmarkSubmit(b *testing.B) {
	f := newFixture(b, func(c *Config) { c.Used = 1 << 30 })
	f.submitAll(b)
}

// BenchmarkSubmitDurable has a real audit log: two records on the disk for
// each command.
func BenchmarkSubmitDurable(b *testing.B) {
	log := openAudit(b)
	f := newFixture(b, func(c *Config) { c.Used, c.Audit = 1<<30, log })
	f.submitAll(b)
}

func (f *fixture) submitAll(b *testing.B) {
	commands := f.commands(b.N)
	b.ResetTimer()
	for _, command := range commands {
		if _, err := f.box.Submit(context.Background(), Door{Name: "bench"}, command); err != nil {
			b.Fatal(err)
		}
	}
	if got := f.executed.Load(); got != int64(b.N) {
		b.Fatalf("executed %d of %d", got, b.N)
	}
}

// BenchmarkRefuseGarbage is what a hostile peer can cause before the door
// slows it down.
func BenchmarkRefuseGarbage(b *testing.B) {
	f := newFixture(b, nil)
	command := f.commands(1)[0]
	command[len(command)-1] ^= 1
	b.ResetTimer()
	for b.Loop() {
		if _, err := f.box.Submit(context.Background(), Door{Name: "bench"}, command); err != nil {
			b.Fatal(err)
		}
	}
}
