// SPDX-License-Identifier: Apache-2.0

package audit

import (
	"crypto/sha256"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"os"
	"sync"
	"time"
)

// ErrClosed is returned by Append and Export after Close.
var ErrClosed = errors.New("audit log is closed")

// Defaults of Config.
const (
	DefaultSegmentBytes = 4 << 20
	DefaultSegments     = 16
)

// Config says where a log is and how much it may keep.
type Config struct {
	Dir          string           // made if missing; one log, one writer
	SegmentBytes int64            // size at which a segment is closed; 0: DefaultSegmentBytes
	Segments     int              // segments kept; 0: DefaultSegments; at least 2
	Now          func() time.Time // for the log's own records; nil: time.Now
	Log          *slog.Logger
}

// Log is an open audit log. It is safe for concurrent use.
type Log struct {
	cfg   Config
	codec codec
	lock  *os.File
	disk  disk

	mu       sync.Mutex
	changed  *sync.Cond // durable, syncing or err changed
	file     *os.File   // current segment; guarded by mu
	size     int64      // its length; guarded by mu
	segments []segment  // oldest first, the current one last; guarded by mu
	chain    Chain      // what is written; guarded by mu
	durable  uint64     // index of the last record that is on the disk; guarded by mu
	syncing  bool       // somebody is in fsync, without mu; guarded by mu
	err      error      // why the log no longer accepts records; guarded by mu
}

// disk is what a disk may fail at; tests make it fail.
type disk struct {
	sync    func(*os.File) error
	writeAt func(f *os.File, p []byte, offset int64) (int, error)
}

var realDisk = disk{sync: (*os.File).Sync, writeAt: (*os.File).WriteAt}

// Open verifies the log in cfg.Dir, or begins one, and adds an "open"
// record. It fails closed: ErrCorrupt means that the log was tampered with or
// damaged; move the folder away to keep it for examination (Verify reads it
// anywhere) and a new log begins at the next start.
func Open(cfg Config) (*Log, error) { return openLog(cfg, realDisk) }

func openLog(cfg Config, d disk) (*Log, error) {
	if cfg.SegmentBytes == 0 {
		cfg.SegmentBytes = DefaultSegmentBytes
	}
	if cfg.Segments == 0 {
		cfg.Segments = DefaultSegments
	}
	if cfg.Now == nil {
		cfg.Now = time.Now
	}
	if cfg.Dir == "" || cfg.Log == nil || cfg.Segments < 2 || cfg.SegmentBytes < 2*MaxBody {
		return nil, fmt.Errorf("open audit log: want a folder, a logger, at least 2 segments of at least %d bytes", 2*MaxBody)
	}
	c, err := newCodec()
	if err != nil {
		return nil, err
	}
	l := &Log{cfg: cfg, codec: c, disk: d}
	l.changed = sync.NewCond(&l.mu)
	if err := l.open(); err != nil {
		l.release()
		return nil, fmt.Errorf("open audit log %s: %w", cfg.Dir, err)
	}
	return l, nil
}

// open takes the lock, verifies, repairs a tear, and writes the open record.
func (l *Log) open() error {
	if err := os.MkdirAll(l.cfg.Dir, 0o700); err != nil {
		return err
	}
	lock, err := lockDir(l.cfg.Dir)
	if err != nil {
		return err
	}
	l.lock = lock
	if err := l.load(); err != nil {
		if errors.Is(err, ErrCorrupt) {
			return fmt.Errorf("%w; no record was changed: move the folder away to keep it for examination, then a new log begins", err)
		}
		return err
	}
	entry := Entry{Time: l.cfg.Now(), Kind: KindOpen, Count: uint64(len(l.chain.Unfinished))}
	if entry.Count > 0 {
		entry.Reason = fmt.Sprintf("commands without an outcome: %d", l.chain.Unfinished)
		l.cfg.Log.Warn("audit: commands were interrupted", "records", l.chain.Unfinished)
	}
	_, err = l.Append(entry)
	return err
}

// Append adds a record and returns its index once it is on the disk. When it
// returns an error the record is not in the log, or, after a failed fsync, the
// log accepts nothing any more (Err tells).
func (l *Log) Append(e Entry) (uint64, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	index, err := l.write(e.clip())
	if err != nil {
		return 0, fmt.Errorf("append to audit log: %w", err)
	}
	if err := l.persist(index); err != nil {
		return 0, fmt.Errorf("append to audit log: %w", err)
	}
	return index, nil
}

