// SPDX-License-Identifier: Apache-2.0

package bus

import (
	"os"
	"sync"
	"time"
)

// deadline is a point in time that may be moved while somebody waits for it.
// The zero deadline never comes.
type deadline struct {
	mu      sync.Mutex
	timer   *time.Timer   // guarded by mu
	passed  chan struct{} // guarded by mu; closed when the deadline has come
	changed chan struct{} // guarded by mu; closed by the next set
}

func (d *deadline) chans() (passed, changed chan struct{}) {
	d.mu.Lock()
	defer d.mu.Unlock()
	if d.passed == nil {
		d.passed, d.changed = make(chan struct{}), make(chan struct{})
	}
	return d.passed, d.changed
}

func (d *deadline) done() <-chan struct{} {
	passed, _ := d.chans()
	return passed
}

func (d *deadline) expired() bool {
	select {
	case <-d.done():
		return true
	default:
		return false
	}
}

// set moves the deadline; the zero time means never.
func (d *deadline) set(t time.Time) {
	_, _ = d.chans()
	d.mu.Lock()
	defer d.mu.Unlock()
	if d.timer != nil {
		d.timer.Stop()
		d.timer = nil
	}
	close(d.changed)
	d.passed, d.changed = make(chan struct{}), make(chan struct{})
	if t.IsZero() {
		return
	}
	passed := d.passed
	if left := time.Until(t); left > 0 {
		d.timer = time.AfterFunc(left, func() { close(passed) })
		return
	}
	close(passed)
}

// wait returns when ready fires, or with os.ErrDeadlineExceeded when the
// deadline, as it stands at that moment, comes first.
func (d *deadline) wait(ready <-chan struct{}) error {
	for {
		passed, changed := d.chans()
		select {
		case <-ready:
			return nil
		case <-passed:
			return os.ErrDeadlineExceeded
		case <-changed:
		}
	}
}
