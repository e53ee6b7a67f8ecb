// SPDX-License-Identifier: Apache-2.0

package bus

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"time"
)

// DialFunc gives the next stream to talk over. It blocks until there is one or
// ctx ends; an error is retried with a growing pause.
type DialFunc func(ctx context.Context) (io.ReadWriteCloser, error)

// Pauses between attempts double from minPause. A session that came up lets
// the next one begin after a short pause at most: devices wait for it. Still a
// peer that comes and goes at once cannot keep this end busy.
const (
	minPause  = 20 * time.Millisecond
	flapPause = 200 * time.Millisecond
	maxPause  = time.Second
	quietTime = 10 * time.Second // a session that lasted so long was a good one
)

// Run keeps the bus up until ctx ends: dial, open a session, hand it to handle,
// and again. handle is given a context that ends with the session; when it
// returns, the session is closed with the error's text. Both ends run this
// loop, so either may be restarted at any time and in any order.
func Run(ctx context.Context, cfg Config, dial DialFunc, handle func(context.Context, *Session) error) error {
	cfg = cfg.withDefaults()
	log := &changeLog{log: cfg.Log}
	for pause := minPause; ctx.Err() == nil; pause *= 2 {
		began := time.Now()
		up, err := runOne(ctx, cfg, dial, handle, log)
		if ctx.Err() != nil {
			break
		}
		log.say(time.Now(), "bus is down", "reason", err.Error())
		limit := maxPause
		if up {
			limit = flapPause
		}
		if up && time.Since(began) > quietTime {
			pause = minPause
		}
		pause = min(pause, limit)
		if !sleep(ctx, pause) {
			break
		}
	}
	return ctx.Err()
}

// changeLog logs changes, but not the same one again and again, and no more
// than a few in a row from a peer that comes and goes.
type changeLog struct {
	log    *slog.Logger
	last   string
	budget int       // lines that may still be written
	filled time.Time // when budget was last full
	lost   int
}

// changeLines is how many lines may be written in each quietTime.
const changeLines = 10

func (c *changeLog) say(now time.Time, text string, args ...any) {
	line := fmt.Sprint(text, args)
	if line == c.last {
		return
	}
	c.last = line
	if now.Sub(c.filled) > quietTime {
		c.filled, c.budget = now, changeLines
	}
	if c.budget == 0 {
		c.lost++
		return
	}
	c.budget--
	if c.lost > 0 {
		args = append(args, "linesLost", c.lost)
		c.lost = 0
	}
	c.log.Info(text, args...)
}

// runOne lives as long as one session and says whether it came up, and why it
// ended.
func runOne(ctx context.Context, cfg Config, dial DialFunc, handle func(context.Context, *Session) error, log *changeLog) (up bool, err error) {
	rw, err := dial(ctx)
	if err != nil {
		return false, fmt.Errorf("dial: %w", err)
	}
	s, err := Start(ctx, rw, cfg)
	if err != nil {
		return false, err
	}
	p := s.Peer()
	log.say(time.Now(), "bus is up", "peer", p.Role.String(), "build", p.Build, "version", p.Version, "pool", p.PoolSize)
	sctx, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	stop := context.AfterFunc(ctx, func() { cancel(ctx.Err()) })
	defer stop()
	go func() {
		<-s.Done()
		cancel(s.Err())
	}()
	err = handle(sctx, s)
	reason := "shutting down"
	if err != nil {
		reason = err.Error()
	}
	s.Close(reason)
	return true, s.Err()
}

// sleep waits for d and reports false if ctx ended first.
func sleep(ctx context.Context, d time.Duration) bool {
	t := time.NewTimer(d)
	defer t.Stop()
	select {
	case <-t.C:
		return true
	case <-ctx.Done():
		return false
	}
}

// DialUnix connects to a unix stream socket: the chardev of a card's
// virtio-serial port, or the bus listener of a loopback card.
func DialUnix(path string) DialFunc {
	return func(ctx context.Context) (io.ReadWriteCloser, error) {
		var d net.Dialer
		return d.DialContext(ctx, "unix", path)
	}
}

// AcceptFrom takes the streams from a listener, one at a time. The listener
// stays the caller's.
func AcceptFrom(l *net.UnixListener) DialFunc {
	return func(ctx context.Context) (io.ReadWriteCloser, error) {
		if err := l.SetDeadline(time.Time{}); err != nil {
			return nil, fmt.Errorf("accept: %w", err)
		}
		fired := make(chan struct{})
		stop := context.AfterFunc(ctx, func() {
			_ = l.SetDeadline(time.Unix(1, 0)) // fails only on a closed listener, whose Accept fails too
			close(fired)
		})
		c, err := l.AcceptUnix()
		if !stop() {
			<-fired
		}
		if err != nil {
			if ctx.Err() != nil {
				err = ctx.Err()
			}
			return nil, err
		}
		if ctx.Err() != nil {
			return nil, errors.Join(ctx.Err(), c.Close())
		}
		return c, nil
	}
}
