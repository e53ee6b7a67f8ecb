// SPDX-License-Identifier: Apache-2.0

package audit

import (
	"bufio"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"time"
)

// ErrInUse means that another process has the log open.
var ErrInUse = errors.New("audit log is in use by another process")

const (
	lockName   = "lock"
	namePrefix = "audit-"
	nameSuffix = ".log"
	halfSuffix = ".half" // a file that is not yet complete; worthless after a power cut
)

// segment is one file of the log.
type segment struct {
	first uint64 // index of its first record
	path  string
}

// part is one file of an export.
type part struct {
	file *os.File
	size int64
}

func (l *Log) segmentAt(first uint64) segment {
	return segment{first: first, path: filepath.Join(l.cfg.Dir, fmt.Sprintf("%s%016x%s", namePrefix, first, nameSuffix))}
}

// lockDir makes sure that the log has one writer; the kernel frees the lock
// with the process.
func lockDir(dir string) (*os.File, error) {
	f, err := os.OpenFile(filepath.Join(dir, lockName), os.O_RDWR|os.O_CREATE, 0o600)
	if err != nil {
		return nil, err
	}
	if err := syscall.Flock(int(f.Fd()), syscall.LOCK_EX|syscall.LOCK_NB); err != nil {
		_ = f.Close() // nothing was written
		if errors.Is(err, syscall.EWOULDBLOCK) {
			return nil, ErrInUse
		}
		return nil, fmt.Errorf("lock: %w", err)
	}
	return f, nil
}

// list finds the segments, oldest first, and removes files that a power cut
// left half made. A file that does not belong here is an error: the folder is
// the log's own.
func (l *Log) list() ([]segment, error) {
	entries, err := os.ReadDir(l.cfg.Dir)
	if err != nil {
		return nil, err
	}
	var segments []segment
	for _, e := range entries {
		name := e.Name()
		if name == lockName {
			continue
		}
		if strings.HasSuffix(name, halfSuffix) {
			if err := os.Remove(filepath.Join(l.cfg.Dir, name)); err != nil {
				return nil, err
			}
			continue
		}
		digits, ok := strings.CutPrefix(strings.TrimSuffix(name, nameSuffix), namePrefix)
		first, err := strconv.ParseUint(digits, 16, 64)
		s := l.segmentAt(first)
		if !ok || err != nil || filepath.Base(s.path) != name {
			return nil, fmt.Errorf("%w: %q is not part of an audit log", ErrCorrupt, name)
		}
		segments = append(segments, s)
	}
	return segments, nil // ReadDir sorts by name, and the names sort by index
}

// load verifies all segments and leaves the log ready to be written to.
func (l *Log) load() error {
	segments, err := l.list()
	if err != nil {
		return err
	}
	if len(segments) == 0 {
		l.mu.Lock()
		defer l.mu.Unlock()
		return l.begin(l.cfg.Now())
	}
	s := scanner{codec: l.codec}
	var torn *tear
	for i, seg := range segments {
		torn, err = l.verifySegment(&s, seg)
		if err != nil {
			return fmt.Errorf("%s: %w", filepath.Base(seg.path), err)
		}
		if torn != nil && i < len(segments)-1 {
			return fmt.Errorf("%w: %s ends within a record but is not the last segment", ErrCorrupt, filepath.Base(seg.path))
		}
	}
	if err := s.chain.complete(); err != nil {
		return err
	}
	l.segments, l.chain, l.size = segments, s.chain, s.offset
	last := segments[len(segments)-1]
	if torn != nil {
		if err := l.repair(last, torn); err != nil {
			return fmt.Errorf("repair %s: %w", filepath.Base(last.path), err)
		}
	}
	if l.file, err = os.OpenFile(last.path, os.O_RDWR, 0); err != nil {
		return err
	}
	l.durable = l.chain.Last
	l.removeOld()
	return nil
}

// verifySegment continues s with the records of one file.
func (l *Log) verifySegment(s *scanner, seg segment) (*tear, error) {
	f, err := os.Open(seg.path)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	s.r, s.offset, s.fresh = bufio.NewReader(f), 0, false
	first := true
	torn, err := s.run(func(rec Record) error {
		if first && rec.Index != seg.first {
			return fmt.Errorf("%w: it begins with record %d", ErrCorrupt, rec.Index)
		}
		first = false
		return nil
	})
	if err == nil && first {
		err = fmt.Errorf("%w: it holds no record", ErrCorrupt)
	}
	if err != nil {
		return nil, err
	}
	return torn, nil
}

