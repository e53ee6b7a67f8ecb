// SPDX-License-Identifier: Apache-2.0

package main

import (
	"fmt"
	"os/exec"
	"sync"

	"golang.org/x/sys/unix"
)

// discarding keeps commands apart that open the device exclusively.
var discarding sync.Mutex

// discard has busybox do the BLKDISCARD ioctl.
func (w *worker) discard(off int64, n int) error {
	discarding.Lock()
	defer discarding.Unlock()
	out, err := exec.Command("/busybox", "blkdiscard", "-o", fmt.Sprint(off), "-l", fmt.Sprint(n), device).CombinedOutput()
	if err != nil {
		return fmt.Errorf("discard %d at %d: %w: %s", n, off, err, out)
	}
	return nil
}

// zero uses the block device's fallocate, which becomes write-zeroes requests:
// with permission to unmap, or without.
func (w *worker) zero(off int64, n int) error {
	mode := uint32(unix.FALLOC_FL_ZERO_RANGE | unix.FALLOC_FL_KEEP_SIZE)
	if w.rng.IntN(2) == 0 {
		mode = unix.FALLOC_FL_PUNCH_HOLE | unix.FALLOC_FL_KEEP_SIZE
	}
	if err := unix.Fallocate(int(w.f.Fd()), mode, off, int64(n)); err != nil {
		return fmt.Errorf("zero %d at %d, mode %#x: %w", n, off, mode, err)
	}
	return nil
}
