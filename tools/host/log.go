// SPDX-License-Identifier: Apache-2.0

package host

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"time"

	"golang.org/x/sys/unix"
)

// What is kept of a VMM's output: how it began, and what it said last. A guest
// can make its QEMU complain without end.
const (
	logHead  = 64 << 10
	logTail  = 192 << 10
	logSlack = 256 << 10   // that the middle may have before it is given back
	logEvery = time.Second // between two looks, so also the bound of what comes between them
)

// boundLog keeps the disk space of a VMM's log bounded until ctx ends. QEMU holds
// the file open and appends to it, whether a hostd lives or not, so nothing can
// stand between the two; the next hostd goes on from what it finds. The middle
// becomes a hole: nothing moves, so that not a byte that QEMU writes meanwhile is
// lost, and the end of the file is always what was said last.
//
// A look that fails is followed by the next one: to give space back can fail for
// want of space. warn is told of the first failure of a row.
func boundLog(ctx context.Context, path string, warn func(error)) {
	done, failing := int64(logHead), false
	for {
		next, err := lookAtLog(path, done)
		if err != nil && !failing {
			warn(fmt.Errorf("bound log: %w", err))
		}
		done, failing = next, err != nil
		if !sleep(ctx, logEvery) {
			return
		}
	}
}

// lookAtLog is punchLog of what has that name now.
func lookAtLog(path string, done int64) (int64, error) {
	f, err := os.OpenFile(path, os.O_WRONLY, 0)
	if err != nil {
		return done, err
	}
	defer f.Close()
	return punchLog(f, done)
}

// punchLog gives back the middle of a log when it has grown enough beyond done,
// up to where it was given back before, and returns up to where it is now. It
// begins at the head each time: the block in which the last hole ended is given
// back only as a whole. A punch counts as a write for the time of modification.
func punchLog(f *os.File, done int64) (int64, error) {
	st, err := f.Stat()
	if err != nil {
		return done, err
	}
	end := st.Size() - logTail
	if end-done < logSlack {
		return done, nil
	}
	raw, err := f.SyscallConn()
	if err != nil {
		return done, err
	}
	var perr error
	err = raw.Control(func(fd uintptr) {
		perr = unix.Fallocate(int(fd), unix.FALLOC_FL_PUNCH_HOLE|unix.FALLOC_FL_KEEP_SIZE, logHead, end-logHead)
	})
	if err := errors.Join(err, perr); err != nil {
		return done, err
	}
	return end, nil
}

// keepLog moves the log of a VMM that ended to where it is kept, without the hole
// in its middle.
func keepLog(to, from string) error {
	st, err := os.Stat(from)
	if err != nil {
		return err
	}
	if st.Size() < logHead+logTail+logSlack { // it has no hole
		return os.Rename(from, to)
	}
	in, err := os.Open(from)
	if err != nil {
		return err
	}
	defer in.Close()
	out, err := os.OpenFile(to, os.O_CREATE|os.O_WRONLY|os.O_TRUNC, 0o600)
	if err != nil {
		return err
	}
	_, err = io.CopyN(out, in, logHead)
	if err == nil {
		_, err = fmt.Fprintf(out, "\n[%d bytes were not kept]\n", st.Size()-logHead-logTail)
	}
	if err == nil {
		_, err = io.Copy(out, io.NewSectionReader(in, st.Size()-logTail, logTail))
	}
	return errors.Join(err, out.Close())
}
