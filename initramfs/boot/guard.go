// SPDX-License-Identifier: Apache-2.0

package boot

import (
	"fmt"
	"io"
	"runtime/debug"
	"strings"
)

// guard runs fn in a goroutine of its own. A panic in any goroutine of pid 1
// would be a kernel panic, so each of ours is started here: a panic is written
// to w with its stack, and ends that goroutine only.
func guard(name string, w io.Writer, fn func()) {
	go func() {
		if err := caught(name, w, fn); err != nil {
			_, _ = fmt.Fprintf(w, "init: goroutine ended: %v\n", err)
		}
	}()
}

// caught runs fn and makes an error of a panic; the stack goes to w.
func caught(name string, w io.Writer, fn func()) (err error) {
	defer func() {
		if p := recover(); p != nil {
			err = fmt.Errorf("%s: panic: %v", name, p)
			for _, line := range strings.Split(string(debug.Stack()), "\n") {
				_, _ = fmt.Fprintf(w, "init: %s\n", line)
			}
		}
	}()
	fn()
	return nil
}
