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
func TestRunPauses(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var log bytes.Buffer
		ctx, cancel := context.WithCancel(t.Context())
		var dials atomic.Int64
		var failing atomic.Bool
		failing.Store(true)
		dial := func(context.Context) (io.ReadWriteCloser, error) {
			dials.Add(1)
			if failing.Load() {
				return nil, errors.New("nobody there")
			}
			a, b := net.Pipe()
			go func() {
				if s, err := Start(ctx, b, Config{Role: Host}); err == nil {
					s.Close("going")
				}
			}()
			return a, nil
		}
		done := make(chan error)
		go func() {
			done <- Run(ctx, Config{Role: Card, Log: slog.New(slog.NewTextHandler(&log, nil))}, dial, func(ctx context.Context, s *Session) error {
				<-ctx.Done()
				return nil
			})
		}()
		time.Sleep(60 * time.Second)
		synctest.Wait()
		if n := dials.Swap(0); n < 50 || n > 75 {
			t.Errorf("%d failing attempts in a minute", n)
		}
		failing.Store(false)
		time.Sleep(60 * time.Second)
		synctest.Wait()
		if n := dials.Load(); n < 250 || n > 310 {
			t.Errorf("%d short sessions in a minute", n)
		}
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
