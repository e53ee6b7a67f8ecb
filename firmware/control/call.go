// SPDX-License-Identifier: Apache-2.0

package control

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"time"

	"github.com/davit-dpu/davit/firmware/spec"
)

// AttachBus hands over the stream (or listener) of the bus and the DMA window.
// Errors: ErrExists when vcard has its bus already; nothing changed then.
func (c *Client) AttachBus(ctx context.Context, req AttachBus, stream, window *os.File) error {
	_, err := call[Done](ctx, c, &req, stream, window)
	return err
}

// AddDevice hands over a volume. Errors: ErrExists when the instance has a device
// of that name, ErrConflict when the memory range is not the instance's or overlaps
// another's, when others use the volume, and when an overlay belongs to another base.
func (c *Client) AddDevice(ctx context.Context, req AddDevice, files DeviceFiles) error {
	if (req.Base != nil) != (files.Base != nil) {
		return fmt.Errorf("add-device: %w: a base's file goes with Base", ErrInvalid)
	}
	if req.Listen != (files.Listener != nil) {
		return fmt.Errorf("add-device: %w: a listener goes with Listen", ErrInvalid)
	}
	all := []*os.File{files.Volume}
	for _, f := range []*os.File{files.Base, files.Listener} {
		if f != nil {
			all = append(all, f)
		}
	}
	_, err := call[Done](ctx, c, &req, all...)
	return err
}

// LimitDevice changes how fast a device works; nil: without limits. Errors: ErrNotFound.
func (c *Client) LimitDevice(ctx context.Context, instance, name string, limits *spec.Limits) error {
	_, err := call[Done](ctx, c, &LimitDevice{Instance: instance, Name: name, Limits: limits})
	return err
}

// RemoveDevice drains a device and gives up its volume. Errors: ErrNotFound.
func (c *Client) RemoveDevice(ctx context.Context, instance, name string) error {
	_, err := call[Done](ctx, c, &RemoveDevice{Instance: instance, Name: name})
	return err
}

// StartVMM stages and starts a VMM; kernel and initrd may be nil. The Blobs of
// order are ignored; the result carries those that vcard made. Errors:
// ErrNoHost, ErrHost with the host's answer, ErrConflict when the order does
// not fit the instance's devices or its VMM runs.
func (c *Client) StartVMM(ctx context.Context, order spec.VMMOrder, kernel, initrd *os.File) (*spec.VMMOrder, error) {
	order.Kernel, order.Initrd = nil, nil
	req := &StartVMM{Order: order, Kernel: kernel != nil, Initrd: initrd != nil}
	var files []*os.File
	for _, f := range []*os.File{kernel, initrd} {
		if f != nil {
			files = append(files, f)
		}
	}
	reply, err := call[StartVMMReply](ctx, c, req, files...)
	if err != nil {
		return nil, err
	}
	if reply.Order.Instance != order.Instance || reply.Order.Generation != order.Generation {
		return nil, fmt.Errorf("start-vmm: reply about another VMM: %w", ErrProtocol)
	}
	return &reply.Order, nil
}

// StopVMM asks the guest to power off, or with force the host to kill the VMM.
// Errors: ErrNotFound when no such VMM runs, ErrNoHost, ErrHost.
func (c *Client) StopVMM(ctx context.Context, instance, generation string, force bool) error {
	_, err := call[Done](ctx, c, &StopVMM{Instance: instance, Generation: generation, Force: force})
	return err
}

// ConsoleRead waits for an instance's console output from a stream offset on;
// 0 begins with what vcard still has. Errors: ErrNotFound when vcard has never
// seen a console of that instance.
func (c *Client) ConsoleRead(ctx context.Context, instance string, from uint64) (*ConsoleOutput, error) {
	out, err := call[ConsoleOutput](ctx, c, &ConsoleRead{Instance: instance, From: from})
	if err != nil {
		return nil, err
	}
	if out.Offset < from || len(out.Data) == 0 {
		return nil, fmt.Errorf("console-read: %d bytes from %d, wanted some from %d: %w", len(out.Data), out.Offset, from, ErrProtocol)
	}
	return out, nil
}

// ConsoleWrite types on an instance's console, at most MaxData bytes. Errors:
// ErrNotFound when its VMM has no console now.
func (c *Client) ConsoleWrite(ctx context.Context, instance string, data []byte) error {
	_, err := call[Done](ctx, c, &ConsoleWrite{Instance: instance, Data: data})
	return err
}

