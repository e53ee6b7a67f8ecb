// SPDX-License-Identifier: Apache-2.0

package boot

import (
	"fmt"
	"io"
	"os"
	"sync/atomic"
	"time"
)

// Kernel log levels that we use, syslog(2).
const (
	levelCritical = 2 // printed by the kernel on its own consoles too
	levelNotice   = 5 // printed by the kernel unless it is quiet
	levelDebug    = 7 // kept in the kernel's log only
)

// maxKmsg is the longest record that /dev/kmsg takes whole, with room for the
// kernel's own prefix.
const maxKmsg = 900

// kmsg writes to the kernel's log, which outlives a console that is not there.
// The zero kmsg drops what it is given, until open.
type kmsg struct {
	w io.Writer // nil until open
}

func (k *kmsg) open(path string) error {
	f, err := os.OpenFile(path, os.O_WRONLY, 0)
	if err != nil {
		return fmt.Errorf("kernel log: %w", err)
	}
	k.w = f
	return nil
}

// put writes one record. Errors are not looked at: there is no further place
// to report them to, and the line is on the consoles as well.
func (k *kmsg) put(level int, line string) {
	if k.w == nil {
		return
	}
	if len(line) > maxKmsg {
		line = line[:maxKmsg] + "\n"
	}
	_, _ = fmt.Fprintf(k.w, "<%d>davit-init: %s", level, line)
}

// terminal is where pid 1 says what it does: all consoles and the kernel's log.
type terminal struct {
	consoles Consoles
	kmsg     kmsg
	sinceUp  func() time.Duration // since the kernel's start
	bare     atomic.Bool          // no console opens: the kernel's log is all there is
}

// level is that of an ordinary line: the kernel is to print it only when we
// have no console of our own.
func (t *terminal) level() int {
	if t.bare.Load() {
		return levelNotice
	}
	return levelDebug
}

// withoutConsole gives what waits for a console to the kernel's log.
func (t *terminal) withoutConsole() {
	t.bare.Store(true)
	for _, text := range t.consoles.giveUp() {
		t.kmsg.put(levelNotice, text)
	}
}

// line writes "[  2.104s] text".
func (t *terminal) line(format string, args ...any) {
	text := t.stamp(format, args)
	t.consoles.put(text)
	t.kmsg.put(t.level(), text)
}

// critical is a line that must be seen: the kernel prints it a second time, by
// its own means.
func (t *terminal) critical(format string, args ...any) {
	text := t.stamp(format, args)
	t.consoles.put(text)
	t.kmsg.put(levelCritical, text)
}

// Write takes a log record or a line of a child, unstamped.
func (t *terminal) Write(p []byte) (int, error) {
	text := printable(p)
	t.consoles.put(text)
	if t.level() == levelNotice {
		t.kmsg.put(levelNotice, text)
	}
	return len(p), nil
}

func (t *terminal) stamp(format string, args []any) string {
	return printable(fmt.Appendf(nil, "[%7.3fs] %s", t.sinceUp().Seconds(), fmt.Sprintf(format, args...)))
}
