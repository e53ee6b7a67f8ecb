// SPDX-License-Identifier: Apache-2.0

package vhostusertest

import (
	"encoding/binary"
	"errors"
	"fmt"
	"os"

	"golang.org/x/sys/unix"

	"github.com/davit-dpu/davit/firmware/virtio/vhostuser"
	"github.com/davit-dpu/davit/firmware/virtio/virtq/virtqtest"
)

// Queue is a started queue: the driver's side and its notifications.
type Queue struct {
	*virtqtest.Driver
	kick int
	call *os.File // an eventfd that the runtime polls
	buf  [8]byte
}

func eventFD() (int, error) {
	fd, err := unix.Eventfd(0, unix.EFD_NONBLOCK|unix.EFD_CLOEXEC)
	if err != nil {
		return -1, fmt.Errorf("make eventfd: %w", err)
	}
	return fd, nil
}

// StartQueue sets queue index up, beginning at entry base, and enables it.
func (f *FrontEnd) StartQueue(index int, d *virtqtest.Driver, base uint16) (*Queue, error) {
	kick, err := eventFD()
	if err != nil {
		return nil, err
	}
	call, err := eventFD()
	if err != nil {
		return nil, errors.Join(err, unix.Close(kick))
	}
	q := &Queue{Driver: d, kick: kick, call: os.NewFile(uintptr(call), "call")}
	if err := f.start(index, q, base); err != nil {
		return nil, errors.Join(err, q.Close())
	}
	return q, nil
}

func (f *FrontEnd) start(index int, q *Queue, base uint16) error {
	callFD := dup(q.call)
	defer func() { _ = unix.Close(callFD) }()
	steps := []struct {
		request vhostuser.Request
		payload []byte
		fds     []int
	}{
		{vhostuser.SetVringNum, State(index, q.Size()), nil},
		{vhostuser.SetVringBase, State(index, int(base)), nil},
		{vhostuser.SetVringAddr, Addr(index, q.Driver), nil},
		{vhostuser.SetVringKick, U64(uint64(index)), []int{q.kick}},
		{vhostuser.SetVringCall, U64(uint64(index)), []int{callFD}},
		{vhostuser.SetVringEnable, State(index, 1), nil},
	}
	for _, s := range steps {
		if err := f.Do(s.request, s.payload, s.fds...); err != nil {
			return err
		}
	}
	return nil
}

// dup returns a descriptor of the same file, -1 on error, which sending refuses.
func dup(f *os.File) int {
	fd := -1
	raw, err := f.SyscallConn()
	if err != nil {
		return fd
	}
	_ = raw.Control(func(from uintptr) {
		if n, err := unix.FcntlInt(from, unix.F_DUPFD_CLOEXEC, 0); err == nil {
			fd = n
		}
	})
	return fd
}

// Addr is the payload with a driver's ring addresses.
func Addr(index int, d *virtqtest.Driver) []byte {
	at := d.Addresses()
	b := State(index, 0)
	for _, v := range []uint64{at.Desc, at.Used, at.Avail, 0} {
		b = binary.LittleEndian.AppendUint64(b, v)
	}
	return b
}

// LoggedAddr is Addr of a ring whose used part is logged.
func LoggedAddr(index int, d *virtqtest.Driver) []byte {
	b := Addr(index, d)
	binary.LittleEndian.PutUint32(b[4:], 1)
	binary.LittleEndian.PutUint64(b[32:], d.Addresses().Used)
	return b
}

// StopQueue stops a queue and returns the entry at which it stopped.
func (f *FrontEnd) StopQueue(index int) (uint16, error) {
	p, err := f.Call(vhostuser.GetVringBase, State(index, 0))
	if err != nil {
		return 0, err
	}
	if len(p) != 8 {
		return 0, fmt.Errorf("reply of %d bytes to GET_VRING_BASE", len(p))
	}
	return uint16(binary.LittleEndian.Uint32(p[4:])), nil
}

// Submit publishes what was added and kicks if the device wants that.
func (q *Queue) Submit() error {
	if !q.Publish() {
		return nil
	}
	return q.Kick()
}

// Kick notifies the device.
func (q *Queue) Kick() error {
	for {
		switch _, err := unix.Write(q.kick, one); err {
		case unix.EINTR:
		case nil, unix.EAGAIN: // full: nobody has read it for 2^64 kicks
			return nil
		default:
			return fmt.Errorf("kick: %w", err)
		}
	}
}

// one is what a notification adds to an eventfd.
var one = []byte{1, 0, 0, 0, 0, 0, 0, 0}

// Next waits for the next used chain.
func (q *Queue) Next() (head uint16, written uint32, err error) {
	for {
		if head, written, ok := q.Collect(); ok {
			return head, written, nil
		}
		if q.Arm() {
			continue
		}
		if err := q.Wait(); err != nil {
			return 0, 0, err
		}
	}
}

// Wait waits for a call.
func (q *Queue) Wait() error {
	_, err := q.call.Read(q.buf[:])
	return err
}

// Close closes the notifications.
func (q *Queue) Close() error {
	kick := q.kick
	q.kick = -1 // the number may soon be another file's
	return errors.Join(unix.Close(kick), q.call.Close())
}
