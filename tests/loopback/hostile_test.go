// SPDX-License-Identifier: Apache-2.0

package loopback

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"hash/crc32"
	"io"
	"math/bits"
	"math/rand/v2"
	"net"
	"os"
	"strings"
	"testing"
	"time"

	"github.com/davit-dpu/davit/tests/vm"
	"github.com/davit-dpu/davit/tools/rig"
)

// impostor speaks to the card in hostd's place, frame by frame as docs/bus.md
// has it: nothing keeps it from breaking the rules.
type impostor struct {
	conn    net.Conn
	session uint64
	seq     uint32
}

// Frame types, and the nonce of an impostor.
const (
	typeHello = 1
	typeOpen  = 4
	typeData  = 7
	typeBye   = 10
	hostNonce = 0x6d69657567656e61
)

var castagnoli = crc32.MakeTable(crc32.Castagnoli)

// header is that of a frame, its CRC right for whatever it says.
func header(kind byte, flags uint16, session uint64, channel, length, seq uint32) []byte {
	le := binary.LittleEndian
	b := []byte("DVB1\x01")
	b = append(b, kind)
	b = le.AppendUint16(b, flags)
	b = le.AppendUint64(b, session)
	b = le.AppendUint32(b, channel)
	b = le.AppendUint32(b, length)
	b = le.AppendUint32(b, seq)
	return le.AppendUint32(b, crc32.Checksum(b, castagnoli))
}

func frame(kind byte, flags uint16, session uint64, channel, seq uint32, payload []byte) []byte {
	b := header(kind, flags, session, channel, uint32(len(payload)), seq)
	if len(payload) == 0 {
		return b
	}
	b = append(b, payload...)
	return binary.LittleEndian.AppendUint32(b, crc32.Checksum(payload, castagnoli))
}

// intrude connects in hostd's place, which must be dead.
func intrude(t *testing.T, env *vm.LoopbackEnv) *impostor {
	t.Helper()
	conn, err := net.Dial("unix", env.Loopback.Bus())
	if err != nil {
		t.Fatal(err)
	}
	if err := conn.SetDeadline(time.Now().Add(soon)); err != nil {
		t.Fatal(err)
	}
	return &impostor{conn: conn}
}

// greet makes a session as hostd would.
func (i *impostor) greet(t *testing.T) {
	t.Helper()
	var card uint64
	for range 2 { // the second one echoes the card's nonce
		le := binary.LittleEndian
		hello := le.AppendUint16(le.AppendUint16(nil, 1), 1)
		hello = append(hello, 2, 0, 0, 0)
		hello = le.AppendUint64(hello, hostNonce)
		hello = le.AppendUint64(hello, card)
		hello = le.AppendUint64(hello, 384<<20)
		hello = append(hello, byte(len("impostor")))
		if _, err := i.conn.Write(frame(typeHello, 1, 0, 0, 0, append(hello, "impostor"...))); err != nil {
			t.Fatal("greet the card:", err)
		}
		if card == 0 {
			card = i.cardNonce(t)
		}
	}
	i.session = card ^ bits.RotateLeft64(hostNonce, 32)
}

// cardNonce reads to the card's HELLO.
func (i *impostor) cardNonce(t *testing.T) uint64 {
	t.Helper()
	var got []byte
	buf := make([]byte, 64<<10)
	for {
		n, err := i.conn.Read(buf)
		if err != nil {
			t.Fatal("read the card's hello:", err)
		}
		got = append(got, buf[:n]...)
		at := bytes.Index(got, []byte("DVB1\x01\x01"))
		if at >= 0 && len(got) >= at+32+16 {
			return binary.LittleEndian.Uint64(got[at+32+8:])
		}
	}
}

func (i *impostor) send(t *testing.T, b []byte) {
	t.Helper()
	if _, err := i.conn.Write(b); err != nil {
		t.Fatal("send to the card:", err)
	}
}

// sendFrame sends a frame of the session.
func (i *impostor) sendFrame(t *testing.T, kind byte, channel uint32, payload []byte) {
	t.Helper()
	i.send(t, frame(kind, 0, i.session, channel, i.seq, payload))
	i.seq++
}

// ended waits until the card has hung up.
func (i *impostor) ended(t *testing.T) {
	t.Helper()
	if _, err := io.Copy(io.Discard, i.conn); errors.Is(err, os.ErrDeadlineExceeded) {
		t.Error("the card keeps the connection")
	}
}

