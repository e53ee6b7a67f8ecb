// SPDX-License-Identifier: Apache-2.0

package tpmtest

import (
	"bytes"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"syscall"
	"testing"
	"time"
)

// env names the swtpm program to use instead of the one on PATH.
const env = "DAVIT_SWTPM"

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

// Start starts an emulator that ends with the test. It skips the test if
// there is no swtpm: neither named by DAVIT_SWTPM nor on PATH.
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
	program := os.Getenv(env)
	if program == "" {
		found, err := exec.LookPath("swtpm")
		if err != nil {
			e.t.Skipf("no TPM emulator: %s is not set and %v", env, err)
		}
		program = found
	}
	e.cmd = exec.Command(program, "socket", "--tpm2",
		"--tpmstate", "dir="+e.dir,
		"--server", "type=unixio,path="+e.Socket,
		"--flags", "not-need-init,startup-clear")
	e.cmd.Stdout, e.cmd.Stderr = &e.output, &e.output
	e.cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
	if err := e.cmd.Start(); err != nil {
		e.t.Fatalf("start %s: %v", program, err)
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
