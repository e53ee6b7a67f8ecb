// SPDX-License-Identifier: Apache-2.0

package vcard

import (
	"context"
	"log/slog"
	"sync"
	"time"
)

// A source of lines that others control may write a burst, then one line in
// every interval.
const (
	logBurst  = 20
	logPerSec = 1
)

// limiter is a slog.Handler that drops lines over its rate and says how many
// on the next one that passes.
type limiter struct {
	next   slog.Handler
	bucket *bucket
}

// limitLog puts a rate limit of its own before next.
func limitLog(next slog.Handler, now func() time.Time) slog.Handler {
	return &limiter{next: next, bucket: newBucket(now, logBurst, logPerSec)}
}

// Enabled implements slog.Handler.
func (l *limiter) Enabled(ctx context.Context, level slog.Level) bool {
	return l.next.Enabled(ctx, level)
}

// Handle implements slog.Handler.
func (l *limiter) Handle(ctx context.Context, r slog.Record) error {
	dropped, ok := l.bucket.take(1)
	if !ok {
		return nil
	}
	if dropped > 0 {
		r = r.Clone()
		r.AddAttrs(slog.Uint64("dropped", dropped))
	}
	return l.next.Handle(ctx, r)
}

// WithAttrs implements slog.Handler; the rate stays one.
func (l *limiter) WithAttrs(attrs []slog.Attr) slog.Handler {
	return &limiter{next: l.next.WithAttrs(attrs), bucket: l.bucket}
}

// WithGroup implements slog.Handler; the rate stays one.
func (l *limiter) WithGroup(name string) slog.Handler {
	return &limiter{next: l.next.WithGroup(name), bucket: l.bucket}
}

// bucket lets a burst of something pass, then so much a second.
type bucket struct {
	now    func() time.Time
	burst  float64
	perSec float64

	mu      sync.Mutex
	tokens  float64   // guarded by mu
	last    time.Time // guarded by mu
	dropped uint64    // guarded by mu
}

func newBucket(now func() time.Time, burst, perSec float64) *bucket {
	return &bucket{now: now, burst: burst, perSec: perSec, tokens: burst, last: now()}
}

// take says whether n more may pass, all or nothing, and how often that was
// refused since the last time.
func (b *bucket) take(n int) (dropped uint64, ok bool) {
	b.mu.Lock()
	defer b.mu.Unlock()
	now := b.now()
	b.tokens = min(b.burst, b.tokens+now.Sub(b.last).Seconds()*b.perSec)
	b.last = now
	if b.tokens < float64(n) {
		b.dropped++
		return 0, false
	}
	b.tokens -= float64(n)
	dropped, b.dropped = b.dropped, 0
	return dropped, true
}
