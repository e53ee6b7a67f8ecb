// SPDX-License-Identifier: Apache-2.0

package vblk

import (
	"log/slog"
	"sync"
	"time"
)

// limitedLog writes at most one line a second: a guest decides how often a
// request fails.
type limitedLog struct {
	log *slog.Logger
	now func() time.Time

	mu      sync.Mutex
	last    time.Time // guarded by mu
	skipped uint64    // guarded by mu
}

func (l *limitedLog) failed(queue int, h header, err error) {
	l.mu.Lock()
	now := l.now()
	if !l.last.IsZero() && now.Sub(l.last) < time.Second {
		l.skipped++
		l.mu.Unlock()
		return
	}
	skipped := l.skipped
	l.last, l.skipped = now, 0
	l.mu.Unlock()
	l.log.Warn("block request failed", "queue", queue, "type", h.kind, "sector", h.sector, "err", err, "notlogged", skipped)
}
