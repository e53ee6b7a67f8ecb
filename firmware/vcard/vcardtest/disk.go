// SPDX-License-Identifier: Apache-2.0

package vcardtest

import (
	"encoding/binary"
	"errors"
	"fmt"
	"time"

	"github.com/davit-dpu/davit/firmware/virtio/virtq/virtqtest"
)

// Request types of virtio-blk (Virtio 1.2, 5.2.6).
const (
	typeIn    = 0
	typeOut   = 1
	typeFlush = 4
)

// Status bytes of virtio-blk.
const (
	StatusOK    = 0
	StatusIOErr = 1
)

// Disk is the driver of one queue of a virtio-blk device: a guest. It outlives
// the connections that serve it. It is used by one goroutine.
type Disk struct {
	Driver *virtqtest.Driver
	// Kick and Wait notify and wait over the present connection; they may be
	// exchanged while nothing waits.
	Kick func()
	Wait func() error

	slots   []slot
	free    []int
	waiting map[uint16]int
}

// slot is the memory of one request.
type slot struct {
	header, data, status virtqtest.Buf
	kind                 uint32
}

// NewDisk lays out a queue and buffers for depth requests of blockSize bytes
// each in mem, where its allocation stands. It uses no indirect tables: a driver
// allocates them as it goes, in whatever part of the pool the allocation has
// reached by then.
func NewDisk(mem *virtqtest.Memory, queueSize, depth, blockSize int) *Disk {
	d := &Disk{Driver: virtqtest.New(mem, queueSize, virtqtest.Options{EventIdx: true}), waiting: map[uint16]int{}}
	for i := range depth {
		d.slots = append(d.slots, slot{header: mem.Alloc(16), data: mem.Alloc(blockSize), status: mem.Alloc(1)})
		d.free = append(d.free, i)
	}
	return d
}

// Attach makes a front end's queue 0 the connection.
func (d *Disk) Attach(f *Front) {
	d.Kick = func() { f.Kick(0) }
	bell := f.Bell(0)
	d.Wait = func() error {
		t := time.NewTimer(Timeout)
		defer t.Stop()
		select {
		case <-bell:
			return nil
		case <-t.C:
			return fmt.Errorf("no completion in %v", Timeout)
		}
	}
}

// submit starts a request and returns its slot.
func (d *Disk) submit(kind uint32, sector uint64, data []byte) (int, error) {
	if len(d.free) == 0 {
		return 0, errors.New("no free slot")
	}
	i := d.free[len(d.free)-1]
	s := &d.slots[i]
	s.kind = kind
	binary.LittleEndian.PutUint32(s.header.Bytes, kind)
	binary.LittleEndian.PutUint32(s.header.Bytes[4:], 0)
	binary.LittleEndian.PutUint64(s.header.Bytes[8:], sector)
	s.status.Bytes[0] = 0xff
	readable, writable := []virtqtest.Buf{s.header}, []virtqtest.Buf{s.status}
	switch kind {
	case typeOut:
		copy(s.data.Bytes, data)
		readable = append(readable, s.data)
	case typeIn:
		writable = []virtqtest.Buf{s.data, s.status}
	}
	head, err := d.Driver.Add(readable, writable)
	if err != nil {
		return 0, err
	}
	d.free = d.free[:len(d.free)-1]
	d.waiting[head] = i
	if d.Driver.Publish() {
		d.Kick()
	}
	return i, nil
}

// SubmitWrite starts to write a block.
func (d *Disk) SubmitWrite(sector uint64, data []byte) error {
	_, err := d.submit(typeOut, sector, data)
	return err
}

// Pending is the number of requests under way.
func (d *Disk) Pending() int { return len(d.waiting) }

// Complete waits for the next request to complete and fails unless the device
// says that it succeeded.
func (d *Disk) Complete() error {
	_, err := d.complete()
	return err
}

func (d *Disk) complete() (int, error) {
	for {
		if head, _, ok := d.Driver.Collect(); ok {
			i, known := d.waiting[head]
			if !known {
				return 0, fmt.Errorf("chain %d was used, and was not available", head)
			}
			delete(d.waiting, head)
			d.free = append(d.free, i)
			if st := d.slots[i].status.Bytes[0]; st != StatusOK {
				return 0, fmt.Errorf("request of type %d: status %d", d.slots[i].kind, st)
			}
			return i, nil
		}
		if d.Driver.Arm() {
			continue
		}
		if err := d.Wait(); err != nil {
			return 0, err
		}
	}
}

// Write writes a block and waits. Nothing else may be pending.
func (d *Disk) Write(sector uint64, data []byte) error {
	if err := d.SubmitWrite(sector, data); err != nil {
		return err
	}
	return d.Complete()
}

// Read reads a block and waits. Nothing else may be pending.
func (d *Disk) Read(sector uint64) ([]byte, error) {
	if _, err := d.submit(typeIn, sector, nil); err != nil {
		return nil, err
	}
	i, err := d.complete()
	if err != nil {
		return nil, err
	}
	return append([]byte(nil), d.slots[i].data.Bytes...), nil
}

// Flush makes what was written durable and waits.
func (d *Disk) Flush() error {
	if _, err := d.submit(typeFlush, 0, nil); err != nil {
		return err
	}
	return d.Complete()
}
