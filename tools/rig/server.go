// SPDX-License-Identifier: Apache-2.0

package rig

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"sync"
	"syscall"
	"time"

	"github.com/davit-dpu/davit/firmware/qmp"
	"github.com/davit-dpu/davit/firmware/spec"
	"github.com/davit-dpu/davit/firmware/supervise"
	"github.com/davit-dpu/davit/tools/packages"
)

// Config says what to run.
type Config struct {
	Dir   string        // of the run; made when missing, private
	Set   *packages.Set // programs, firmware and kernels
	UKI   string        // the card's signed image
	Hostd string        // the davit-hostd program
	Boot  Boot          // default BootESP
	Pool  spec.Bytes    // the host's memory pool; default 512 MiB
	Seed  Seed          // what the card's storage holds when it is new
	KVM   bool          // instances run on KVM, which was found to work

	busSocket string // where hostd finds the card
}

// Server is one run. Its exported processes may be killed and started again by
// their Start methods; Close stops all of it.
type Server struct {
	cfg     Config
	set     *packages.Set
	sockets string // short folder: a unix socket's path has at most 107 bytes
	pool    string // file in /dev/shm

	TPM, Card, Host *Process
	Address         string // of the card's TLS door

	mu    sync.Mutex
	procs []*Process // guarded by mu; in starting order
}

// New prepares a run's folders; it starts nothing.
func New(cfg Config) (*Server, error) {
	if cfg.Boot == "" {
		cfg.Boot = BootESP
	}
	if cfg.Pool == 0 {
		cfg.Pool = 512 * spec.MiB
	}
	dir, err := filepath.Abs(cfg.Dir)
	if err != nil {
		return nil, err
	}
	cfg.Dir = dir
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return nil, fmt.Errorf("run folder: %w", err)
	}
	s := &Server{cfg: cfg, set: cfg.Set}
	if s.sockets, err = os.MkdirTemp("", "davit-"); err != nil {
		return nil, fmt.Errorf("folder for sockets: %w", err)
	}
	s.cfg.busSocket = s.sock("bus")
	pool, err := os.CreateTemp(sharedMemory(), "davit-pool-")
	if err != nil {
		os.RemoveAll(s.sockets)
		return nil, fmt.Errorf("memory pool: %w", err)
	}
	s.pool = pool.Name()
	if err := errors.Join(pool.Truncate(int64(cfg.Pool)), pool.Close()); err != nil {
		s.removeTemporary()
		return nil, fmt.Errorf("memory pool: %w", err)
	}
	return s, nil
}

// sharedMemory is where the pool lies: memory if there is a place for it.
func sharedMemory() string {
	if st, err := os.Stat("/dev/shm"); err == nil && st.IsDir() {
		return "/dev/shm"
	}
	return os.TempDir()
}

func (s *Server) path(name string) string { return filepath.Join(s.cfg.Dir, name) }
func (s *Server) sock(name string) string { return filepath.Join(s.sockets, name) }

// Dir is the run's folder.
func (s *Server) Dir() string { return s.cfg.Dir }

// CardConsole is the socket of the card's serial line; one reader at a time.
func (s *Server) CardConsole() string { return s.sock("card-console") }

// CardLog is the file with all that the card's serial line ever said.
func (s *Server) CardLog() string { return s.path("card.log") }

// HostDoor is the socket on the host whose bytes the bus carries to the card.
func (s *Server) HostDoor() string { return filepath.Join(s.HostDir(), "mailbox.sock") }

// HostDir is hostd's run folder.
func (s *Server) HostDir() string { return s.sock("host") }

// Pool is the file that stands for the host's memory pool.
func (s *Server) Pool() string { return s.pool }

// Places are the paths that only this run uses: a process that names one of
// them, or has a file below one open, belongs to the run.
func (s *Server) Places() []string { return []string{s.cfg.Dir, s.sockets, s.pool} }

// Launch starts another process of this run: it is stopped by Close, and its
// output goes to log/NAME.log of the run's folder.
func (s *Server) Launch(name string, cmd *exec.Cmd) (*Process, error) {
	return s.start(name, cmd, syscall.SIGKILL)
}

// start starts a process of this run.
func (s *Server) start(name string, cmd *exec.Cmd, orphaned syscall.Signal) (*Process, error) {
	p, err := startProcess(name, cmd, filepath.Join(s.path("log"), name+".log"), orphaned)
	if err != nil {
		return nil, err
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	s.procs = append(s.procs, p)
	return p, nil
}

// CardMonitor runs one command of QEMU's human monitor on the card.
func (s *Server) CardMonitor(ctx context.Context, line string) (string, error) {
	var d net.Dialer
	conn, err := d.DialContext(ctx, "unix", s.sock("card-qmp"))
	if err != nil {
		return "", fmt.Errorf("the card's monitor: %w", err)
	}
	c, err := qmp.Open(ctx, conn)
	if err != nil {
		return "", fmt.Errorf("the card's monitor: %w", errors.Join(err, conn.Close()))
	}
	defer c.Close()
	var text string
	err = c.Execute(ctx, "human-monitor-command", map[string]any{"command-line": line}, &text)
	if err != nil {
		return "", fmt.Errorf("the card's monitor: %s: %w", line, err)
	}
	return text, nil
}

// Close stops everything that the run started, VMMs included, and removes what
// is of no use without it. The run's folder stays.
func (s *Server) Close() {
	s.reclaimVMMs()
	s.stopAll()
	s.removeTemporary()
}

// reclaimVMMs starts hostd again when somebody killed it: it adopts the VMMs
// that outlived it, and takes them along when it is stopped.
func (s *Server) reclaimVMMs() {
	if s.Host == nil {
		return
	}
	select {
	case <-s.Host.Done():
	default:
		return
	}
	ctx, cancel := context.WithTimeout(context.Background(), 10*time.Second)
	defer cancel()
	if err := s.StartHost(ctx); err != nil {
		fmt.Fprintln(os.Stderr, "VMMs that outlived hostd may be left running:", err)
	}
}

// stopAll stops the processes, the last started first.
func (s *Server) stopAll() {
	s.mu.Lock()
	procs := s.procs
	s.procs = nil
	s.mu.Unlock()
	for i := len(procs) - 1; i >= 0; i-- {
		procs[i].Stop(10 * time.Second)
	}
	s.killVMMs()
}

// killVMMs kills what a hostd that was killed has left running: whoever has the
// run's pool on its command line.
func (s *Server) killVMMs() {
	names, err := filepath.Glob("/proc/[0-9]*/cmdline")
	if err != nil {
		return // only a bad pattern is an error
	}
	for _, name := range names {
		pid, err := strconv.Atoi(filepath.Base(filepath.Dir(name)))
		if err != nil || pid == os.Getpid() {
			continue
		}
		id, err := supervise.IdentityOf(pid)
		text, rerr := os.ReadFile(name)
		if err != nil || rerr != nil || !bytes.Contains(text, []byte(s.pool)) {
			continue
		}
		if p, err := supervise.Adopt(id); err == nil && p.Signal(syscall.SIGKILL) == nil {
			<-p.Done()
		}
	}
}

func (s *Server) removeTemporary() {
	_ = os.Remove(s.pool)
	_ = os.RemoveAll(s.sockets)
}
