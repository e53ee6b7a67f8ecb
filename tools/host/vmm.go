// SPDX-License-Identifier: Apache-2.0

package host

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"sync"
	"sync/atomic"
	"syscall"
	"time"

	"github.com/davit-dpu/davit/firmware/spec"
)

// vmm is one running VMM. done is closed after its end was recorded.
type vmm struct {
	order   spec.VMMOrder
	dir     string
	proc    *process
	child   *exec.Cmd // nil when adopted
	console *console
	killed  atomic.Bool // by the card's order
	done    chan struct{}

	mu     sync.Mutex
	closed bool // the directory is no longer this VMM's; guarded by mu
}

// listen makes a listening socket in the VMM's directory, for as long as it has
// one: a successor's has the same name.
func (v *vmm) listen(name string) (*net.UnixListener, error) {
	v.mu.Lock()
	defer v.mu.Unlock()
	if v.closed {
		return nil, fmt.Errorf("listen on %s: %w", name, errGone)
	}
	return listen(v.dir, name)
}

// close keeps new sockets out of the directory.
func (v *vmm) close() {
	v.mu.Lock()
	defer v.mu.Unlock()
	v.closed = true
}

func (v *vmm) status() spec.VMMStatus {
	return spec.VMMStatus{Instance: v.order.Instance, Generation: v.order.Generation, State: spec.VMMRunning, Adopted: v.child == nil}
}

func (v *vmm) overlaps(o *spec.VMMOrder) bool {
	return o.PoolOffset < v.order.PoolOffset+v.order.Memory && v.order.PoolOffset < o.PoolOffset+o.Memory
}

// launch starts the VMM of a checked order in a fresh directory.
func (h *Host) launch(m machine, order *spec.VMMOrder) (*vmm, error) {
	dir := h.dir.vmm(order.Instance)
	if err := os.RemoveAll(dir); err != nil {
		return nil, err
	}
	if err := os.Mkdir(dir, 0o700); err != nil {
		return nil, err
	}
	v, err := h.launchIn(dir, m, order)
	if err != nil {
		return nil, errors.Join(err, os.RemoveAll(dir))
	}
	return v, nil
}

func (h *Host) launchIn(dir string, m machine, order *spec.VMMOrder) (*vmm, error) {
	args, err := argv(m, h.cfg.QEMUArgs, order, h.pool.path, h.cfg.UEFICode)
	if err != nil {
		return nil, err
	}
	if order.Kernel == nil && order.Firmware == spec.FirmwareUEFI {
		if err := copyFile(filepath.Join(dir, varsFile), h.cfg.UEFIVars); err != nil {
			return nil, err
		}
	}
	files, err := h.inherited(dir, order)
	defer closeFiles(files)
	if err != nil {
		return nil, err
	}
	out, err := os.OpenFile(filepath.Join(dir, logFile), os.O_CREATE|os.O_WRONLY|os.O_APPEND, 0o600)
	if err != nil {
		return nil, err
	}
	defer out.Close()
	// The order is there before the process: whoever comes after us can tell
	// from the directory that there may be one.
	if err := writeJSON(filepath.Join(dir, "order.json"), order); err != nil {
		return nil, err
	}
	pidfd := -1
	cmd := exec.Command(h.cfg.QEMU, args...)
	cmd.Dir, cmd.Stdout, cmd.Stderr, cmd.ExtraFiles = dir, out, out, files
	cmd.SysProcAttr = &syscall.SysProcAttr{Setsid: true, PidFD: &pidfd}
	if err := cmd.Start(); err != nil {
		return nil, fmt.Errorf("start %s: %w", h.cfg.QEMU, err)
	}
	v := &vmm{order: *order, dir: dir, child: cmd, done: make(chan struct{})}
	if v.proc, err = adoptChild(cmd.Process.Pid, pidfd); err == nil {
		err = v.record()
	}
	if err != nil { // nobody could find it again: better none than a stray one
		return nil, errors.Join(err, cmd.Process.Kill(), ignoreExit(cmd.Wait()))
	}
	return v, nil
}

func ignoreExit(err error) error {
	var exit *exec.ExitError
	if errors.As(err, &exit) {
		return nil
	}
	return err
}

func adoptChild(pid, pidfd int) (*process, error) {
	if pidfd < 0 {
		return nil, errors.New("the kernel gives no pidfd")
	}
	if err := syscall.SetNonblock(pidfd, true); err != nil {
		return nil, errors.Join(err, syscall.Close(pidfd))
	}
	return &process{pid: pid, pidfd: os.NewFile(uintptr(pidfd), "pidfd")}, nil
}

