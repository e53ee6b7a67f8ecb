// SPDX-License-Identifier: Apache-2.0

package bus

import (
	"io"
	"net"
	"os"
	"testing"

	"golang.org/x/sys/unix"
)

// benchPair opens a session over a unix socket pair, as between vcard and hostd
// on one machine, and one channel of it.
func benchPair(b *testing.B) (atCard, atHost *Channel) {
	b.Helper()
	fds, err := unix.Socketpair(unix.AF_UNIX, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		b.Fatal(err)
	}
	var conns [2]net.Conn
	for i, fd := range fds {
		f := os.NewFile(uintptr(fd), "bus")
		if conns[i], err = net.FileConn(f); err != nil {
			b.Fatal(err)
		}
		_ = f.Close()
	}
	hosts := make(chan *Session, 1)
	go func() {
		s, err := Start(b.Context(), conns[1], Config{Role: Host})
		if err != nil {
			b.Error(err)
		}
		hosts <- s
	}()
	card, err := Start(b.Context(), conns[0], Config{Role: Card})
	if err != nil {
		b.Fatal(err)
	}
	host := <-hosts
	b.Cleanup(func() { card.Close(""); host.Close("") })
	got := make(chan *Channel, 1)
	go func() {
		o, err := card.Accept(b.Context())
		if err != nil {
			b.Error(err)
			return
		}
		got <- o.Accept()
	}()
	atHost, err = host.Open(b.Context(), testDisk)
	if err != nil {
		b.Fatal(err)
	}
	return <-got, atHost
}

// BenchmarkDoorbell is a kick and a call: one ring each way.
func BenchmarkDoorbell(b *testing.B) {
	c, h := benchPair(b)
	back := make(chan struct{}, 1)
	c.OnRing(c.Ring)
	h.OnRing(func(int) { back <- struct{}{} })
	for b.Loop() {
		h.Ring(0)
		<-back
	}
}

// BenchmarkBytes is bulk data one way, as of a busy console.
func BenchmarkBytes(b *testing.B) {
	c, h := benchPair(b)
	go func() { _, _ = io.Copy(io.Discard, onlyReader{c}) }()
	p := make([]byte, 32<<10)
	b.SetBytes(int64(len(p)))
	for b.Loop() {
		if _, err := h.Write(p); err != nil {
			b.Fatal(err)
		}
	}
}
