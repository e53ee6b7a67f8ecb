// SPDX-License-Identifier: Apache-2.0

package agent

import (
	"bytes"
	"context"
	"errors"
	"io"
	"io/fs"
	"os"
	"strings"
	"sync"
	"time"
	"unicode"
)

const (
	logLines   = 2000
	maxLogLine = 1024
	// maxVcardLog is where the vcard's log file, on tmpfs, is cut: a guest can
	// make it write, so it must not grow without bound.
	maxVcardLog = 1 << 20
)

// logRing keeps the newest log lines and passes every line on. Lines have
// numbers, so that a reader knows what it missed.
type logRing struct {
	out io.Writer

	mu      sync.Mutex
	lines   []string      // guarded by mu; at most logLines
	first   uint64        // guarded by mu; number of lines[0]
	changed chan struct{} // guarded by mu; closed at the next line
}

func newLogRing(out io.Writer) *logRing {
	return &logRing{out: out, changed: make(chan struct{})}
}

// Write takes whole lines, as slog's handlers write them.
func (l *logRing) Write(p []byte) (int, error) {
	l.mu.Lock()
	for line := range bytes.Lines(p) {
		l.add(string(bytes.TrimRight(line, "\n")))
	}
	l.mu.Unlock()
	return l.out.Write(p)
}

// add needs mu.
func (l *logRing) add(line string) {
	if len(line) > maxLogLine {
		line = line[:maxLogLine] + "…"
	}
	if len(l.lines) == logLines {
		copy(l.lines, l.lines[1:])
		l.lines = l.lines[:logLines-1]
		l.first++
	}
	l.lines = append(l.lines, line)
	close(l.changed)
	l.changed = make(chan struct{})
}

// since returns the lines numbered from n on, the number of the one after
// them, and a channel that is closed when there are more.
func (l *logRing) since(n uint64) (lines []string, next uint64, changed <-chan struct{}) {
	l.mu.Lock()
	defer l.mu.Unlock()
	next = l.first + uint64(len(l.lines))
	n = min(max(n, l.first), next)
	return append(lines, l.lines[n-l.first:]...), next, l.changed
}

// last is the number of the first of the newest n lines.
func (l *logRing) last(n int) uint64 {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.first + uint64(max(0, len(l.lines)-n))
}

// follow copies what is appended to a file into the ring, each line with a
// prefix, until ctx ends. The writer appends (O_APPEND), so that the file can
// be cut when it has become long.
func (l *logRing) follow(ctx context.Context, path, prefix string) error {
	tick := time.NewTicker(500 * time.Millisecond)
	defer tick.Stop()
	var offset int64
	var rest strings.Builder
	for {
		n, err := l.drain(path, prefix, &offset, &rest)
		if err != nil && !errors.Is(err, fs.ErrNotExist) {
			return err
		}
		if n > 0 && ctx.Err() == nil {
			continue
		}
		select {
		case <-ctx.Done():
			return nil
		case <-tick.C:
		}
	}
}

// drain reads one piece of the file from offset on.
func (l *logRing) drain(path, prefix string, offset *int64, rest *strings.Builder) (int, error) {
	f, err := os.OpenFile(path, os.O_RDWR, 0)
	if err != nil {
		return 0, err
	}
	defer f.Close()
	st, err := f.Stat()
	if err != nil {
		return 0, err
	}
	if st.Size() < *offset {
		*offset = 0
	}
	buf := make([]byte, 32*1024)
	n, err := f.ReadAt(buf, *offset)
	if err != nil && !errors.Is(err, io.EOF) {
		return 0, err
	}
	*offset += int64(n)
	for line := range bytes.Lines(buf[:n]) {
		rest.Write(bytes.TrimRight(line, "\n"))
		if bytes.HasSuffix(line, []byte("\n")) || rest.Len() > maxLogLine {
			if _, err := io.WriteString(l, prefix+printable(rest.String())+"\n"); err != nil {
				return n, err
			}
			rest.Reset()
		}
	}
	if *offset >= maxVcardLog && *offset >= st.Size() {
		if err := f.Truncate(0); err != nil {
			return n, err
		}
		*offset = 0
	}
	return n, nil
}

// printable drops what could steer a terminal, the C1 controls too: the line
// may hold a guest's words.
func printable(s string) string {
	return strings.Map(func(r rune) rune {
		if unicode.IsControl(r) {
			return -1
		}
		return r
	}, s)
}