func (v *vmm) record() error {
	start, err := startTime(v.proc.pid)
	if err != nil {
		return err
	}
	return writeJSON(filepath.Join(v.dir, "pid.json"), pidRecord{PID: v.proc.pid, Start: start})
}

// inherited opens what QEMU gets as file descriptors, in the order of the fd
// constants. Sockets are there before QEMU is, so nobody has to wait for them.
func (h *Host) inherited(dir string, order *spec.VMMOrder) ([]*os.File, error) {
	var files []*os.File
	for _, name := range []string{qmpSocket, consoleSocket} {
		l, err := listen(dir, name)
		if err != nil {
			return files, err
		}
		f, err := l.File()
		if err = errors.Join(err, l.Close()); err != nil {
			return files, err
		}
		files = append(files, f)
	}
	if order.Kernel == nil {
		return files, nil
	}
	blobs := []*spec.Blob{order.Kernel, order.Initrd}
	for i, name := range []string{"kernel", "initrd"} {
		if blobs[i] == nil {
			continue
		}
		f, err := h.pool.copyOut(name, blobs[i])
		if err != nil {
			return files, err
		}
		files = append(files, f)
	}
	return files, nil
}

func closeFiles(files []*os.File) {
	for _, f := range files {
		_ = f.Close()
	}
}

func copyFile(to, from string) error {
	b, err := os.ReadFile(from)
	if err != nil {
		return fmt.Errorf("copy firmware variables: %w", err)
	}
	return os.WriteFile(to, b, 0o600)
}

// adopt finds the VMM that a predecessor started in dir. errGone says that it
// has ended; the order is valid then. The VMM is not recorded again yet.
func adopt(dir string) (*vmm, *spec.VMMOrder, error) {
	var order spec.VMMOrder
	if err := readJSON(filepath.Join(dir, "order.json"), &order); err != nil {
		return nil, nil, err
	}
	if order.Instance != filepath.Base(dir) || len(order.Generation) != 32 {
		return nil, nil, fmt.Errorf("%s holds the order of %q", dir, order.Instance)
	}
	p, err := findProcess(dir, uuidOf(order.Generation))
	if err != nil {
		return nil, &order, err
	}
	return &vmm{order: order, dir: dir, proc: p, done: make(chan struct{})}, &order, nil
}

// recordAgain is record for an adopted VMM. errGone says that it has ended
// meanwhile; it is then given up.
func (v *vmm) recordAgain() error {
	err := v.record()
	if err != nil && v.proc.exited() {
		return errors.Join(errGone, err, v.proc.pidfd.Close())
	}
	return err
}

// await returns how the VMM ended, once it has. An error says that it was not
// seen to end: this Host is being closed.
func (v *vmm) await() (string, error) {
	if err := v.proc.wait(); err != nil {
		return "", err
	}
	status, words := v.exitStatus(time.Now())
	switch {
	case v.killed.Load():
		return status + ", on the card's order", nil
	case words != "":
		return status + ": " + words, nil
	}
	return status, nil
}

// lastWords is how long before its end a VMM may have said why it ends.
const lastWords = 5 * time.Second

// exitStatus returns how a VMM that ended just now ended and, if it gave up
// itself, what it said last.
func (v *vmm) exitStatus(now time.Time) (status, words string) {
	if v.child == nil {
		return "exit status unknown: started by an earlier hostd", ""
	}
	err := v.child.Wait()
	var exit *exec.ExitError
	switch {
	case err == nil:
		return "exit status 0", ""
	case !errors.As(err, &exit):
		return "exit status unknown: " + err.Error(), ""
	case exit.Exited(): // else a signal ended it, of which it knew nothing
		words = lastLine(filepath.Join(v.dir, logFile), now.Add(-lastWords))
	}
	return exit.Error(), words
}

// lastLine returns the end of a file's last line that is not empty; nothing of a
// file that was last written to before since.
func lastLine(path string, since time.Time) string {
	f, err := os.Open(path)
	if err != nil {
		return ""
	}
	defer f.Close()
	const tail = 1024
	st, err := f.Stat()
	if err != nil || st.ModTime().Before(since) {
		return ""
	}
	if st.Size() > tail {
		if _, err := f.Seek(-tail, io.SeekEnd); err != nil {
			return ""
		}
	}
	b, err := io.ReadAll(io.LimitReader(f, tail))
	if err != nil {
		return ""
	}
	b = bytes.TrimSpace(b)
	b = b[bytes.LastIndexByte(b, '\n')+1:]
	return string(b[max(0, len(b)-160):])
}
