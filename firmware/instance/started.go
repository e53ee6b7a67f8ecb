// SPDX-License-Identifier: Apache-2.0

package instance

import "path/filepath"

// AnyStarted tells whether the records below stateDir say that a VMM was
// ordered and not yet seen to be gone. A record that cannot be read counts: it
// may be of one.
func AnyStarted(stateDir string) bool {
	good, bad, err := store{filepath.Join(stateDir, "instances")}.load()
	if err != nil {
		return false // there is no folder yet: nothing was ever ordered
	}
	for _, r := range good {
		if r.Generation != "" {
			return true
		}
	}
	return len(bad) > 0
}
