// SPDX-License-Identifier: Apache-2.0

package supervise

import (
	"fmt"
	"os"
	"strconv"
)

const (
	notifyEnv = "DAVIT_NOTIFY_FD" // descriptor number, decimal
	readyWord = "ready\n"
)

// NotifyReady tells the supervisor that this process is ready to serve. It
// works once; called again, or in a process that nobody supervises, it does
// nothing. The descriptor must not leak to a child of ours, so it is closed
// and its variable removed. Call it before starting other processes.
func NotifyReady() error {
	v, ok := os.LookupEnv(notifyEnv)
	if !ok {
		return nil
	}
	if err := os.Unsetenv(notifyEnv); err != nil {
		return fmt.Errorf("unset %s: %w", notifyEnv, err)
	}
	n, err := strconv.Atoi(v)
	if err != nil || n < 3 {
		return fmt.Errorf("%s=%q is not a descriptor", notifyEnv, v)
	}
	f := os.NewFile(uintptr(n), "readiness pipe")
	if f == nil {
		return fmt.Errorf("%s=%q is not an open descriptor", notifyEnv, v)
	}
	defer f.Close()
	if _, err := f.WriteString(readyWord); err != nil {
		return fmt.Errorf("tell readiness: %w", err)
	}
	return nil
}
