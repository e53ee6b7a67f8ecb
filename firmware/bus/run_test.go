// SPDX-License-Identifier: Apache-2.0

package bus

import (
	"bytes"
	"context"
	"errors"
	"io"
	"log/slog"
	"net"
	"strings"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"
)

// TestRunPauses: attempts that fail come slower and slower, those after a
// session at once, and the log stays short however often the peer comes and goes.
// The clock stands still while anybody runs, so that what is between two attempts
// is the pause, to the nanosecond.
func TestRunPauses(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var log bytes.Buffer
		ctx, cancel := context.WithCancel(t.Context())
		attempts := make(chan time.Time)
		var failing atomic.Bool
		failing.Store(true)
		joined := make(chan struct{})
		dial := func(ctx context.Context) (io.ReadWriteCloser, error) {
			select {
			case attempts <- time.Now():
			case <-ctx.Done():
			}
			if failing.Load() {
				return nil, errors.New("nobody there")
			}
			a, b := net.Pipe()
			go func() {
				if s, err := Start(ctx, b, Config{Role: Host}); err == nil {
					select { // else the stream may end before the card has seen a session
					case <-joined:
					case <-ctx.Done():
					}
					s.Close("going")
				}
			}()
			return a, nil
		}
		done := make(chan error)
		go func() {
			done <- Run(ctx, Config{Role: Card, Log: slog.New(slog.NewTextHandler(&log, nil))}, dial, func(ctx context.Context, s *Session) error {
				select {
				case joined <- struct{}{}:
				case <-ctx.Done():
				}
				<-ctx.Done()
				return nil
			})
		}()
		last := <-attempts
		pauses := func(what string, n int, next func(time.Duration) time.Duration) {
			want := next(0)
			for i := range n {
				at := <-attempts
				if got := at.Sub(last); got != want {
					t.Errorf("%v before attempt %d %s, want %v", got, i, what, want)
				}
				last, want = at, next(want)
			}
		}
		pauses("of those that fail", 60, func(d time.Duration) time.Duration { return min(max(2*d, minPause), maxPause) })
		synctest.Wait() // the last of them has failed, too
		failing.Store(false)
		pauses("behind the last one that failed", 1, func(time.Duration) time.Duration { return maxPause })
		pauses("behind a session", 300, func(time.Duration) time.Duration { return flapPause })
		cancel()
		if err := <-done; !errors.Is(err, context.Canceled) {
			t.Errorf("ended with %v", err)
		}
		if n := strings.Count(log.String(), "\n"); n < 20 || n > 7*changeLines {
			t.Errorf("%d lines in the log", n)
		}
		if !strings.Contains(log.String(), "linesLost=") {
			t.Error("lost lines are not mentioned")
		}
	})
}
