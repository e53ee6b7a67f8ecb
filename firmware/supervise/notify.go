// SPDX-License-Identifier: Apache-2.0

package supervise

import (
	"errors"
	"fmt"
	"os"
	"strconv"
	"sync"

	"golang.org/x/sys/unix"
)

const (
	notifyEnv = "DAVIT_NOTIFY_FD" // descriptor number, decimal
	readyWord = "ready\n"
)

// Notifier takes the readiness pipe that the supervisor gave this process, and
// returns the function that says, once, that it is ready to serve. Call it
// before any other process is started: from then on no child inherits the pipe,
// which would keep it open and could speak for us. In a process that nobody
// supervises the function does nothing.
func Notifier() (ready func() error, err error) {
	v, ok := os.LookupEnv(notifyEnv)
	if !ok {
		return func() error { return nil }, nil
	}
	if err := os.Unsetenv(notifyEnv); err != nil {
		return nil, fmt.Errorf("unset %s: %w", notifyEnv, err)
	}
	n, err := strconv.Atoi(v)
	if err != nil || n < 3 {
		return nil, fmt.Errorf("%s=%q is not a descriptor", notifyEnv, v)
	}
	if _, err := unix.FcntlInt(uintptr(n), unix.F_SETFD, unix.FD_CLOEXEC); err != nil {
		return nil, fmt.Errorf("%s=%q is not an open descriptor: %w", notifyEnv, v, err)
	}
	f := os.NewFile(uintptr(n), "readiness pipe")
	return sync.OnceValue(func() error {
		_, err := f.WriteString(readyWord)
		if err = errors.Join(err, f.Close()); err != nil {
			return fmt.Errorf("tell readiness: %w", err)
		}
		return nil
	}), nil
}

// NotifyReady is Notifier and its function in one, for programs that start no
// children before they are ready.
func NotifyReady() error {
	ready, err := Notifier()
	if err != nil {
		return err
	}
	return ready()
}
