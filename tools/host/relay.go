// SPDX-License-Identifier: Apache-2.0

package host

import (
	"context"
	"io"
	"net"
	"sync"
	"time"

	"github.com/davit-dpu/davit/firmware/bus"
)

// relayQMP joins a channel with the VMM's QMP socket until either ends.
func relayQMP(ctx context.Context, v *vmm, o *bus.Offer) {
	conn, err := dial(ctx, v.dir, qmpSocket)
	if err != nil {
		o.Refuse(err.Error())
		return
	}
	join(ctx, conn, o.Accept())
}

// join copies bytes both ways until one side ends or ctx does; then both are
// closed.
func join(ctx context.Context, a, b net.Conn) {
	closeBoth := func() {
		_ = a.Close()
		_ = b.Close()
	}
	stop := context.AfterFunc(ctx, closeBoth)
	defer stop()
	var wg sync.WaitGroup
	for _, pair := range [][2]net.Conn{{a, b}, {b, a}} {
		wg.Go(func() {
			defer closeBoth()
			_, _ = io.Copy(pair[0], onlyReader{pair[1]}) // its end is all that matters
		})
	}
	wg.Wait()
}

// onlyReader keeps io.Copy on its plain path, with one bounded buffer.
type onlyReader struct{ io.Reader }

// maxBacklog is how much console output is kept while nobody takes it; older
// output is lost first. A guest is never stopped by its console.
const maxBacklog = 64 << 10

// console holds the connection to a VMM's serial console from its start on, so
// that early output is not lost, and lets one channel at a time use it.
type console struct {
	dir   string
	fresh chan struct{} // cap 1: there is output or a new connection
	turn  chan struct{} // cap 1: held by the channel in use
	ended chan struct{} // closed when there will be no more output

	mu      sync.Mutex
	backlog []byte             // guarded by mu
	conn    net.Conn           // guarded by mu; nil while not connected
	evict   context.CancelFunc // guarded by mu; ends the channel in use
}

func newConsole(dir string) *console {
	return &console{dir: dir, fresh: make(chan struct{}, 1), turn: make(chan struct{}, 1), ended: make(chan struct{})}
}

// pump reads the console until ctx, which ends with the VMM, does.
func (c *console) pump(ctx context.Context) {
	defer close(c.ended)
	for pause := 20 * time.Millisecond; ctx.Err() == nil; pause = min(2*pause, time.Second) {
		conn, err := dial(ctx, c.dir, consoleSocket)
		if err == nil {
			c.drain(ctx, conn)
			pause = 20 * time.Millisecond
		}
		sleep(ctx, pause)
	}
}

func (c *console) drain(ctx context.Context, conn net.Conn) {
	stop := context.AfterFunc(ctx, func() { _ = conn.SetReadDeadline(time.Now().Add(100 * time.Millisecond)) })
	defer stop()
	c.setConn(conn)
	defer func() {
		c.setConn(nil)
		_ = conn.Close()
	}()
	buf := make([]byte, 4096)
	for {
		n, err := conn.Read(buf)
		c.append(buf[:n])
		if err != nil {
			return
		}
	}
}

func (c *console) setConn(conn net.Conn) {
	c.mu.Lock()
	c.conn = conn
	c.mu.Unlock()
}

func (c *console) append(p []byte) {
	c.mu.Lock()
	c.backlog = append(c.backlog, p...)
	if over := len(c.backlog) - maxBacklog; over > 0 {
		c.backlog = c.backlog[:copy(c.backlog, c.backlog[over:])]
	}
	c.mu.Unlock()
	select {
	case c.fresh <- struct{}{}:
	default:
	}
}

func (c *console) take() []byte {
	c.mu.Lock()
	defer c.mu.Unlock()
	p := c.backlog
	c.backlog = nil
	return p
}

// relay gives the console to a channel, in place of the one that has it.
func (c *console) relay(ctx context.Context, ch *bus.Channel) {
	defer ch.Close()
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	c.mu.Lock()
	if c.evict != nil {
		c.evict()
	}
	c.evict = cancel
	c.mu.Unlock()
	select {
	case c.turn <- struct{}{}:
	case <-ctx.Done():
		return
	}
	defer func() { <-c.turn }()
	stop := context.AfterFunc(ctx, func() { _ = ch.Close() })
	defer stop()
	input := make(chan struct{})
	go func() {
		defer close(input)
		defer cancel()
		_, _ = io.Copy(inputOf{c}, onlyReader{ch}) // its end ends the relay
	}()
	c.output(ctx, ch)
	cancel()
	<-input
}

func (c *console) output(ctx context.Context, ch *bus.Channel) {
	for {
		if p := c.take(); len(p) > 0 {
			if _, err := ch.Write(p); err != nil {
				return
			}
			continue
		}
		select {
		case <-c.fresh:
		case <-ctx.Done():
			return
		case <-c.ended:
			_, _ = ch.Write(c.take()) // the channel ends here either way
			return
		}
	}
}

// inputOf writes to the console, or nowhere while the VMM is not connected.
type inputOf struct{ c *console }

// Write implements io.Writer.
func (w inputOf) Write(p []byte) (int, error) {
	w.c.mu.Lock()
	conn := w.c.conn
	w.c.mu.Unlock()
	if conn != nil {
		// A guest that takes no input must not hold up the output.
		_ = conn.SetWriteDeadline(time.Now().Add(time.Second))
		_, _ = conn.Write(p) // lost like keys typed at a dead terminal
	}
	return len(p), nil
}
