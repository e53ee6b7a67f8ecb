// SPDX-License-Identifier: Apache-2.0

package eventlog

import (
	"errors"
	"fmt"
	"io"
	"os"

	"golang.org/x/sys/unix"
)

// ErrBusy: another process, or another File of this one, holds the log.
var ErrBusy = errors.New("event log is held by another writer")

// File is a log kept in a file that is only ever appended to. One File holds
// it at a time, by a lock that ends with the process. It is not safe for
// concurrent use.
type File struct {
	file *os.File
	log  *Log
	size int64
}

// OpenFile opens the log at path for appending, or creates it with the given
// algorithms. The tail of an event cut off by a crash is removed: it was never
// extended, since an event is extended only after it was written whole. Any
// other fault ([ErrMalformed]), a log of other algorithms ([ErrNoBank]), and a
// log that somebody holds ([ErrBusy]) are refused and left as they are.
func OpenFile(path string, algs ...Alg) (*File, error) {
	empty, err := New(algs...)
	if err != nil {
		return nil, err
	}
	f, err := os.OpenFile(path, os.O_RDWR|os.O_CREATE|os.O_APPEND, 0o600)
	if err != nil {
		return nil, fmt.Errorf("open event log: %w", err)
	}
	l := &File{file: f}
	if err := l.load(empty); err != nil {
		f.Close()
		return nil, fmt.Errorf("open event log %s: %w", path, err)
	}
	return l, nil
}

func (f *File) load(empty *Log) error {
	if err := unix.Flock(int(f.file.Fd()), unix.LOCK_EX|unix.LOCK_NB); err != nil {
		if errors.Is(err, unix.EWOULDBLOCK) {
			return ErrBusy
		}
		return fmt.Errorf("lock: %w", err)
	}
	data, err := io.ReadAll(io.LimitReader(f.file, MaxSize+1))
	if err != nil {
		return fmt.Errorf("read: %w", err)
	}
	log, n, err := scan(data)
	switch {
	case errors.Is(err, ErrTruncated) && log != nil:
		if err := f.file.Truncate(int64(n)); err != nil {
			return fmt.Errorf("remove partial event: %w", err)
		}
	case errors.Is(err, ErrTruncated):
		// Empty, or cut off within the header: no event was ever written.
		return f.create(empty)
	case err != nil:
		return fmt.Errorf("at byte %d: %w", n, err)
	}
	if !sameBanks(log, empty) {
		return fmt.Errorf("log has %v, want %v: %w", log.Algs(), empty.Algs(), ErrNoBank)
	}
	f.log, f.size = log, int64(n)
	return nil
}

func (f *File) create(empty *Log) error {
	if err := f.file.Truncate(0); err != nil {
		return fmt.Errorf("remove partial header: %w", err)
	}
	f.log = empty
	return f.write(empty.Encode())
}

// Append writes one event with one write. If it returns an error, then the
// file is as it was before, or the error says that it could not be restored.
func (f *File) Append(e Event) error {
	if err := f.log.Append(e); err != nil {
		return err
	}
	if err := f.write(encodeEvent(nil, e)); err != nil {
		f.log.dropLast()
		return fmt.Errorf("append to event log: %w", err)
	}
	return nil
}

func (f *File) write(b []byte) error {
	if _, err := f.file.Write(b); err != nil {
		if undo := f.file.Truncate(f.size); undo != nil {
			return fmt.Errorf("%w; and the partial event could not be removed: %w", err, undo)
		}
		return err
	}
	f.size += int64(len(b))
	return nil
}

// Log returns a copy of the log as written.
func (f *File) Log() *Log {
	return &Log{banks: f.log.banks, events: f.log.Events(), size: f.log.size}
}

// Encode returns the bytes of the file as written by this File and those
// before it.
func (f *File) Encode() []byte { return f.log.Encode() }

// Close releases the log. Nothing that was appended is lost.
func (f *File) Close() error {
	// Closing alone would leave the lock with a child that is just being
	// forked, until its exec.
	unlock := unix.Flock(int(f.file.Fd()), unix.LOCK_UN)
	if err := errors.Join(unlock, f.file.Close()); err != nil {
		return fmt.Errorf("close event log: %w", err)
	}
	return nil
}

func (l *Log) dropLast() {
	last := l.events[len(l.events)-1]
	l.events = l.events[:len(l.events)-1]
	l.size -= len(encodeEvent(nil, last))
}

func sameBanks(a, b *Log) bool {
	if len(a.banks) != len(b.banks) {
		return false
	}
	for i := range a.banks {
		if a.banks[i] != b.banks[i] {
			return false
		}
	}
	return true
}
