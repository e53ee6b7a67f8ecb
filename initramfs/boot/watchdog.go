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

// watchdog is the hardware watchdog, armed from open to disarm. See
// Documentation/watchdog/watchdog-api.rst of the kernel.
type watchdog struct {
	f     *os.File
	every time.Duration // between pings
}

// armWatchdog opens the device, which arms it, and asks for a timeout in
// seconds. The driver may choose another one; it says which.
func armWatchdog(path string, seconds int) (*watchdog, error) {
	f, err := os.OpenFile(path, os.O_WRONLY, 0)
	if err != nil {
		return nil, fmt.Errorf("arm watchdog: %w", err)
	}
	w := &watchdog{f: f}
	raw, err := f.SyscallConn()
	if err != nil {
		return nil, errors.Join(fmt.Errorf("arm watchdog: %w", err), w.disarm())
	}
	got := 0
	err = raw.Control(func(fd uintptr) {
		// A driver with a fixed timeout refuses; what counts is what it says.
		_ = unix.IoctlSetPointerInt(int(fd), unix.WDIOC_SETTIMEOUT, seconds)
		got, err = unix.IoctlGetInt(int(fd), unix.WDIOC_GETTIMEOUT)
	})
	if err != nil || got <= 0 {
		got = seconds // no way to ask: ping often enough for what was asked
	}
	w.every = max(time.Duration(got)*time.Second/6, 500*time.Millisecond)
	return w, nil
}

// ping keeps the card from being reset for one more timeout.
func (w *watchdog) ping() error {
	if w == nil {
		return nil
	}
	if _, err := w.f.Write([]byte{0}); err != nil {
		return fmt.Errorf("ping watchdog: %w", err)
	}
	return nil
}

// disarm closes it with the magic character: the card is not reset when the
// driver allows that.
func (w *watchdog) disarm() error {
	if w == nil {
		return nil
	}
	_, err := w.f.Write([]byte("V"))
	if err = errors.Join(err, w.f.Close()); err != nil {
		return fmt.Errorf("disarm watchdog: %w", err)
	}
	return nil
}

// ticks gives the times to ping; never, without a watchdog.
func (w *watchdog) ticks() (<-chan time.Time, func()) {
	if w == nil {
		return nil, func() {}
	}
	t := time.NewTicker(w.every)
	return t.C, t.Stop
}

func stepWatchdog(_ context.Context, m *machine) (string, error) {
	if _, err := os.Stat(m.cfg.Watchdog); errors.Is(err, os.ErrNotExist) {
		return "", skip("no " + m.cfg.Watchdog)
	}
	w, err := armWatchdog(m.cfg.Watchdog, m.cfg.WatchdogSeconds)
	if err != nil {
		return "", err
	}
	m.watchdog = w
	return fmt.Sprintf("%s armed, ping every %v", m.cfg.Watchdog, w.every), nil
}
