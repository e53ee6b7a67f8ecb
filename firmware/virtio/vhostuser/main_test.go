// SPDX-License-Identifier: Apache-2.0

package vhostuser_test

import (
	"fmt"
	"os"
	"runtime"
	"slices"
	"testing"
	"time"
)

// TestMain fails the whole run when a test leaves a file descriptor open.
func TestMain(m *testing.M) {
	r, w, err := os.Pipe() // starts the runtime's poller, which keeps descriptors
	if err == nil {
		_, _ = r.Close(), w.Close()
	}
	before := openFiles()
	code := m.Run()
	if after := openFilesUntil(len(before)); code == 0 && len(after) > len(before) {
		fmt.Fprintf(os.Stderr, "file descriptors leaked:\nbefore %v\nafter  %v\n", before, after)
		code = 1
	}
	os.Exit(code)
}

// openFilesUntil names what this process has open, once that is no more than
// some number: a call's goroutine closes its file in its own time.
func openFilesUntil(most int) []string {
	for end := time.Now().Add(10 * time.Second); ; runtime.Gosched() {
		if now := openFiles(); len(now) <= most || time.Now().After(end) {
			return now
		}
	}
}

// openFiles names what this process has open.
func openFiles() []string {
	entries, err := os.ReadDir("/proc/self/fd")
	if err != nil {
		return nil
	}
	var names []string
	for _, e := range entries {
		// the directory itself is closed by now, and is the only one that fails
		if to, err := os.Readlink("/proc/self/fd/" + e.Name()); err == nil {
			names = append(names, e.Name()+" "+to)
		}
	}
	return slices.Sorted(slices.Values(names))
}
