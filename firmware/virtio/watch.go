// SPDX-License-Identifier: Apache-2.0

package virtio

import "sync"

// ConfigWatcher is a Device whose configuration space changes by itself.
type ConfigWatcher interface {
	// WatchConfig has changed called after each such change, until stop is called:
	// when that returns, changed is not called any more. changed must not block,
	// and may be called by any goroutine.
	WatchConfig(changed func()) (stop func())
}

// ConfigWatch is a ConfigWatcher for a device to embed. Its zero value is ready.
type ConfigWatch struct {
	mu       sync.Mutex
	watchers map[*func()]struct{} // guarded by mu
}

// WatchConfig implements ConfigWatcher.
func (w *ConfigWatch) WatchConfig(changed func()) (stop func()) {
	w.mu.Lock()
	defer w.mu.Unlock()
	if w.watchers == nil {
		w.watchers = map[*func()]struct{}{}
	}
	w.watchers[&changed] = struct{}{}
	return func() {
		w.mu.Lock()
		defer w.mu.Unlock()
		delete(w.watchers, &changed)
	}
}

// ConfigChanged tells all who watch.
func (w *ConfigWatch) ConfigChanged() {
	w.mu.Lock()
	defer w.mu.Unlock()
	for changed := range w.watchers {
		(*changed)()
	}
}