// assaults are what hostile hosts do. Those that the card can see to be wrong
// end the session and raise an alert; the others are noise on a line.
var assaults = []struct {
	name  string
	alert bool
	do    func(*testing.T, *impostor, *rand.ChaCha8)
}{
	{"noise", false, func(t *testing.T, i *impostor, random *rand.ChaCha8) {
		i.send(t, noise(random, 1<<20))
	}},
	{"half a hello", false, func(t *testing.T, i *impostor, _ *rand.ChaCha8) {
		i.send(t, frame(typeHello, 1, 0, 0, 0, make([]byte, 33))[:40])
	}},
	{"silence after hello", false, func(t *testing.T, i *impostor, _ *rand.ChaCha8) { i.greet(t) }},
	{"noise after hello", true, func(t *testing.T, i *impostor, random *rand.ChaCha8) {
		i.greet(t)
		i.send(t, append(noise(random, 4<<10), frame(typeData, 0, i.session, 0, 0, []byte("x"))...))
		i.ended(t)
	}},
	{"4 GiB frame", true, func(t *testing.T, i *impostor, _ *rand.ChaCha8) {
		i.greet(t)
		i.send(t, header(typeData, 0, i.session, 0, 0xffffffff, 0))
		i.sendFrame(t, typeData, 0, []byte("x"))
		i.ended(t)
	}},
	{"4 GiB record", true, func(t *testing.T, i *impostor, _ *rand.ChaCha8) {
		i.greet(t)
		i.sendFrame(t, typeData, 0, []byte{0xff, 0xff, 0xff, 0xff, 0})
		i.ended(t)
	}},
	{"channel that is not there", true, func(t *testing.T, i *impostor, _ *rand.ChaCha8) {
		i.greet(t)
		i.sendFrame(t, typeData, 77, []byte("x"))
		i.ended(t)
	}},
	{"channel that is the card's to open", true, func(t *testing.T, i *impostor, _ *rand.ChaCha8) {
		i.greet(t)
		i.sendFrame(t, typeOpen, 1, []byte("\xa3\x64kind\x63qmp\x68instance\x64demo\x6ageneration\x78\x2000000000000000000000000000000000"))
		i.ended(t)
	}},
	{"random frames", true, func(t *testing.T, i *impostor, random *rand.ChaCha8) {
		i.greet(t)
		for n := range uint32(200) {
			b := noise(random, 300)
			kind := b[0] % 12
			if kind == typeBye { // an orderly end is no violation
				kind = typeOpen
			}
			f := frame(kind, 0, i.session, uint32(b[1])%4, n, b[2:2+int(b[2])%290])
			if _, err := i.conn.Write(f); err != nil {
				return // it has had enough
			}
		}
		i.ended(t)
	}},
}

func noise(random *rand.ChaCha8, n int) []byte {
	b := make([]byte, n)
	_, _ = random.Read(b) // never returns an error
	return b
}

// hostileHost has impostors speak to the card in hostd's place while the
// instance waits for its disk. Afterwards hostd is there again and I/O goes on;
// vcard and davitd were never disturbed.
func (k *killer) hostileHost(t *testing.T) {
	var seed [32]byte
	binary.LittleEndian.PutUint64(seed[:], k.random.Uint64())
	random := rand.NewChaCha8(seed)
	before, vmm := settled(t, k.env, rig.DemoName), k.env.VMM(t, rig.DemoName)
	vcard, agent := k.env.VcardPID(t), k.env.Server.Card.PID()
	k.env.Server.Host.Kill()
	for _, a := range assaults {
		t.Run(a.name, func(t *testing.T) {
			alerts := hostAlerts(t, k.env)
			i := intrude(t, k.env)
			a.do(t, i, random)
			if err := i.conn.Close(); err != nil {
				t.Error(err)
			}
			if a.alert {
				vm.Eventually(t, soon, func() error {
					if now := hostAlerts(t, k.env); now <= alerts {
						return fmt.Errorf("%d alerts became %d", alerts, now)
					}
					return nil
				})
			}
			if pid := k.env.VcardPID(t); pid != vcard || k.env.Server.Card.PID() != agent {
				t.Errorf("vcard %d became %d", vcard, pid)
			}
		})
	}
	k.startHost(t)
	k.same(t, before, vmm)
	if log := k.env.Log(t, 2000); !strings.Contains(log, "host broke the bus protocol") {
		t.Errorf("the card's log says nothing of it:\n%s", log)
	}
}

// hostAlerts is how many violations by the host the card reports.
func hostAlerts(t *testing.T, env *vm.LoopbackEnv) int {
	t.Helper()
	for _, a := range env.Status(t).Alerts {
		var n int
		if _, err := fmt.Sscanf(a, "host: %d violations", &n); err == nil {
			return n
		}
	}
	return 0
}
