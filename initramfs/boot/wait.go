// SPDX-License-Identifier: Apache-2.0

package boot

import (
	"context"
	"errors"
	"fmt"
	"os"
	"time"

	"golang.org/x/sys/unix"
)

// waitFor waits until found says yes or fails, and asks it whenever something
// in dir changes; the kernel makes its device nodes there, so that no time is
// slept away. The error says that the time was up.
func waitFor(ctx context.Context, dir string, within time.Duration, found func() (bool, error)) error {
	fd, err := unix.InotifyInit1(unix.IN_CLOEXEC | unix.IN_NONBLOCK)
	if err != nil {
		return fmt.Errorf("watch %s: %w", dir, err)
	}
	f := os.NewFile(uintptr(fd), "inotify")
	defer f.Close()
	if _, err := unix.InotifyAddWatch(fd, dir, unix.IN_CREATE|unix.IN_ATTRIB|unix.IN_MOVED_TO); err != nil {
		return fmt.Errorf("watch %s: %w", dir, err)
	}
	if err := f.SetReadDeadline(time.Now().Add(within)); err != nil {
		return fmt.Errorf("watch %s: %w", dir, err)
	}
	stop := context.AfterFunc(ctx, func() { _ = f.SetReadDeadline(time.Unix(1, 0)) })
	defer stop()
	events := make([]byte, 4096)
	for {
		// Asked after the watch exists: what appears in between is an event.
		ok, err := found()
		if ok || err != nil {
			return err
		}
		_, err = f.Read(events)
		if errors.Is(err, os.ErrDeadlineExceeded) {
			return fmt.Errorf("not there within %v", within)
		}
		if err != nil {
			return fmt.Errorf("watch %s: %w", dir, err)
		}
	}
}

func exists(path string) func() (bool, error) {
	return func() (bool, error) {
		_, err := os.Stat(path)
		if errors.Is(err, os.ErrNotExist) {
			return false, nil
		}
		return err == nil, err
	}
}
