// SPDX-License-Identifier: Apache-2.0

package vhostuser_test

import (
	"encoding/binary"
	"errors"
	"io/fs"
	"os"
	"runtime"
	"strconv"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/davit-dpu/davit/firmware/virtio/vhostuser"
	"github.com/davit-dpu/davit/firmware/virtio/vhostuser/vhostusertest"
	"github.com/davit-dpu/davit/firmware/virtio/virtq/virtqtest"
)

// full is the largest counter an eventfd can have: every write then blocks,
// where O_NONBLOCK is not set.
const full = 1<<64 - 2

// trap is an eventfd of a front end, which shares its file with the device.
func trap(t *testing.T) int {
	t.Helper()
	fd, err := unix.Eventfd(0, unix.EFD_CLOEXEC)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = unix.Close(fd) })
	return fd
}

// arm makes the next read of an empty counter, or write to a full one, block.
func arm(t *testing.T, fd int, counter uint64) {
	t.Helper()
	if err := unix.SetNonblock(fd, false); err != nil {
		t.Fatal(err)
	}
	if counter == 0 {
		return
	}
	if _, err := unix.Write(fd, binary.LittleEndian.AppendUint64(nil, counter)); err != nil {
		t.Fatal(err)
	}
}

// within fails the test when done does not come true.
func within(t *testing.T, what string, done func() bool) {
	t.Helper()
	for end := time.Now().Add(10 * time.Second); !done(); runtime.Gosched() {
		if time.Now().After(end) {
			t.Fatal(what + ": not after ten seconds")
		}
	}
}

// A front end that has its notifications block does not hold up the end of its
// session, which is what the removal of its device waits for.
func TestBlockingNotifications(t *testing.T) {
	for _, tt := range []struct {
		name            string
		kick, call, err uint64 // counters to arm with; ^0 for an innocent file
		spoil           bool   // break the virtio protocol, which signals the error
	}{
		{"kick", 0, ^uint64(0), ^uint64(0), false},
		{"call", ^uint64(0), full, ^uint64(0), false},
		{"error", ^uint64(0), ^uint64(0), full, true},
		{"all", 0, full, full, true},
	} {
		t.Run(tt.name, func(t *testing.T) {
			s := open(t)
			s.attach()
			d := virtqtest.New(s.mem, 16, virtqtest.Options{})
			kick, call, fault := trap(t), trap(t), trap(t)
			s.must(s.front.Do(vhostuser.SetVringNum, vhostusertest.State(0, 16)))
			s.must(s.front.Do(vhostuser.SetVringAddr, vhostusertest.Addr(0, d)))
			s.must(s.front.Do(vhostuser.SetVringErr, vhostusertest.U64(0), fault))
			s.must(s.front.Do(vhostuser.SetVringCall, vhostusertest.U64(0), call))
			s.must(s.front.Do(vhostuser.SetVringKick, vhostusertest.U64(0), kick))
			for fd, counter := range map[int]uint64{kick: tt.kick, call: tt.call, fault: tt.err} {
				if counter != ^uint64(0) {
					arm(t, fd, counter)
				}
			}
			s.must(s.front.Do(vhostuser.SetVringEnable, vhostusertest.State(0, 1)))
			out := s.mem.Alloc(8)
			_, err := d.Add([]virtqtest.Buf{out}, nil)
			s.must(err)
			d.Publish()
			_, err = unix.Write(kick, []byte{1, 0, 0, 0, 0, 0, 0, 0})
			s.must(err)
			within(t, "the request", func() bool { _, _, ok := d.Collect(); return ok })
			if tt.spoil {
				spoil(s, d, kick)
			}
			s.cancel()
			select {
			case <-s.result:
			case <-time.After(10 * time.Second):
				t.Fatal("the session does not end")
			}
		})
	}
}

// spoil has the driver announce more entries than its ring has, and waits until
// the device is stopped for that.
func spoil(s *session, d *virtqtest.Driver, kick int) {
	s.t.Helper()
	d.SetAvailIdx(1000)
	_, err := unix.Write(kick, []byte{1, 0, 0, 0, 0, 0, 0, 0})
	s.must(err)
	for st := range s.status {
		if st.Stopped != nil {
			return
		}
	}
}

// The goroutine of a blocked call comes back when the call is closed, and with
// it its thread and its file: else a front end could take them all by and by.
func TestBlockedCallIsFreed(t *testing.T) {
	fd := trap(t)
	arm(t, fd, full)
	before := len(openFiles())
	for range 50 {
		theirs, err := unix.Dup(fd)
		if err != nil {
			t.Fatal(err)
		}
		call, err := vhostuser.EventFDs{}.OpenCall(0, theirs)
		if err != nil {
			t.Fatal(err)
		}
		arm(t, fd, 0)
		call.Signal()
		within(t, "the write", func() bool { return blockedWriters(t) > 0 })
		if err := call.Close(); err != nil {
			t.Error(err)
		}
		within(t, "the end of the write", func() bool { return blockedWriters(t) == 0 })
	}
	within(t, "the release of the files", func() bool { return len(openFiles()) <= before })
	if err := unix.SetNonblock(fd, true); err != nil {
		t.Fatal(err)
	}
	var buf [8]byte
	if _, err := unix.Read(fd, buf[:]); err != nil || binary.LittleEndian.Uint64(buf[:]) != full {
		t.Errorf("the counter is %d, %v; want it untouched", binary.LittleEndian.Uint64(buf[:]), err)
	}
}

// blockedWriters counts the threads of this process that wait in a write of 8
// bytes (proc(5), /proc/PID/syscall: number and arguments, or "running").
func blockedWriters(t *testing.T) int {
	t.Helper()
	tasks, err := os.ReadDir("/proc/self/task")
	if err != nil {
		t.Fatal(err)
	}
	n := 0
	for _, task := range tasks {
		call, err := os.ReadFile("/proc/self/task/" + task.Name() + "/syscall")
		if errors.Is(err, fs.ErrNotExist) || errors.Is(err, unix.ESRCH) {
			continue // the thread has ended, or there is no such file
		}
		if err != nil {
			t.Fatal(err)
		}
		f := strings.Fields(string(call))
		if len(f) > 3 && f[0] == strconv.Itoa(unix.SYS_WRITE) && f[3] == "0x8" {
			n++
		}
	}
	return n
}
