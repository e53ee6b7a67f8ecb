// SPDX-License-Identifier: Apache-2.0

package vcard

import (
	"context"
	"fmt"
	"sync"
	"time"

	"github.com/davit-dpu/davit/firmware/bus"
	"github.com/davit-dpu/davit/firmware/control"
	"github.com/davit-dpu/davit/firmware/spec"
)

// consoleBacklog is how much of an instance's newest output is kept.
const consoleBacklog = 64 << 10

// maxConsoles bounds the instances whose output is kept.
const maxConsoles = control.MaxVMMs

// console is the serial console of an instance, over all its starts.
type console struct {
	mu    sync.Mutex
	ring  []byte        // guarded by mu; the newest output
	end   uint64        // guarded by mu; stream offset behind ring
	more  chan struct{} // guarded by mu; closed when there is more, or at the end of the console
	over  bool          // guarded by mu; forgotten
	input *bus.Channel  // guarded by mu; nil while not connected
}

func newConsole() *console { return &console{more: make(chan struct{})} }

// consoleLocked returns an instance's console, making it if need be and
// dropping that of an instance that is gone for it; nil if there is no room.
func (c *Card) consoleLocked(instance string) *console {
	if con := c.consoles[instance]; con != nil {
		return con
	}
	if len(c.consoles) >= maxConsoles {
		for name, old := range c.consoles {
			if !c.usedLocked(name) {
				old.forget()
				delete(c.consoles, name)
				break
			}
		}
	}
	if len(c.consoles) >= maxConsoles {
		return nil
	}
	con := newConsole()
	c.consoles[instance] = con
	return con
}

// usedLocked reports whether an instance has a device or a VMM that runs.
func (c *Card) usedLocked(instance string) bool {
	for _, d := range c.devices {
		if d.req.Instance == instance {
			return true
		}
	}
	for _, v := range c.vmms {
		if v.status.Instance == instance && v.status.State == spec.VMMRunning {
			return true
		}
	}
	return false
}

// write appends output; the oldest is lost.
func (con *console) write(p []byte) {
	con.mu.Lock()
	defer con.mu.Unlock()
	con.end += uint64(len(p))
	con.ring = append(con.ring, p...)
	if over := len(con.ring) - consoleBacklog; over > 0 {
		con.ring = con.ring[:copy(con.ring, con.ring[over:])]
	}
	close(con.more)
	con.more = make(chan struct{})
}

func (con *console) forget() {
	con.mu.Lock()
	defer con.mu.Unlock()
	con.over = true
	close(con.more)
	con.more = make(chan struct{})
}

// read returns what there is from an offset on, at most limit bytes, or nil and
// what to wait for.
func (con *console) read(from uint64, limit int) (out *control.ConsoleOutput, more <-chan struct{}, err error) {
	con.mu.Lock()
	defer con.mu.Unlock()
	first := con.end - uint64(len(con.ring))
	switch {
	case con.over:
		return nil, nil, control.ErrNotFound
	case from > con.end:
		return nil, nil, fmt.Errorf("offset %d is behind the end %d: the vcard was restarted: %w", from, con.end, control.ErrInvalid)
	case from == con.end:
		return nil, con.more, nil
	}
	from = max(from, first)
	data := con.ring[from-first:]
	data = data[:min(len(data), limit)]
	return &control.ConsoleOutput{Offset: from, Data: append([]byte(nil), data...)}, nil, nil
}

func (con *console) setInput(ch *bus.Channel) {
	con.mu.Lock()
	defer con.mu.Unlock()
	con.input = ch
}

// followConsole keeps a VMM's console connected.
func (c *Card) followConsole(l *link, v *vmm, st spec.VMMStatus) {
	c.mu.Lock()
	con := c.consoleLocked(st.Instance)
	c.mu.Unlock()
	if con == nil {
		return
	}
	c.retry(l, v, func() error { return consoleOnce(l, con, st) }, "console", st)
}

func consoleOnce(l *link, con *console, st spec.VMMStatus) error {
	ctx, cancel := context.WithTimeout(l.ctx, 10*time.Second)
	defer cancel()
	ch, err := l.session.Open(ctx, bus.Open{Kind: bus.KindConsole, Instance: st.Instance, Generation: st.Generation})
	if err != nil {
		return err
	}
	defer ch.Close()
	stop := context.AfterFunc(l.ctx, func() { _ = ch.Close() })
	defer stop()
	con.setInput(ch)
	defer con.setInput(nil)
	buf := make([]byte, 4096)
	for {
		n, err := ch.Read(buf)
		if n > 0 {
			con.write(buf[:n])
		}
		if err != nil {
			return err
		}
	}
}

func (c *Card) console(instance string) (*console, error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	con := c.consoles[instance]
	if con == nil {
		return nil, fmt.Errorf("console of %s: %w", instance, control.ErrNotFound)
	}
	return con, nil
}

// readConsole waits for output.
func (c *Card) readConsole(ctx context.Context, req *control.ConsoleRead) (control.Reply, error) {
	con, err := c.console(req.Instance)
	if err != nil {
		return nil, err
	}
	for {
		out, more, err := con.read(req.From, control.MaxData)
		if err != nil {
			return nil, fmt.Errorf("console of %s: %w", req.Instance, err)
		}
		if out != nil {
			return out, nil
		}
		select {
		case <-more:
		case <-ctx.Done():
			return nil, ctx.Err()
		}
	}
}

// writeConsole types.
func (c *Card) writeConsole(ctx context.Context, req *control.ConsoleWrite) error {
	con, err := c.console(req.Instance)
	if err != nil {
		return err
	}
	con.mu.Lock()
	ch := con.input
	con.mu.Unlock()
	if ch == nil {
		return fmt.Errorf("console of %s is not connected: %w", req.Instance, control.ErrNotFound)
	}
	if err := writeAll(ctx, ch, req.Data); err != nil {
		return fmt.Errorf("console of %s: %w: %w", req.Instance, control.ErrHost, err)
	}
	return nil
}
