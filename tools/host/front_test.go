// SPDX-License-Identifier: Apache-2.0

package host

import (
	"encoding/binary"
	"os"
	"path/filepath"
	"runtime"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/davit-dpu/davit/firmware/bus"
	"github.com/davit-dpu/davit/firmware/virtio/vhostuser"
)

func u64(v uint64) []byte { return binary.LittleEndian.AppendUint64(nil, v) }

// TestClaim: which file descriptors a message may carry, and that none leaks.
func TestClaim(t *testing.T) {
	dir := t.TempDir()
	poolPath, otherPath := filepath.Join(dir, "pool"), filepath.Join(dir, "other")
	for _, path := range []string{poolPath, otherPath} {
		if err := os.WriteFile(path, make([]byte, 4<<20), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	pl, err := openPool(poolPath)
	if err != nil {
		t.Fatal(err)
	}
	defer pl.file.Close()
	open := func(path string) int {
		fd, err := unix.Open(path, unix.O_RDWR|unix.O_CLOEXEC, 0)
		if err != nil {
			t.Fatal(err)
		}
		return fd
	}
	event := func() int {
		fd, err := unix.Eventfd(0, unix.EFD_CLOEXEC)
		if err != nil {
			t.Fatal(err)
		}
		return fd
	}
	pool := func() int { return open(poolPath) }
	other := func() int { return open(otherPath) }
	table := func(n uint32) []byte {
		return append(binary.LittleEndian.AppendUint32(nil, n), make([]byte, 4+32*n)...)
	}
	for _, c := range []struct {
		name    string
		request vhostuser.Request
		payload []byte
		fds     []func() int
		ok      bool
	}{
		{"no file", vhostuser.GetFeatures, nil, nil, true},
		{"unexpected file", vhostuser.GetFeatures, nil, []func() int{event}, false},
		{"memory of the pool", vhostuser.SetMemTable, table(2), []func() int{pool, pool}, true},
		{"memory of something else", vhostuser.SetMemTable, table(2), []func() int{pool, other}, false},
		{"fewer files than regions", vhostuser.SetMemTable, table(2), []func() int{pool}, false},
		{"more files than regions", vhostuser.SetMemTable, table(1), []func() int{pool, pool}, false},
		{"a memory table cut short", vhostuser.SetMemTable, []byte{1}, []func() int{pool}, false},
		{"kick", vhostuser.SetVringKick, u64(1), []func() int{event}, true},
		{"kick, replaced", vhostuser.SetVringKick, u64(1), []func() int{event}, true},
		{"kick without file", vhostuser.SetVringKick, u64(1), nil, false},
		{"kick that says it has no file", vhostuser.SetVringKick, u64(1 | noFD), nil, true},
		{"kick that says so and has one", vhostuser.SetVringKick, u64(1 | noFD), []func() int{event}, false},
		{"kick that is a file", vhostuser.SetVringKick, u64(1), []func() int{pool}, false},
		{"kick of no queue", vhostuser.SetVringKick, u64(bus.MaxQueues), []func() int{event}, false},
		{"kick cut short", vhostuser.SetVringKick, []byte{1}, []func() int{event}, false},
		{"call", vhostuser.SetVringCall, u64(0), []func() int{event}, true},
		{"call, replaced by none", vhostuser.SetVringCall, u64(noFD), nil, true},
		{"err", vhostuser.SetVringErr, u64(0), []func() int{event}, true},
		{"base", vhostuser.GetVringBase, u64(1), nil, true},
	} {
		before := openFDs(t)
		p := newProxy(pl, nil)
		m := vhostuser.Message{Request: c.request, Flags: 1, Payload: c.payload}
		for _, fd := range c.fds {
			m.FDs = append(m.FDs, fd())
		}
		_, err := p.claim(&m)
		if (err == nil) != c.ok {
			t.Errorf("%s: %v", c.name, err)
		}
		closeFDs(m.FDs)
		p.wait()
		after := openFDs(t)
		for end := time.Now().Add(10 * time.Second); after > before && time.Now().Before(end); after = openFDs(t) {
			runtime.Gosched() // a call that is being signalled is closed afterwards
		}
		if after != before {
			t.Errorf("%s: %d file descriptors are open, were %d", c.name, after, before)
		}
	}
}

func openFDs(t *testing.T) int {
	t.Helper()
	entries, err := os.ReadDir("/proc/self/fd")
	if err != nil {
		t.Fatal(err)
	}
	return len(entries)
}

func TestCheckMessage(t *testing.T) {
	t.Parallel()
	whole := vhostuser.AppendMessage(nil, vhostuser.Message{Request: 1, Flags: 5, Payload: make([]byte, 8)})
	if err := checkMessage(whole); err != nil {
		t.Error(err)
	}
	huge := append([]byte(nil), whole...)
	binary.LittleEndian.PutUint32(huge[8:], 0xffffffff)
	for name, b := range map[string][]byte{
		"empty": nil, "header cut": whole[:11], "payload cut": whole[:19], "two messages": append(whole[:len(whole):len(whole)], whole...), "4 GiB": huge,
	} {
		if err := checkMessage(b); err == nil {
			t.Errorf("%s: accepted", name)
		}
	}
}
