// SPDX-License-Identifier: Apache-2.0

package boot

import (
	"context"
	"fmt"
	"os"
	"time"

	"golang.org/x/sys/unix"
)

// clockFloor is a time that has passed for certain: no card booted this program
// before. It is moved on with releases, by hand: the image is reproducible, so
// no file in it says when it was made.
var clockFloor = time.Date(2026, time.January, 1, 0, 0, 0, 0, time.UTC)

// saneClock decides what the clock must be set to: never behind the floor, and
// from the real-time clock when the kernel did not do that (its driver is a
// module). The zero time leaves it alone.
func saneClock(now, rtc time.Time) (set time.Time, trusted bool) {
	switch {
	case !now.Before(clockFloor):
		return time.Time{}, true
	case !rtc.Before(clockFloor):
		return rtc, true
	}
	return clockFloor, false
}

func stepClock(_ context.Context, m *machine) (string, error) {
	now := time.Now()
	set, trusted := saneClock(now, readRTC("/dev/rtc0"))
	if set.IsZero() {
		return now.UTC().Format(time.RFC3339), nil
	}
	ts := unix.NsecToTimespec(set.UnixNano())
	if err := unix.ClockSettime(unix.CLOCK_REALTIME, &ts); err != nil {
		return "", fmt.Errorf("set clock: %w", err)
	}
	m.report.ClockSet = !trusted
	if !trusted {
		return "", fmt.Errorf("clock was %s, behind this release; set to %s, not to be trusted",
			now.UTC().Format(time.RFC3339), set.UTC().Format(time.RFC3339))
	}
	return set.UTC().Format(time.RFC3339) + " from the real-time clock", nil
}

// readRTC gives the zero time when there is no real-time clock, or it is unset.
func readRTC(path string) time.Time {
	f, err := os.Open(path)
	if err != nil {
		return time.Time{}
	}
	defer f.Close()
	t, err := unix.IoctlGetRTCTime(int(f.Fd()))
	if err != nil {
		return time.Time{}
	}
	return time.Date(int(t.Year)+1900, time.Month(t.Mon+1), int(t.Mday), int(t.Hour), int(t.Min), int(t.Sec), 0, time.UTC)
}
