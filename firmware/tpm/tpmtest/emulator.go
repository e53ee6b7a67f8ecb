// SPDX-License-Identifier: Apache-2.0

package tpmtest

import (
	"bytes"
	"context"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/davit-dpu/davit/tools/packages"
)

// startLimit is how long the emulator may take until it listens.
const startLimit = 20 * time.Second

// Emulator is a running swtpm.
type Emulator struct {
	// Socket is the path of its unix socket, for tpm.Open.
	Socket string

	t      testing.TB
	dir    string
	cmd    *exec.Cmd
	output bytes.Buffer
	exited chan struct{}
}

// swtpm finds the program: on PATH, or in the user's package cache, which is
// filled when it lacks it.
var swtpm = sync.OnceValues(func() (*packages.Set, error) {
	cache, err := packages.Open(packages.Config{})
	if err != nil {
		return nil, err
	}
	return cache.Ensure(context.Background(), nil, packages.SWTPM)
})

// Start starts an emulator that ends with the test.
func Start(t testing.TB) *Emulator {
	t.Helper()
	// Not t.TempDir: a unix socket's path is at most 107 bytes long.
	dir, err := os.MkdirTemp("", "swtpm")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { os.RemoveAll(dir) })
	e := &Emulator{Socket: filepath.Join(dir, "socket"), t: t, dir: dir}
	e.start()
	t.Cleanup(e.Stop)
	return e
}

// Reset stops the emulator and starts it with the same state: PCRs as after a
// power cycle, same seeds.
func (e *Emulator) Reset() {
	e.t.Helper()
	e.Stop()
	e.start()
}

// Stop ends the emulator, as a TPM that is gone.
func (e *Emulator) Stop() {
	if e.cmd == nil {
		return
	}
	e.cmd.Process.Kill()
	<-e.exited
	e.cmd = nil
	os.Remove(e.Socket)
}

func (e *Emulator) start() {
	e.t.Helper()
	set, err := swtpm()
	if err != nil {
		e.t.Fatal(err)
	}
	e.cmd = set.Command("swtpm", "socket", "--tpm2",
		"--tpmstate", "dir="+e.dir,
		"--server", "type=unixio,path="+e.Socket,
		"--flags", "not-need-init,startup-clear")
	e.cmd.Stdout, e.cmd.Stderr = &e.output, &e.output
	e.cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
	if err := e.cmd.Start(); err != nil {
		e.t.Fatalf("start swtpm: %v", err)
	}
	e.exited = make(chan struct{})
	go func(cmd *exec.Cmd, exited chan struct{}) {
		cmd.Wait()
		close(exited)
	}(e.cmd, e.exited)
	e.await()
}

// await returns when the emulator accepts connections.
func (e *Emulator) await() {
	e.t.Helper()
	deadline := time.After(startLimit)
	tick := time.NewTicker(5 * time.Millisecond)
	defer tick.Stop()
	for {
		if conn, err := net.Dial("unix", e.Socket); err == nil {
			conn.Close()
			return
		}
		select {
		case <-tick.C:
		case <-e.exited:
			e.t.Fatalf("swtpm ended: %s", e.output.String())
		case <-deadline:
			e.t.Fatalf("swtpm does not listen after %v", startLimit)
		}
	}
}
