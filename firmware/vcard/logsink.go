// SPDX-License-Identifier: Apache-2.0

package vcard

import (
	"fmt"
	"io"
	"sync/atomic"
	"time"
)

// LogSink is a writer for log lines that never blocks and never fails: whoever
// reads the log may be stopped or gone, and I/O must not notice. Lines that
// find no room are dropped and counted.
type LogSink struct {
	out     io.Writer
	lines   chan []byte
	dropped atomic.Uint64
	stop    chan struct{}
	stopped chan struct{}
}

const maxLine = 4096

// NewLogSink starts to pass lines on to out, at most room of them waiting.
func NewLogSink(out io.Writer, room int) *LogSink {
	s := &LogSink{out: out, lines: make(chan []byte, room), stop: make(chan struct{}), stopped: make(chan struct{})}
	go s.run()
	return s
}

// Write implements io.Writer for one whole line, cut to 4 KiB.
func (s *LogSink) Write(line []byte) (int, error) {
	kept := append(make([]byte, 0, min(len(line), maxLine)), line[:min(len(line), maxLine)]...)
	if len(line) > maxLine {
		kept[maxLine-1] = '\n'
	}
	select {
	case s.lines <- kept:
	default:
		s.dropped.Add(1)
	}
	return len(line), nil
}

func (s *LogSink) run() {
	defer close(s.stopped)
	for {
		select {
		case line := <-s.lines:
			s.pass(line)
		case <-s.stop:
			for {
				select {
				case line := <-s.lines:
					s.pass(line)
				default:
					return
				}
			}
		}
	}
}

// pass writes a line. A reader that is gone is nobody to report an error to.
func (s *LogSink) pass(line []byte) {
	if n := s.dropped.Swap(0); n > 0 {
		_, _ = fmt.Fprintf(s.out, "level=WARN msg=\"log lines dropped\" count=%d\n", n)
	}
	_, _ = s.out.Write(line)
}

// Close passes on what waits, for at most the given time.
func (s *LogSink) Close(wait time.Duration) {
	close(s.stop)
	t := time.NewTimer(wait)
	defer t.Stop()
	select {
	case <-s.stopped:
	case <-t.C:
	}
}