// write adds the record to the file without waiting for the disk. Needs mu.
func (l *Log) write(e Entry) (uint64, error) {
	if err := l.settle(); err != nil {
		return 0, err
	}
	if l.size >= l.cfg.SegmentBytes {
		if err := l.rotate(e.Time); err != nil {
			return 0, err
		}
	}
	rec := Record{Index: l.chain.Last + 1, Prev: l.chain.Head, Entry: e}
	frame, hash, err := l.frame(rec)
	if err != nil {
		return 0, err
	}
	if _, err := l.disk.writeAt(l.file, frame, l.size); err != nil {
		// A full disk is no reason to give up for good: take back what was
		// written of the record and go on when there is room.
		if back := l.file.Truncate(l.size); back != nil {
			l.fail(fmt.Errorf("take back a half-written record: %w", back))
		}
		return 0, err
	}
	if err := l.chain.add(rec, hash); err != nil {
		l.fail(err)
		return 0, err
	}
	l.size += int64(len(frame))
	return rec.Index, nil
}

// settle reports whether the log takes records; before a rotation it also
// waits for a running fsync, which holds the file. Needs mu.
func (l *Log) settle() error {
	for l.syncing && l.err == nil && l.size >= l.cfg.SegmentBytes {
		l.changed.Wait()
	}
	return l.err
}

// persist waits until the record is on the disk; of several waiting callers
// one does the fsync for all. Needs mu, and gives it up meanwhile.
func (l *Log) persist(index uint64) error {
	for l.durable < index {
		if l.err != nil {
			return l.err
		}
		if l.syncing {
			l.changed.Wait()
			continue
		}
		file, last := l.file, l.chain.Last
		l.syncing = true
		l.mu.Unlock()
		err := l.disk.sync(file)
		l.mu.Lock()
		l.syncing = false
		if err != nil {
			l.fail(fmt.Errorf("write to disk: %w", err))
		} else {
			l.durable = max(l.durable, last)
		}
		l.changed.Broadcast()
	}
	return nil
}

// fail ends the life of the log: what is on the disk is unknown from here on.
func (l *Log) fail(err error) {
	if l.err == nil {
		l.err = fmt.Errorf("%w; the log must be opened again", err)
	}
	l.changed.Broadcast()
}

// frame encodes a record for the file and gives the hash of its body.
func (l *Log) frame(rec Record) ([]byte, Digest, error) {
	body, err := l.codec.encode(rec)
	if err != nil {
		return nil, Digest{}, err
	}
	hash := sha256.Sum256(body)
	frame := binary.BigEndian.AppendUint32(make([]byte, 0, lengthSize+len(body)+len(hash)), uint32(len(body)))
	return append(append(frame, body...), hash[:]...), hash, nil
}

// Head returns the index and hash of the last record that is on the disk, for
// anchoring.
func (l *Log) Head() (uint64, Digest, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if err := l.persist(l.chain.Last); err != nil {
		return 0, Digest{}, err
	}
	return l.chain.Last, l.chain.Head, nil
}

// Err returns why the log no longer accepts records, or nil.
func (l *Log) Err() error {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.err
}

// Export writes the log as it is now to w, for Verify. Appends go on meanwhile.
func (l *Log) Export(w io.Writer) error {
	l.mu.Lock()
	if errors.Is(l.err, ErrClosed) {
		defer l.mu.Unlock()
		return fmt.Errorf("export audit log: %w", l.err)
	}
	parts, err := l.snapshot()
	l.mu.Unlock()
	defer func() {
		for _, p := range parts {
			_ = p.file.Close() // opened for reading only
		}
	}()
	if err != nil {
		return fmt.Errorf("export audit log: %w", err)
	}
	for _, p := range parts {
		if _, err := io.Copy(w, io.NewSectionReader(p.file, 0, p.size)); err != nil {
			return fmt.Errorf("export audit log: %w", err)
		}
	}
	return nil
}

// Close waits for a running fsync and gives the folder free.
func (l *Log) Close() error {
	l.mu.Lock()
	defer l.mu.Unlock()
	for l.syncing {
		l.changed.Wait()
	}
	if errors.Is(l.err, ErrClosed) {
		return nil
	}
	l.err = ErrClosed
	l.changed.Broadcast()
	return l.release()
}

func (l *Log) release() error {
	var errs []error
	for _, f := range []*os.File{l.file, l.lock} {
		if f != nil {
			errs = append(errs, f.Close())
		}
	}
	return errors.Join(errs...)
}
