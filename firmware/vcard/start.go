// SPDX-License-Identifier: Apache-2.0

package vcard

import (
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"io"
	"os"
	"time"

	"golang.org/x/sys/unix"

	"github.com/davit-dpu/davit/firmware/control"
	"github.com/davit-dpu/davit/firmware/spec"
	"github.com/davit-dpu/davit/firmware/virtio/guestmem"
)

const (
	stageChunk   = 4 << 20         // bytes zeroed or copied between two looks at the context
	startTimeout = 2 * time.Minute // for the host's answer to an order
)

// startVMM stages an instance's memory and orders its host to start it.
func (c *Card) startVMM(ctx context.Context, req *control.StartVMM, files *control.Files) (control.Reply, error) {
	order := req.Order
	var kernel, initrd *os.File
	if req.Kernel {
		kernel = files.Take(0)
		defer kernel.Close()
	}
	if req.Initrd {
		initrd = files.Take(1)
		defer initrd.Close()
	}
	fail := func(err error) (control.Reply, error) {
		return nil, fmt.Errorf("start VMM of %s: %w", order.Instance, err)
	}
	l, err := c.currentLink()
	if err != nil {
		return fail(err)
	}
	if err := c.beginStart(&order, l); err != nil {
		return fail(err)
	}
	defer c.endStart(order.Instance)
	ctx, cancel := l.within(ctx)
	defer cancel()
	err = c.drain(ctx, order.Instance)
	if err == nil {
		err = c.stage(ctx, &order, kernel, initrd)
	}
	if err != nil {
		if l.ctx.Err() != nil {
			err = hostError(l, err)
		}
		return fail(err)
	}
	if err := c.order(ctx, l, order); err != nil {
		return fail(err)
	}
	return &control.StartVMMReply{Order: order}, nil
}

// order sends the order and records what the host answers.
func (c *Card) order(ctx context.Context, l *link, order spec.VMMOrder) error {
	if err := order.Validate(c.poolSize(l)); err != nil {
		return fmt.Errorf("%w: %w", control.ErrInvalid, err)
	}
	ctx, cancel := context.WithTimeout(ctx, startTimeout)
	defer cancel()
	st, err := l.orders.Start(ctx, order)
	if err != nil {
		return hostError(l, err)
	}
	if st.State != spec.VMMRunning {
		c.report(l, st)
		return fmt.Errorf("%w: it exited at once: %s", control.ErrHost, control.Text(st.Reason, 256))
	}
	if v := c.running(l, st); v != nil {
		c.mu.Lock()
		v.memory = memoryRange{order.PoolOffset, order.Memory}
		c.mu.Unlock()
	}
	return nil
}

// poolSize is the part of the pool that both ends have.
func (c *Card) poolSize(l *link) spec.Bytes {
	c.mu.Lock()
	defer c.mu.Unlock()
	size := c.host.WindowBase + c.host.WindowSize
	if p := spec.Bytes(l.session.Peer().PoolSize); p != 0 {
		size = min(size, p)
	}
	return size
}

// beginStart refuses an order that does not fit what is there, and reserves the
// instance and its memory for it.
func (c *Card) beginStart(order *spec.VMMOrder, l *link) error {
	r := memoryRange{order.PoolOffset, order.Memory}
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.closing || l.ctx.Err() != nil {
		return fmt.Errorf("going down: %w", control.ErrConflict)
	}
	if _, ok := c.starting[order.Instance]; ok {
		return fmt.Errorf("a start is under way: %w", control.ErrConflict)
	}
	for _, v := range c.vmms {
		if v.status.Instance == order.Instance && v.status.State == spec.VMMRunning {
			return fmt.Errorf("generation %s runs: %w", v.status.Generation, control.ErrConflict)
		}
	}
	if err := c.fitsLocked(order.Instance, r); err != nil {
		return err
	}
	for _, disk := range order.Disks {
		d := c.devices[order.Instance+"/"+disk.Device]
		switch {
		case d == nil || d.removed || d.listener != nil:
			return fmt.Errorf("disk %s is not a device on the bus: %w", disk.Device, control.ErrConflict)
		case d.req.Queues != disk.Queues:
			return fmt.Errorf("disk %s has %d queues, the device %d: %w", disk.Device, disk.Queues, d.req.Queues, control.ErrConflict)
		case d.req.Generation != "" && !d.serves(order.Generation):
			return fmt.Errorf("device %s is for generation %s: %w", disk.Device, d.generation, control.ErrConflict)
		}
	}
	for _, d := range c.devices {
		if d.req.Instance == order.Instance && d.req.Generation == "" && d.listener == nil {
			d.generation = order.Generation
			d.endSessions(errors.New("a new start of the instance was ordered"))
		}
	}
	c.starting[order.Instance] = r
	return nil
}

func (c *Card) endStart(instance string) {
	c.mu.Lock()
	defer c.mu.Unlock()
	delete(c.starting, instance)
}

