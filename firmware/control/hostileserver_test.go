// SPDX-License-Identifier: Apache-2.0

package control

import (
	"context"
	"errors"
	"runtime/debug"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/davit-dpu/davit/firmware/spec"
)

// TestServerRefusesAndLeaksNothing sends what no controller may send, each time
// with file descriptors, and counts descriptors afterwards.
func TestServerRefusesAndLeaksNothing(t *testing.T) {
	_, path := serve(t, &fakeCard{})
	rm := &RemoveDevice{Instance: "web", Name: "root"}
	raw := func(f frame, m message) []byte { return packet(t, f, m) }
	tests := []struct {
		name  string
		hello bool
		data  []byte
		fds   int
	}{
		{"no hello", false, raw(frame{Kind: kindRequest, ID: 1, Op: "remove-device"}, rm), 2},
		{"hello with files", false, raw(frame{Kind: kindRequest, ID: 1, Op: "hello"}, &Hello{Min: VersionMin, Current: VersionCurrent}), 1},
		{"second hello", true, raw(frame{Kind: kindRequest, ID: 2, Op: "hello"}, &Hello{Min: VersionMin, Current: VersionCurrent}), 0},
		{"not CBOR", true, []byte{0xff, 0x00}, 2},
		{"trailing byte", true, append(raw(frame{Kind: kindPong}, nil), 0), 1},
		{"unknown operation", true, raw(frame{Kind: kindRequest, ID: 2, Op: "open-file"}, rm), 4},
		{"files it should not have", true, raw(frame{Kind: kindRequest, ID: 2, Op: "remove-device"}, rm), 1},
		{"files that are missing", true, raw(frame{Kind: kindRequest, ID: 2, Op: "attach-bus"}, &AttachBus{}), 1},
		{"more files than fit", true, raw(frame{Kind: kindRequest, ID: 2, Op: "attach-bus"}, &AttachBus{}), 40},
		{"body of another kind", true, raw(frame{Kind: kindRequest, ID: 2, Op: "start-vmm"}, rm), 0},
		{"pong with files", true, raw(frame{Kind: kindPong}, nil), 1},
		{"reply", true, raw(frame{Kind: kindReply, ID: 2}, rm), 1},
		{"too large", true, make([]byte, MaxPacket+1), 1},
	}
	defer debug.SetGCPercent(debug.SetGCPercent(-1)) // finalizers would close what was forgotten
	before := openFDs(t)
	for _, tt := range tests {
		conn := rawClient(t, path)
		if tt.hello {
			helloRaw(t, conn)
		}
		var oob []byte
		if tt.fds > 0 {
			fds := make([]int, tt.fds) // standard input, many times
			oob = unix.UnixRights(fds...)
		}
		if _, _, err := conn.WriteMsgUnix(tt.data, oob, nil); err != nil {
			t.Fatalf("%s: %v", tt.name, err)
		}
		if !ended(t, conn) {
			t.Errorf("%s: the connection goes on", tt.name)
		}
		_ = conn.Close()
	}
	waitFDs(t, before)
}

// TestRefusedRequestClosesFiles: a handler that takes nothing leaks nothing.
func TestRefusedRequestClosesFiles(t *testing.T) {
	card := &fakeCard{handle: func(context.Context, Request, *Files) (Reply, error) { return nil, ErrConflict }}
	_, path := serve(t, card)
	c := dial(t, path, nil)
	vol := tempFile(t, "")
	defer debug.SetGCPercent(debug.SetGCPercent(-1)) // finalizers would close what was forgotten
	before := openFDs(t)
	for range 20 {
		err := c.AttachBus(testContext(t), AttachBus{WindowSize: 2 * spec.MiB}, vol, vol)
		if !errors.Is(err, ErrConflict) {
			t.Fatalf("got %v", err)
		}
	}
	waitFDs(t, before)
}

func TestHelloVersions(t *testing.T) {
	_, path := serve(t, &fakeCard{})
	for _, tt := range []struct {
		min, current int
		ok           bool
	}{
		{VersionMin, VersionCurrent, true}, {1, 9, true}, {VersionCurrent + 1, 9, false}, {1, VersionMin - 1, false}, {0, 1, false}, {3, 2, false},
	} {
		conn := rawClient(t, path)
		if _, err := conn.Write(packet(t, frame{Kind: kindRequest, ID: 1, Op: "hello"}, &Hello{Min: tt.min, Current: tt.current})); err != nil {
			t.Fatal(err)
		}
		c, err := newCodec()
		if err != nil {
			t.Fatal(err)
		}
		buf := make([]byte, MaxPacket)
		n, err := conn.Read(buf)
		ok := false
		if err == nil {
			if f, err := c.decodeFrame(buf[:n]); err == nil {
				ok = f.Error == nil
			}
		}
		if ok != tt.ok {
			t.Errorf("versions %d to %d: accepted %v, want %v", tt.min, tt.current, ok, tt.ok)
		}
		_ = conn.Close()
	}
}
