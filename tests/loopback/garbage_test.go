// SPDX-License-Identifier: Apache-2.0

package loopback

import (
	"crypto/tls"
	"encoding/binary"
	"errors"
	"io"
	"math/rand/v2"
	"net"
	"os"
	"testing"
	"time"

	"github.com/davit-dpu/davit/firmware/mailbox"
	"github.com/davit-dpu/davit/firmware/mailbox/door"
	"github.com/davit-dpu/davit/firmware/spec"
	"github.com/davit-dpu/davit/tests/vm"
)

// rawDoors are the doors below their framing; the TLS door also below its TLS.
func rawDoors(env *vm.LoopbackEnv) map[string]func() (net.Conn, error) {
	unix := func(path string) func() (net.Conn, error) {
		return func() (net.Conn, error) { return net.Dial("unix", path) }
	}
	return map[string]func() (net.Conn, error){
		"unix": unix(env.Loopback.Door()),
		"bus":  unix(env.Server.HostDoor()),
		"tcp":  func() (net.Conn, error) { return net.Dial("tcp", env.Server.Address) },
		"tls": func() (net.Conn, error) {
			return tls.Dial("tcp", env.Server.Address, &tls.Config{
				MinVersion: tls.VersionTLS13, NextProtos: []string{door.Protocol}, InsecureSkipVerify: true,
			})
		},
	}
}

func head(length uint32, kind door.Kind) []byte {
	return append(binary.BigEndian.AppendUint32(nil, length), byte(kind))
}

// rubbish is what no client sends.
var rubbish = []struct {
	name string
	make func(*rand.ChaCha8) []byte
}{
	{"noise", func(r *rand.ChaCha8) []byte { return noise(r, 256<<10) }},
	{"4 GiB command", func(r *rand.ChaCha8) []byte { return append(head(0xffffffff, door.Envelope), noise(r, 128<<10)...) }},
	{"4 GiB stream data", func(*rand.ChaCha8) []byte { return head(0xffffffff, door.Data) }},
	{"truncated command", func(r *rand.ChaCha8) []byte { return append(head(1000, door.Envelope), noise(r, 500)...) }},
	{"half a header", func(*rand.ChaCha8) []byte { return head(10, door.Envelope)[:3] }},
	{"nothing", func(*rand.ChaCha8) []byte { return nil }},
	{"receipt", func(r *rand.ChaCha8) []byte { return append(head(100, door.Receipt), noise(r, 100)...) }},
	{"unknown kind", func(*rand.ChaCha8) []byte { return head(0, 99) }},
	{"nested CBOR", func(*rand.ChaCha8) []byte {
		deep := make([]byte, 60<<10)
		for i := range deep {
			deep[i] = 0x81 // an array with one element, which is an array …
		}
		return append(head(uint32(len(deep)), door.Envelope), deep...)
	}},
}

// TestGarbage sends rubbish through every door and waits for the card to hang
// up: afterwards every door answers, nothing was started again, and nothing has
// grown.
func TestGarbage(t *testing.T) {
	t.Parallel()
	env := vm.StartLoopback(t, vm.Options{})
	agent, vcard, host := env.Server.Card.PID(), env.VcardPID(t), env.Server.Host.PID()
	random := rand.NewChaCha8([32]byte([]byte("rubbish, the same in each run...")))
	for name, dial := range rawDoors(env) {
		t.Run(name, func(t *testing.T) {
			for _, r := range rubbish {
				throw(t, dial, r.make(random))
			}
		})
	}
	if st := env.Status(t); st.Phase != spec.PhaseReady {
		t.Errorf("the card is %s: %s", st.Phase, st.Reason)
	}
	env.Do(t, "instance.list", nil, nil)
	for name, dial := range doors(env) {
		c := dial(t)
		c.Trust(cardKey(t, env))
		if _, err := c.Request(t.Context(), mailbox.ChallengeOp, nil); err != nil {
			t.Errorf("door %s afterwards: %v", name, err)
		}
	}
	for _, p := range []struct {
		name     string
		was, now int
	}{{"davitd", agent, env.Server.Card.PID()}, {"vcard", vcard, env.VcardPID(t)}, {"hostd", host, env.Server.Host.PID()}} {
		if p.was != p.now || !vm.Alive(p.now) {
			t.Errorf("%s %d became %d", p.name, p.was, p.now)
		}
		if mb := vm.Resident(t, p.now) >> 20; mb > 150 {
			t.Errorf("%s takes %d MiB", p.name, mb)
		}
	}
}

// throw sends rubbish and ends the sending side; the card must then be done
// with the connection before long.
func throw(t *testing.T, dial func() (net.Conn, error), what []byte) {
	t.Helper()
	conn, err := dial()
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	if err := conn.SetDeadline(time.Now().Add(soon)); err != nil {
		t.Fatal(err)
	}
	if _, err := conn.Write(what); err == nil {
		if half, ok := conn.(interface{ CloseWrite() error }); ok {
			_ = half.CloseWrite() // the card may have hung up already
		}
	}
	if _, err := io.Copy(io.Discard, conn); errors.Is(err, os.ErrDeadlineExceeded) {
		t.Errorf("%d bytes of rubbish, and the card keeps the connection", len(what))
	}
}