// repair replaces the torn end by a record about it, in one rename: at no
// moment is the tear gone and the record missing.
func (l *Log) repair(seg segment, torn *tear) error {
	rec := Record{Index: l.chain.Last + 1, Prev: l.chain.Head, Entry: Entry{
		Time: l.cfg.Now(), Kind: KindTorn, Count: torn.size, Command: torn.digest,
		Reason: "the last record was incomplete, as a power cut leaves it, and was removed",
	}}
	frame, hash, err := l.frame(rec)
	if err != nil {
		return err
	}
	old, err := os.Open(seg.path)
	if err != nil {
		return err
	}
	defer old.Close()
	f, err := l.publish(seg.path, io.MultiReader(io.NewSectionReader(old, 0, torn.offset), strings.NewReader(string(frame))))
	if err != nil {
		return err
	}
	l.cfg.Log.Warn("audit: removed a record that a power cut tore", "record", rec.Index, "bytes", torn.size)
	l.size = torn.offset + int64(len(frame))
	return errors.Join(f.Close(), l.chain.add(rec, hash))
}

// rotate closes the current segment and begins the next. Needs mu, and no
// running fsync.
func (l *Log) rotate(now time.Time) error {
	if err := l.disk.sync(l.file); err != nil {
		l.fail(fmt.Errorf("write to disk: %w", err))
		return l.err
	}
	old := l.file
	if err := l.begin(now); err != nil {
		return err
	}
	if err := old.Close(); err != nil {
		l.cfg.Log.Warn("audit: close segment", "err", err)
	}
	l.removeOld()
	return nil
}

// begin makes the next segment with its first record, or leaves all as it was.
// Needs mu.
func (l *Log) begin(now time.Time) error {
	rec := Record{Index: l.chain.Last + 1, Prev: l.chain.Head, Entry: Entry{Time: now, Kind: KindSegment}}
	segments := append(l.segments[:len(l.segments):len(l.segments)], l.segmentAt(rec.Index))
	rec.Ref = segments[max(0, len(segments)-l.cfg.Segments)].first
	frame, hash, err := l.frame(rec)
	if err != nil {
		return err
	}
	content := magic + string(frame)
	f, err := l.publish(segments[len(segments)-1].path, strings.NewReader(content))
	if err != nil {
		return fmt.Errorf("begin segment: %w", err)
	}
	if err := l.chain.add(rec, hash); err != nil {
		l.fail(err)
		return errors.Join(err, f.Close())
	}
	l.file, l.size, l.segments, l.durable = f, int64(len(content)), segments, rec.Index
	return nil
}

// publish makes a file appear under its name with all its content, or not at
// all, and returns it open for writing.
func (l *Log) publish(path string, content io.Reader) (*os.File, error) {
	half := path + halfSuffix
	f, err := os.OpenFile(half, os.O_RDWR|os.O_CREATE|os.O_TRUNC, 0o600)
	if err != nil {
		return nil, err
	}
	if _, err = io.Copy(f, content); err == nil {
		err = l.disk.sync(f)
	}
	if err == nil {
		err = os.Rename(half, path)
	}
	if err != nil {
		return nil, errors.Join(err, f.Close(), os.Remove(half))
	}
	if err := l.syncDir(); err != nil {
		// The file may or may not be there after a power cut: nothing may be
		// written that depends on either.
		l.fail(fmt.Errorf("write folder to disk: %w", err))
		return nil, errors.Join(err, f.Close())
	}
	return f, nil
}

func (l *Log) syncDir() error {
	d, err := os.Open(l.cfg.Dir)
	if err != nil {
		return err
	}
	return errors.Join(l.disk.sync(d), d.Close())
}

// removeOld removes the segments that the newest segment record gave up. What
// cannot be removed now is tried again at the next rotation.
func (l *Log) removeOld() {
	for len(l.segments) > 1 && l.segments[0].first < l.chain.Kept {
		if err := os.Remove(l.segments[0].path); err != nil && !errors.Is(err, os.ErrNotExist) {
			l.cfg.Log.Error("audit: remove old segment", "err", err)
			return
		}
		l.segments = l.segments[1:]
	}
}

// snapshot opens all segments with their present sizes. Needs mu. On error the
// parts opened so far are returned for closing.
func (l *Log) snapshot() ([]part, error) {
	var parts []part
	for i, seg := range l.segments {
		f, err := os.Open(seg.path)
		if err != nil {
			return parts, err
		}
		size := l.size
		if i < len(l.segments)-1 {
			info, err := f.Stat()
			if err != nil {
				return append(parts, part{file: f}), err
			}
			size = info.Size()
		}
		parts = append(parts, part{file: f, size: size})
	}
	return parts, nil
}
