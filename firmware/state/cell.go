// SPDX-License-Identifier: Apache-2.0

package state

import "sync"

// Cell holds the newest value of T. One goroutine (or one lock's holders)
// should call Set; any number may call Get. Values are handed over by
// assignment: a T with pointers, slices or maps must not be changed after Set.
// The zero Cell is ready to use and holds the zero T.
type Cell[T any] struct {
	mu      sync.Mutex
	value   T             // guarded by mu
	changed chan struct{} // guarded by mu; closed at the next Set, nil until somebody waits
}

// Set replaces the value and wakes all watchers.
func (c *Cell[T]) Set(v T) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.value = v
	if c.changed != nil {
		close(c.changed)
		c.changed = nil
	}
}

// Get returns the value and a channel that is closed when a later Set replaces
// it. A watcher loops: Get, use the value, wait for the channel.
func (c *Cell[T]) Get() (T, <-chan struct{}) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.changed == nil {
		c.changed = make(chan struct{})
	}
	return c.value, c.changed
}
