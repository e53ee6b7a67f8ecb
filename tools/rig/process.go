// SPDX-License-Identifier: Apache-2.0

package rig

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strings"
	"sync"
	"syscall"
	"time"
)

// Process is one process of a run. Its output is in a file of the run's folder.
type Process struct {
	Name string
	log  string
	cmd  *exec.Cmd
	done chan struct{} // closed when it has ended
	err  error         // how; valid after done
}

// starter starts processes from one locked thread: a parent-death signal
// belongs to the thread that forked, which must live as long as the program.
var starter struct {
	once sync.Once
	work chan func()
}

func onStarter(f func()) {
	starter.once.Do(func() {
		starter.work = make(chan func())
		go func() {
			runtime.LockOSThread()
			for f := range starter.work {
				f()
			}
		}()
	})
	done := make(chan struct{})
	starter.work <- func() { f(); close(done) }
	<-done
}

// startProcess starts cmd with its output appended to logFile. When this
// program dies without stopping it, the process gets the signal orphaned.
func startProcess(name string, cmd *exec.Cmd, logFile string, orphaned syscall.Signal) (*Process, error) {
	if err := os.MkdirAll(filepath.Dir(logFile), 0o700); err != nil {
		return nil, err
	}
	out, err := os.OpenFile(logFile, os.O_CREATE|os.O_WRONLY|os.O_APPEND, 0o600)
	if err != nil {
		return nil, err
	}
	defer out.Close()
	if cmd.Stdout == nil {
		cmd.Stdout = out
	}
	cmd.Stderr = out
	// A group of its own keeps a terminal's Ctrl-C from it: the rig stops
	// processes in order.
	cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true, Pdeathsig: orphaned}
	onStarter(func() { err = cmd.Start() })
	if err != nil {
		return nil, fmt.Errorf("start %s: %w", name, err)
	}
	p := &Process{Name: name, log: logFile, cmd: cmd, done: make(chan struct{})}
	go func() {
		p.err = cmd.Wait()
		close(p.done)
	}()
	return p, nil
}

// PID is its process id.
func (p *Process) PID() int { return p.cmd.Process.Pid }

// Done is closed when it has ended.
func (p *Process) Done() <-chan struct{} { return p.done }

// Kill ends it at once, as kill -9 does, and waits until it is gone.
func (p *Process) Kill() {
	_ = p.cmd.Process.Kill() // the only error is that it has ended
	<-p.done
}

// Stop asks it to end and kills it after grace.
func (p *Process) Stop(grace time.Duration) {
	_ = p.cmd.Process.Signal(syscall.SIGTERM)
	t := time.NewTimer(grace)
	defer t.Stop()
	select {
	case <-p.done:
	case <-t.C:
		p.Kill()
	}
}

// Failure says how it ended, with the last lines of its output.
func (p *Process) Failure() error {
	how := "exit code 0"
	if p.err != nil {
		how = p.err.Error()
	}
	return fmt.Errorf("%s ended (%s); its last lines, from %s:\n%s", p.Name, how, p.log, Tail(p.log, 12))
}

// Tail returns the last lines of a text file, without control characters.
func Tail(path string, lines int) string {
	data, err := os.ReadFile(path)
	if err != nil {
		return err.Error()
	}
	clean := strings.Map(func(r rune) rune {
		if r < 0x20 && r != '\n' && r != '\t' || r == 0x7f {
			return -1
		}
		return r
	}, string(data))
	all := strings.Split(strings.TrimRight(clean, "\n"), "\n")
	return "  " + strings.Join(all[max(0, len(all)-lines):], "\n  ")
}

// waitSocket waits until a process has made its socket.
func waitSocket(ctx context.Context, p *Process, path string) error {
	return p.poll(ctx, path, func() (bool, error) {
		_, err := os.Stat(path)
		if errors.Is(err, os.ErrNotExist) {
			return false, nil
		}
		return err == nil, err
	})
}

// waitListening waits until somebody listens on a unix socket that was bound by
// this very path. That there is such a file does not say so: it may be that of
// a process which was killed, or not be listened on yet.
func waitListening(ctx context.Context, p *Process, path string) error {
	return p.poll(ctx, path, func() (bool, error) {
		text, err := os.ReadFile("/proc/net/unix")
		return err == nil && listens(string(text), path), err
	})
}

// listens looks for a path in the kernel's table of unix sockets: address,
// references, protocol, flags, type, state, inode, path.
func listens(table, path string) bool {
	const acceptConnections = "00010000" // __SO_ACCEPTCON
	for line := range strings.Lines(table) {
		if f := strings.Fields(line); len(f) == 8 && f[3] == acceptConnections && f[7] == path {
			return true
		}
	}
	return false
}

// poll looks until ready says yes or fails, the process ends, or ctx does.
func (p *Process) poll(ctx context.Context, path string, ready func() (bool, error)) error {
	tick := time.NewTicker(5 * time.Millisecond)
	defer tick.Stop()
	for {
		if ok, err := ready(); ok || err != nil {
			return err
		}
		select {
		case <-tick.C:
		case <-p.done:
			return p.Failure()
		case <-ctx.Done():
			return fmt.Errorf("wait for %s of %s: %w", path, p.Name, context.Cause(ctx))
		}
	}
}
