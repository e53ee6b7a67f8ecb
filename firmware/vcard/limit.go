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
	logBurst    = 20
	logInterval = time.Second
)

// limiter is a slog.Handler that drops lines over its rate and says how many
// on the next one that passes.
type limiter struct {
	next   slog.Handler
	bucket *bucket
}

// limitLog puts a rate limit of its own before next.
func limitLog(next slog.Handler, now func() time.Time) slog.Handler {
	return &limiter{next: next, bucket: &bucket{now: now, tokens: logBurst, last: now()}}
}

// Enabled implements slog.Handler.
func (l *limiter) Enabled(ctx context.Context, level slog.Level) bool {
	return l.next.Enabled(ctx, level)
}

// Handle implements slog.Handler.
func (l *limiter) Handle(ctx context.Context, r slog.Record) error {
	dropped, ok := l.bucket.take()
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

type bucket struct {
	now func() time.Time

	mu      sync.Mutex
	tokens  float64   // guarded by mu
	last    time.Time // guarded by mu
	dropped uint64    // guarded by mu
}

// take says whether a line may pass, and how many did not since the last one.
func (b *bucket) take() (dropped uint64, ok bool) {
	b.mu.Lock()
	defer b.mu.Unlock()
	now := b.now()
	b.tokens = min(logBurst, b.tokens+float64(now.Sub(b.last))/float64(logInterval))
	b.last = now
	if b.tokens < 1 {
		b.dropped++
		return 0, false
	}
	b.tokens--
	dropped, b.dropped = b.dropped, 0
	return dropped, true
}
