// SPDX-License-Identifier: Apache-2.0

package host

import (
	"bytes"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"strings"

	"golang.org/x/sys/unix"
)

// process is a VMM's process, held by a pidfd so that it cannot be confused
// with another one. It may be a child of this program or not.
type process struct {
	pid   int
	pidfd *os.File
}

// errGone says that there is no such process any more.
var errGone = errors.New("process is gone")

// holdProcess takes a process by number and makes sure, after it is held, that
// it is still the one meant by check.
func holdProcess(pid int, check func(pid int) error) (*process, error) {
	fd, err := unix.PidfdOpen(pid, unix.PIDFD_NONBLOCK)
	if errors.Is(err, unix.ESRCH) || errors.Is(err, unix.EINVAL) {
		return nil, errGone
	}
	if err != nil {
		return nil, fmt.Errorf("hold process %d: %w", pid, err)
	}
	p := &process{pid: pid, pidfd: os.NewFile(uintptr(fd), "pidfd")}
	if err := check(pid); err != nil || p.exited() {
		return nil, errors.Join(errGone, err, p.pidfd.Close())
	}
	return p, nil
}

// exited says whether the process has ended; a zombie has.
func (p *process) exited() bool {
	gone := false
	_ = p.control(func(fd int) error { gone = readable(fd); return nil })
	return gone
}

func readable(fd int) bool {
	fds := []unix.PollFd{{Fd: int32(fd), Events: unix.POLLIN}}
	n, err := unix.Poll(fds, 0)
	return err == nil && n == 1
}

// wait returns when the process has ended.
func (p *process) wait() error {
	raw, err := p.pidfd.SyscallConn()
	if err != nil {
		return err
	}
	return raw.Read(func(fd uintptr) bool { return readable(int(fd)) })
}

// kill ends the process at once.
func (p *process) kill() error {
	err := p.control(func(fd int) error { return unix.PidfdSendSignal(fd, unix.SIGKILL, nil, 0) })
	if errors.Is(err, unix.ESRCH) {
		return nil
	}
	return err
}

func (p *process) control(fn func(fd int) error) error {
	raw, err := p.pidfd.SyscallConn()
	if err != nil {
		return err
	}
	var ferr error
	return errors.Join(raw.Control(func(fd uintptr) { ferr = fn(int(fd)) }), ferr)
}

// Fields of /proc/PID/stat (proc_pid_stat(5)), counted from 1.
const (
	statFlags = 9
	statStart = 22
)

// stat reads one field, of those after the program's name.
func stat(pid, field int) (uint64, error) {
	b, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", pid))
	if err != nil {
		return 0, err
	}
	_, rest, ok := bytes.Cut(b[max(bytes.LastIndexByte(b, ')'), 0):], []byte(" "))
	fields := strings.Fields(string(rest))
	if !ok || len(fields) <= field-3 {
		return 0, fmt.Errorf("read /proc/%d/stat: %d fields", pid, len(fields))
	}
	return strconv.ParseUint(fields[field-3], 10, 64)
}

func startTime(pid int) (uint64, error) { return stat(pid, statStart) }

// ending says whether the process' first thread is on its way out. Its command
// line is gone then, and others of its threads may still run.
func ending(pid int) bool {
	const exiting = 4 // PF_EXITING
	flags, err := stat(pid, statFlags)
	return err == nil && flags&exiting != 0
}

// hasUUID says whether a process was started as the VMM of a generation.
func hasUUID(pid int, uuid string) bool {
	b, err := os.ReadFile(fmt.Sprintf("/proc/%d/cmdline", pid))
	return err == nil && bytes.Contains(b, []byte("\x00-uuid\x00"+uuid+"\x00"))
}

// findProcess looks for the VMM of a generation that works in dir: by its
// record, or, when a predecessor died before it could write one, among all
// processes.
func findProcess(dir, uuid string) (*process, error) {
	var rec pidRecord
	if err := readJSON(filepath.Join(dir, "pid.json"), &rec); err == nil {
		return holdProcess(rec.PID, func(pid int) error {
			if start, err := startTime(pid); err != nil || start != rec.Start {
				return errors.Join(errGone, err)
			}
			if !hasUUID(pid, uuid) && !ending(pid) { // in this order: it may begin to end
				return errGone
			}
			return nil
		})
	}
	for pid := range processes {
		if !hasUUID(pid, uuid) {
			continue
		}
		p, err := holdProcess(pid, func(pid int) error {
			if !worksIn(pid, dir) || !hasUUID(pid, uuid) {
				return errGone
			}
			return nil
		})
		if err == nil {
			return p, nil
		}
	}
	return nil, errGone
}

// processes yields the numbers of all processes; it can miss those that come
// or go meanwhile.
func processes(yield func(int) bool) {
	entries, err := os.ReadDir("/proc")
	if err != nil {
		return
	}
	for _, e := range entries {
		if pid, err := strconv.Atoi(e.Name()); err == nil && !yield(pid) {
			return
		}
	}
}

func worksIn(pid int, dir string) bool {
	cwd, err := os.Readlink(fmt.Sprintf("/proc/%d/cwd", pid))
	return err == nil && cwd == dir
}

// killIn ends all processes that work in dir and returns how many there were.
func killIn(dir string) (int, error) {
	n := 0
	for pid := range processes {
		if !worksIn(pid, dir) {
			continue
		}
		p, err := holdProcess(pid, func(pid int) error {
			if !worksIn(pid, dir) {
				return errGone
			}
			return nil
		})
		if errors.Is(err, errGone) {
			continue
		}
		if err == nil {
			n++
			err = errors.Join(p.kill(), p.wait(), p.pidfd.Close())
		}
		if err != nil {
			return n, fmt.Errorf("end process %d in %s: %w", pid, dir, err)
		}
	}
	return n, nil
}
