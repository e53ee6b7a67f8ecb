// SPDX-License-Identifier: Apache-2.0

package nbd

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"io"
	"maps"
	"net"
	"slices"
	"sync"
	"time"

	"golang.org/x/sys/unix"

	"github.com/davit-dpu/davit/firmware/disk"
)

// Before each attempt to connect: doubled each time, until a connection has served a request.
const (
	minPause = 50 * time.Millisecond
	maxPause = 5 * time.Second
)

// handshakeLimit is how long a server may take from connection to the end of the handshake.
const handshakeLimit = 10 * time.Second

// run serves the volume on one connection after the other, beginning with c,
// until it is closed.
func (v *Volume) run(c *conn) {
	defer close(v.ended)
	for pause := minPause; c != nil; {
		served, err := v.serve(c)
		if served {
			pause = minPause
		}
		if v.ctx.Err() == nil {
			v.log.Warn("connection lost", "err", err)
		}
		c, pause = v.reconnect(pause)
	}
	for _, r := range v.outstanding() {
		v.finish(r, disk.ErrClosed)
	}
}

// serve uses a connection until it ends, and says whether it has served any request.
// Afterwards nothing touches the requests that are left.
func (v *Volume) serve(c *conn) (served bool, err error) {
	stop := context.AfterFunc(v.ctx, c.hangUp)
	defer stop()
	v.mu.Lock()
	v.conn = c // from here on new requests are sent by those who make them
	again := v.outstandingLocked()
	v.mu.Unlock()
	var wg sync.WaitGroup
	wg.Go(func() {
		for _, r := range again {
			c.send(r)
		}
	})
	served, err = v.receive(c)
	if cause := c.kill(); cause != nil && errors.Is(err, net.ErrClosed) {
		err = cause // a sender has closed it
	}
	wg.Wait()
	v.mu.Lock()
	v.conn = nil
	v.mu.Unlock()
	v.lostConnection(err)
	return served, err
}

// receive reads replies until the connection ends.
func (v *Volume) receive(c *conn) (served bool, err error) {
	var raw [replyLen]byte
	for {
		if _, err := io.ReadFull(c, raw[:]); err != nil {
			return served, err
		}
		rep, err := parseReply(raw)
		if err != nil {
			return served, err
		}
		r := v.find(rep.cookie)
		if r == nil || !c.wasSent(r) {
			return served, fmt.Errorf("reply to request %d, which was not sent", rep.cookie)
		}
		if unix.Errno(rep.code) == unix.ESHUTDOWN {
			return served, errors.New("server is shutting down")
		}
		if rep.code == 0 && r.cmd == cmdRead {
			if err := c.receive(r); err != nil {
				return served, err
			}
		}
		served = true
		v.finish(r, errorOf(rep.code))
	}
}

// lostConnection draws the conclusions from the end of a connection. The requests
// that are left are sent again on the next one, but for those whose buffers are gone, and flushes that
// can not succeed any more.
func (v *Volume) lostConnection(cause error) {
	v.mu.Lock()
	if v.lost == nil && v.changed > v.durable {
		v.lost = fmt.Errorf("%d writes were not flushed when the connection was lost: %w", v.changed-v.durable, cause)
	}
	lost := v.lost
	v.mu.Unlock()
	for _, r := range v.outstanding() {
		switch {
		case r.fault != nil:
			v.finish(r, r.fault)
		case r.cmd == cmdFlush && lost != nil:
			v.finish(r, lost)
		default:
			r.phase.Store(unsent)
		}
	}
}

// reconnect tries, after a pause, until it has a connection; nil when the volume
// is closed. It returns the pause before the next attempt too.
func (v *Volume) reconnect(pause time.Duration) (*conn, time.Duration) {
	for said := ""; ; {
		select {
		case <-v.ctx.Done():
			return nil, 0
		case <-time.After(pause):
		}
		pause = min(2*pause, maxPause)
		c, export, err := connect(v.ctx, v.cfg)
		if err == nil && export != v.export {
			err = errors.Join(fmt.Errorf("server offers %v, it offered %v", export, v.export), c.Close())
		}
		if err == nil {
			v.log.Info("connected again")
			return c, pause
		}
		if text := err.Error(); text != said && v.ctx.Err() == nil {
			v.log.Warn("no connection", "err", err)
			said = text
		}
	}
}

// connect makes a connection and goes through the handshake.
func connect(ctx context.Context, cfg Config) (*conn, Export, error) {
	nc, err := cfg.Dial(ctx)
	if err != nil {
		return nil, Export{}, fmt.Errorf("connect: %w", err)
	}
	ctx, cancel := context.WithTimeout(ctx, handshakeLimit)
	defer cancel()
	stop := context.AfterFunc(ctx, func() { _ = nc.Close() })
	export, err := negotiate(nc, cfg.Export)
	if !stop() { // nc is closed
		err = errors.Join(ctx.Err(), err)
	}
	if err == nil && !cfg.ReadOnly && export.has(readOnly) {
		err = fmt.Errorf("server: %w", disk.ErrReadOnly)
	}
	if err != nil {
		_ = nc.Close()
		return nil, Export{}, fmt.Errorf("handshake: %w", err)
	}
	return &conn{Conn: nc}, export, nil
}

// find is the request with a cookie, nil if none is under way.
func (v *Volume) find(cookie uint64) *request {
	v.mu.Lock()
	defer v.mu.Unlock()
	return v.pending[cookie]
}

// outstanding is all requests under way, in the order in which they were made.
func (v *Volume) outstanding() []*request {
	v.mu.Lock()
	defer v.mu.Unlock()
	return v.outstandingLocked()
}

func (v *Volume) outstandingLocked() []*request {
	return slices.SortedFunc(maps.Values(v.pending), func(a, b *request) int { return cmp.Compare(a.cookie, b.cookie) })
}

// finish ends a request that is under way. Nobody but its maker may touch it afterwards.
func (v *Volume) finish(r *request, err error) {
	v.mu.Lock()
	delete(v.pending, r.cookie)
	switch r.cmd {
	case cmdWrite, cmdTrim, cmdWriteZeroes:
		if v.volatile {
			v.changed++ // also with an error: a part may have been done
		}
	case cmdFlush:
		if err == nil {
			v.durable = max(v.durable, r.covers)
		} else if v.lost == nil && !errors.Is(err, disk.ErrClosed) {
			v.lost = err
		}
	}
	v.mu.Unlock()
	r.done <- err
}