// Status is the truth at one moment. It travels in pages of one snapshot; one
// call at a time collects them.
func (c *Client) Status(ctx context.Context) (*Status, error) {
	select {
	case c.paging <- struct{}{}:
		defer func() { <-c.paging }()
	case <-ctx.Done():
		return nil, fmt.Errorf("status: %w", ctx.Err())
	}
	var all Status
	req := &StatusRequest{}
	for {
		page, err := call[StatusReply](ctx, c, req)
		if err != nil {
			return nil, err
		}
		if req.Snapshot != 0 && page.Snapshot != req.Snapshot {
			return nil, fmt.Errorf("status: a page of another snapshot: %w", ErrProtocol)
		}
		all.Host, all.Doors = page.Host, page.Doors
		all.Devices = append(all.Devices, page.Devices...)
		all.VMMs = append(all.VMMs, page.VMMs...)
		if len(all.Devices) > MaxDevices || len(all.VMMs) > MaxVMMs {
			return nil, fmt.Errorf("status: more than vcard may have: %w", ErrProtocol)
		}
		if !page.More {
			return &all, nil
		}
		if req, err = page.next(req); err != nil {
			return nil, err
		}
	}
}

// next is the request for the page behind this one.
func (m *StatusReply) next(req *StatusRequest) (*StatusRequest, error) {
	next := *req
	next.Snapshot = m.Snapshot
	if n := len(m.Devices); n > 0 {
		next.AfterDevice = m.Devices[n-1].Key()
	}
	if n := len(m.VMMs); n > 0 {
		next.AfterVMM = VMMKey(&m.VMMs[n-1])
	}
	forward := next.AfterDevice > req.AfterDevice || next.AfterVMM > req.AfterVMM
	if next.AfterDevice < req.AfterDevice || next.AfterVMM < req.AfterVMM || !forward || next.Snapshot == 0 {
		return nil, fmt.Errorf("status: pages are not in order: %w", ErrProtocol)
	}
	return &next, nil
}

// Shutdown drains all devices and ends the vcard process; the connection ends
// after the reply.
func (c *Client) Shutdown(ctx context.Context) error {
	_, err := call[Done](ctx, c, &Shutdown{})
	return err
}

// Door opens the byte stream of a door that an Event or Status named. Closing
// it closes the door. Reads wait for the host's client; ctx bounds the stream.
func (c *Client) Door(ctx context.Context, door uint64) io.ReadWriteCloser {
	ctx, cancel := context.WithCancel(ctx)
	return &doorStream{client: c, door: door, ctx: ctx, cancel: cancel}
}

// closeTimeout bounds what a vcard that does not answer costs whoever closes a
// door.
const closeTimeout = 5 * time.Second

// doorStream makes the door operations an io.ReadWriteCloser. One reader and
// one writer may use it at the same time.
type doorStream struct {
	client *Client
	door   uint64
	ctx    context.Context
	cancel context.CancelFunc
	rest   []byte // read, not yet delivered
	end    bool
}

// Read implements io.Reader.
func (d *doorStream) Read(p []byte) (int, error) {
	if len(p) == 0 {
		return 0, nil
	}
	for len(d.rest) == 0 {
		if d.end {
			return 0, io.EOF
		}
		data, err := call[DoorData](d.ctx, d.client, &DoorRead{Door: d.door})
		if err != nil {
			return 0, d.closed(err)
		}
		d.rest, d.end = data.Data, len(data.Data) == 0
	}
	n := copy(p, d.rest)
	d.rest = d.rest[n:]
	return n, nil
}

// Write implements io.Writer.
func (d *doorStream) Write(p []byte) (int, error) {
	written := 0
	for written < len(p) {
		chunk := p[written:min(len(p), written+MaxData)]
		if _, err := call[Done](d.ctx, d.client, &DoorWrite{Door: d.door, Data: chunk}); err != nil {
			return written, d.closed(err)
		}
		written += len(chunk)
	}
	return written, nil
}

// Close implements io.Closer. It interrupts Read and Write.
func (d *doorStream) Close() error {
	if d.ctx.Err() != nil {
		return nil
	}
	d.cancel()
	ctx, cancel := context.WithTimeout(context.WithoutCancel(d.ctx), closeTimeout)
	defer cancel()
	_, err := call[Done](ctx, d.client, &DoorClose{Door: d.door})
	if errors.Is(err, ErrNotFound) || errors.Is(err, ErrClosed) {
		return nil
	}
	return err
}

func (d *doorStream) closed(err error) error {
	if errors.Is(err, ErrNotFound) || d.ctx.Err() != nil {
		return io.ErrClosedPipe
	}
	return err
}