// drain waits until nothing that an earlier start of the instance asked for is
// in flight: it would be written into the memory of the new one. beginStart has
// ended those sessions and lets no others in.
func (c *Card) drain(ctx context.Context, instance string) error {
	c.mu.Lock()
	var own []*device
	for _, d := range c.devices {
		if d.req.Instance == instance && d.listener == nil {
			own = append(own, d)
		}
	}
	c.mu.Unlock()
	for _, d := range own {
		mine, err := d.drain(ctx)
		if err != nil {
			return err
		}
		if mine {
			d.reopen(cap(d.turn))
		}
	}
	return nil
}

// stage makes the instance's memory zero but for the boot files at its top,
// and writes into the order where they are:
//
//	PoolOffset                                                    PoolOffset + Memory
//	│ zeros …                        │ kernel │ pad │ initrd │ pad │
func (c *Card) stage(ctx context.Context, order *spec.VMMOrder, kernel, initrd *os.File) error {
	c.mu.Lock()
	w := c.window
	c.mu.Unlock()
	mem, err := w.Slice(uint64(order.PoolOffset), uint64(order.Memory))
	if err != nil {
		return err
	}
	return guarded(mem, func() error {
		if err := w.zero(ctx, mem, order.PoolOffset); err != nil {
			return err
		}
		top := spec.Bytes(len(mem))
		for _, f := range []struct {
			name string
			file *os.File
			blob **spec.Blob
		}{{"initrd", initrd, &order.Initrd}, {"kernel", kernel, &order.Kernel}} {
			if f.file == nil {
				continue
			}
			b, err := copyBlob(ctx, mem, top, f.file)
			if err != nil {
				return fmt.Errorf("stage %s: %w", f.name, err)
			}
			top = b.Offset
			b.Offset += order.PoolOffset
			*f.blob = b
		}
		return nil
	})
}

// guarded runs fn, which touches mem: a host that truncates its pool must not
// end this process.
func guarded(mem []byte, fn func() error) error {
	region, err := guestmem.NewRegion(0, 0, mem, nil)
	if err != nil {
		return err
	}
	m, err := guestmem.New([]guestmem.Region{region})
	if err != nil {
		return err
	}
	return m.Guard(fn)
}

// zero clears an instance's memory. In a regular file the pages are given back
// instead, which reads as zeros and is quicker.
func (w *window) zero(ctx context.Context, mem []byte, offset spec.Bytes) error {
	if w.regular && w.punch(uint64(offset)-w.PoolOffset()+w.fileOffset, uint64(len(mem))) == nil {
		return ctx.Err()
	}
	for len(mem) > 0 {
		if err := ctx.Err(); err != nil {
			return fmt.Errorf("zero memory: %w", err)
		}
		n := min(len(mem), stageChunk)
		clear(mem[:n])
		mem = mem[n:]
	}
	return nil
}

func (w *window) punch(off, size uint64) error {
	raw, err := w.file.SyscallConn()
	if err != nil {
		return err
	}
	var perr error
	err = raw.Control(func(fd uintptr) {
		perr = unix.Fallocate(int(fd), unix.FALLOC_FL_PUNCH_HOLE|unix.FALLOC_FL_KEEP_SIZE, int64(off), int64(size))
	})
	return errors.Join(err, perr)
}

// copyBlob copies a boot file into mem so that it ends below top. The digest is
// of what was read, not of the memory, which the host can change. Offset counts
// from the beginning of mem.
func copyBlob(ctx context.Context, mem []byte, top spec.Bytes, f *os.File) (*spec.Blob, error) {
	const page = 4 * spec.KiB
	st, err := f.Stat()
	if err != nil {
		return nil, err
	}
	size := spec.Bytes(st.Size())
	if !st.Mode().IsRegular() || st.Size() <= 0 || size > spec.MaxBlob {
		return nil, fmt.Errorf("%s of %d bytes: want a regular file of 1 byte to %s: %w", st.Mode().Type(), st.Size(), spec.MaxBlob, control.ErrInvalid)
	}
	padded := (size + page - 1) / page * page
	if padded > top {
		return nil, fmt.Errorf("%d bytes do not fit into the instance's memory: %w", size, control.ErrInvalid)
	}
	from := top - padded
	dst, sum := mem[from:from+size], sha256.New()
	in, buf := io.NewSectionReader(f, 0, st.Size()), make([]byte, stageChunk)
	for len(dst) > 0 {
		if err := ctx.Err(); err != nil {
			return nil, err
		}
		n, err := io.ReadFull(in, buf[:min(len(dst), len(buf))])
		if err != nil {
			return nil, err
		}
		sum.Write(buf[:n])
		dst = dst[copy(dst, buf[:n]):]
	}
	return &spec.Blob{Offset: from, Length: size, SHA256: sum.Sum(nil)}, nil
}
