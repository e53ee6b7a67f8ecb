// SPDX-License-Identifier: Apache-2.0

package main

import (
	"encoding/binary"
	"errors"
	"fmt"
	"net"
	"time"

	"github.com/davit-dpu/davit/firmware/virtio"
	"github.com/davit-dpu/davit/firmware/virtio/guestmem"
	"github.com/davit-dpu/davit/firmware/virtio/vblk"
	"github.com/davit-dpu/davit/firmware/virtio/vhostuser/vhostusertest"
	"github.com/davit-dpu/davit/firmware/virtio/virtq/virtqtest"
)

const (
	sectorSize = 512
	queueSize  = 256
	// chainLength is the number of descriptors of a request.
	chainLength = 3
	headerSize  = 16
	// line is the processor's cache line: what one side writes shares none with
	// what the other does.
	line = 64
)

// Request types and the one good status (Virtio 1.2, 5.2.6).
const (
	typeIn   = 0
	typeOut  = 1
	statusOK = 0
)

// noStatus is in a status byte that the device has not written yet.
const noStatus = 0xff

// The operations.
const (
	randRead  = "randread"
	randWrite = "randwrite"
	seqRead   = "seqread"
	seqWrite  = "seqwrite"
	idle      = "idle"
)

// job is what to do with a device.
type job struct {
	op       string
	block    int // bytes
	depth    int
	duration time.Duration
	span     int64 // bytes of the volume, from its beginning; 0: all
	sleep    bool
}

func (j job) check() error {
	switch j.op {
	case randRead, randWrite, seqRead, seqWrite, idle:
	default:
		return fmt.Errorf("operation %q is unknown", j.op)
	}
	if j.block < sectorSize || j.block%sectorSize != 0 || j.block > 16<<20 {
		return fmt.Errorf("blocks of %d bytes: want a multiple of %d up to 16 MiB", j.block, sectorSize)
	}
	if j.depth < 1 || j.depth > queueSize/chainLength {
		return fmt.Errorf("depth %d: 1 to %d are possible", j.depth, queueSize/chainLength)
	}
	return nil
}

// client is the only user of a device.
type client struct {
	front *vhostusertest.FrontEnd
	mem   *virtqtest.Memory
	queue *vhostusertest.Queue
	slots [queueSize]slot // by the head of its chain
	heads []uint16        // of the slots in use
	size  int64           // of the volume, bytes
}

// slot is one request's place in guest memory.
type slot struct {
	sector []byte // of the header
	data   []byte
	status []byte
}

// connect takes over conn and starts the device's queue 0 with slots for a job.
func connect(conn *net.UnixConn, j job) (*client, error) {
	c := &client{front: vhostusertest.New(conn)}
	if err := errors.Join(j.check(), c.start(j)); err != nil {
		return nil, errors.Join(err, c.close())
	}
	return c, nil
}

func (c *client) start(j job) error {
	// FeatureFlush: without it each write would have to be durable at once.
	if err := c.front.Negotiate(virtio.FeatureVersion1 | virtio.FeatureEventIdx | vblk.FeatureFlush); err != nil {
		return err
	}
	capacity, err := c.front.ReadConfig(0, 8)
	if err != nil {
		return err
	}
	c.size = int64(binary.LittleEndian.Uint64(capacity)) * sectorSize
	room := j.depth*(j.block+guestmem.PageSize) + 1<<20 // with the rings, and a page for what is around each block
	if c.mem, err = virtqtest.NewMemory((room + guestmem.PageSize - 1) &^ (guestmem.PageSize - 1)); err != nil {
		return err
	}
	driver := virtqtest.New(c.mem, queueSize, virtqtest.Options{EventIdx: true})
	for range j.depth {
		if err := c.addSlot(driver, j); err != nil {
			return err
		}
	}
	if err := c.front.SetMemory(c.mem); err != nil {
		return err
	}
	c.queue, err = c.front.StartQueue(0, driver, 0)
	return err
}

// addSlot prepares the chain of one more request in flight.
func (c *client) addSlot(driver *virtqtest.Driver, j job) error {
	data := c.mem.AllocAligned(j.block, guestmem.PageSize)
	header, status := c.mem.AllocAligned(headerSize, line), c.mem.AllocAligned(1, line)
	for i := range data.Bytes { // also: no page of it is touched for the first time later on
		data.Bytes[i] = byte(i) ^ byte(i>>8)
	}
	status.Bytes[0] = noStatus
	kind, readable, writable := uint32(typeIn), []virtqtest.Buf{header}, []virtqtest.Buf{data, status}
	if j.op == randWrite || j.op == seqWrite {
		kind, readable, writable = typeOut, []virtqtest.Buf{header, data}, []virtqtest.Buf{status}
	}
	binary.LittleEndian.PutUint32(header.Bytes, kind)
	head, err := driver.Prepare(readable, writable)
	if err != nil {
		return err
	}
	c.slots[head] = slot{sector: header.Bytes[8:], data: data.Bytes, status: status.Bytes}
	c.heads = append(c.heads, head)
	return nil
}

// close stops the queue and ends the connection.
func (c *client) close() error {
	var errs []error
	if c.queue != nil {
		_, err := c.front.StopQueue(0)
		errs = append(errs, err, c.queue.Close())
	}
	errs = append(errs, c.front.Close())
	if c.mem != nil {
		errs = append(errs, c.mem.Close())
	}
	return errors.Join(errs...)
}
