// SPDX-License-Identifier: Apache-2.0

package supervise

import (
	"context"
	"fmt"
	"io"
	"os"
	"os/exec"
	"syscall"
	"time"
)

// drainTime is how long output is still read after the child has ended: a
// grandchild may hold the pipe open for ever.
const drainTime = 250 * time.Millisecond

// Command says how to start a child.
type Command struct {
	Path string   // absolute
	Name string   // what it is told to be called (argv[0]); empty: Path
	Args []string // without the program's name
	Env  []string // all of it: nothing is inherited
	Dir  string   // empty: "/"
	// ExtraFiles become descriptors 3, 4, …; they stay the caller's to close.
	ExtraFiles  []*os.File
	SysProcAttr *syscall.SysProcAttr
	// Output gets what the child writes, one call per line, at most 4 KiB each.
	// The calls come from one goroutine; a Write that blocks blocks the child.
	Output io.Writer
	// OutputFile, when set, is used instead as the child's stdout and stderr:
	// for children that outlive us. It stays the caller's to close.
	OutputFile *os.File
	// Input, when set, becomes the child's stdin, else it reads nothing. It
	// stays the caller's to close.
	Input *os.File
	// Notify gives the child a descriptor on which it says that it is ready,
	// with NotifyReady. Without it a child is ready once started.
	Notify bool
}

// Child is a running process that we started. Its methods may be called from
// several goroutines.
type Child struct {
	cmd   *exec.Cmd
	id    Identity
	ready chan struct{}
	done  chan struct{}
	exit  Exit // written before done is closed
}

// Start starts a child. A nil Reaper is right for all but pid 1. When it fails,
// nothing of it is left behind.
func Start(c Command, r *Reaper) (*Child, error) {
	if c.Path == "" || c.Path[0] != '/' {
		return nil, fmt.Errorf("start child: path %q is not absolute", c.Path)
	}
	cmd := c.exec()
	p, err := openPipes(c, cmd)
	if err != nil {
		return nil, fmt.Errorf("start %s: %w", c.Path, err)
	}
	status, err := r.start(cmd)
	p.closeChildEnds()
	if err != nil {
		p.closeOurEnds()
		return nil, fmt.Errorf("start %s: %w", c.Path, err)
	}
	ch := &Child{cmd: cmd, ready: make(chan struct{}), done: make(chan struct{})}
	// A child that is gone already has no start time; its Identity is then
	// never adopted by anyone.
	ch.id, _ = IdentityOf(cmd.Process.Pid)
	ch.id.PID = cmd.Process.Pid
	go ch.hearReady(p.ready)
	drained := make(chan struct{})
	go func() {
		defer close(drained)
		if p.output != nil {
			copyLines(c.Output, p.output)
			p.output.Close()
		}
	}()
	go ch.wait(status, p.output, drained)
	return ch, nil
}

// exec is the command for os/exec, with nothing inherited.
func (c Command) exec() *exec.Cmd {
	cmd := exec.Command(c.Path, c.Args...)
	if c.Name != "" {
		cmd.Args[0] = c.Name
	}
	cmd.Env = append([]string{}, c.Env...)
	cmd.Dir = c.Dir
	if cmd.Dir == "" {
		cmd.Dir = "/"
	}
	cmd.SysProcAttr = c.SysProcAttr
	if c.Input != nil {
		cmd.Stdin = c.Input
	}
	cmd.ExtraFiles = append([]*os.File{}, c.ExtraFiles...)
	return cmd
}

// wait collects the child and then publishes its exit, so that whoever sees
// Done also has all of its output.
func (c *Child) wait(status func() Exit, output *os.File, drained <-chan struct{}) {
	c.exit = status()
	if output != nil {
		// An error means that the reader has closed it already.
		_ = output.SetReadDeadline(time.Now().Add(drainTime))
	}
	<-drained
	close(c.done)
}

func (c *Child) hearReady(pipe *os.File) {
	if pipe == nil {
		close(c.ready)
		return
	}
	defer pipe.Close()
	buf := make([]byte, len(readyWord))
	if _, err := io.ReadFull(pipe, buf); err == nil && string(buf) == readyWord {
		close(c.ready)
	}
}

// Identity tells this process from all others on this boot.
func (c *Child) Identity() Identity { return c.id }

// Ready is closed once the child has said that it is ready.
func (c *Child) Ready() <-chan struct{} { return c.ready }

// Done is closed once the child has ended and its output was handed on.
func (c *Child) Done() <-chan struct{} { return c.done }

// Exit says how it ended; it waits for that.
func (c *Child) Exit() Exit {
	<-c.done
	return c.exit
}

// Signal sends a signal; os.ErrProcessDone when it has ended.
func (c *Child) Signal(s syscall.Signal) error {
	if err := c.cmd.Process.Signal(s); err != nil {
		return fmt.Errorf("signal %d to pid %d: %w", int(s), c.id.PID, err)
	}
	return nil
}

// Stop asks with SIGTERM, waits up to grace, ends it with SIGKILL, and returns
// how it ended. A context that ends cuts the grace short.
func Stop(ctx context.Context, p Process, grace time.Duration) Exit {
	// An error of Signal means that it has ended, which Done reports.
	_ = p.Signal(syscall.SIGTERM)
	t := time.NewTimer(grace)
	defer t.Stop()
	select {
	case <-p.Done():
		return p.Exit()
	case <-t.C:
	case <-ctx.Done():
	}
	_ = p.Signal(syscall.SIGKILL)
	<-p.Done()
	e := p.Exit()
	if e.Signal == syscall.SIGKILL {
		e.Detail = fmt.Sprintf("did not stop within %v", grace)
	}
	return e
}

// pipes are the ends that a start needs, ours and the child's.
type pipes struct {
	output, ready *os.File
	child         []*os.File
}

func openPipes(c Command, cmd *exec.Cmd) (*pipes, error) {
	p := &pipes{}
	if c.OutputFile != nil {
		cmd.Stdout, cmd.Stderr = c.OutputFile, c.OutputFile
	} else if c.Output != nil {
		r, w, err := os.Pipe()
		if err != nil {
			return nil, fmt.Errorf("output pipe: %w", err)
		}
		p.output, p.child = r, append(p.child, w)
		cmd.Stdout, cmd.Stderr = w, w
	}
	if c.Notify {
		r, w, err := os.Pipe()
		if err != nil {
			p.closeOurEnds()
			p.closeChildEnds()
			return nil, fmt.Errorf("readiness pipe: %w", err)
		}
		p.ready, p.child = r, append(p.child, w)
		if c.Name != "" {
			cmd.Args[0] = c.Name
		}
		cmd.Env = append(cmd.Env, fmt.Sprintf("%s=%d", notifyEnv, 3+len(cmd.ExtraFiles)))
		cmd.ExtraFiles = append(cmd.ExtraFiles, w)
	}
	return p, nil
}

func (p *pipes) closeChildEnds() {
	for _, f := range p.child {
		f.Close()
	}
}

func (p *pipes) closeOurEnds() {
	for _, f := range []*os.File{p.output, p.ready} {
		if f != nil {
			f.Close()
		}
	}
}
