// SPDX-License-Identifier: Apache-2.0

package vm

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/davit-dpu/davit/secureboot/keys"
	"github.com/davit-dpu/davit/tools/rig"
)

// LoopbackEnv is a running server whose card is two processes.
type LoopbackEnv struct {
	*Env
	Loopback *rig.Loopback
}

// StartLoopback brings up a server on the loopback board.
func StartLoopback(t testing.TB, o Options) *LoopbackEnv {
	t.Helper()
	o.fill()
	if _, err := keys.Ensure(filepath.Join(State(t), "keys"), time.Now()); err != nil {
		t.Fatal(err)
	}
	server, err := rig.New(rig.Config{Dir: t.TempDir(), Set: Packages(t), Hostd: Program(t, "./tools/hostd"), Pool: o.Pool, Seed: Seed(t, o.Demo)})
	if err != nil {
		t.Fatal(err)
	}
	l := &rig.Loopback{
		Server: server, Agent: Program(t, "./firmware/cmd/davitd"), Vcard: Program(t, "./firmware/cmd/vcard"), Configure: o.Configure,
	}
	env := &LoopbackEnv{&Env{server, &rig.Operator{Server: server, KeyFile: filepath.Join(State(t), "keys", "operator.key")}}, l}
	t.Cleanup(func() { env.end(t, l.Close) })
	steps := l.PowerOn(env.Operator)
	if o.Demonstrate {
		steps = append(steps, env.Operator.Demonstrate(o.Demo)...)
	}
	env.Run(t, steps)
	return env
}

// StartAgent starts davitd again.
func (e *LoopbackEnv) StartAgent(t testing.TB) {
	t.Helper()
	if err := e.Loopback.StartAgent(t.Context(), e.Operator); err != nil {
		t.Fatal(err)
	}
}

// StartHost starts hostd again.
func (e *LoopbackEnv) StartHost(t testing.TB) {
	t.Helper()
	if err := e.Server.StartHost(t.Context()); err != nil {
		t.Fatal(err)
	}
}

// VcardPID is the process id of the vcard that runs.
func (e *LoopbackEnv) VcardPID(t testing.TB) int {
	t.Helper()
	p, err := e.Loopback.VcardProcess()
	if err != nil {
		t.Fatal(err)
	}
	return p.Identity().PID
}

// KillVcard ends the vcard as kill -9 does, waits until it is gone, and returns
// the process id that it had.
func (e *LoopbackEnv) KillVcard(t testing.TB) int {
	t.Helper()
	p, err := e.Loopback.VcardProcess()
	if err == nil {
		err = p.Signal(syscall.SIGKILL)
	}
	if err != nil {
		t.Fatal("kill the vcard:", err)
	}
	<-p.Done()
	return p.Identity().PID
}

// AwaitWrites waits until a volume's file has been written to n more times: I/O
// as the card's storage sees it, whoever of davitd and hostd is there.
func (e *LoopbackEnv) AwaitWrites(t testing.TB, volume string, n int, limit time.Duration) {
	t.Helper()
	path := filepath.Join(e.Loopback.StateDir(), "volumes", volume+".img")
	var last time.Time
	seen := -1 // the first look is no write
	Eventually(t, limit, func() error {
		st, err := os.Stat(path)
		if err != nil {
			return err
		}
		if !st.ModTime().Equal(last) {
			last, seen = st.ModTime(), seen+1
		}
		if seen < n {
			return fmt.Errorf("volume %s was written to %d of %d times", volume, seen, n)
		}
		return nil
	})
}

// Alive tells whether there is a process of that id, a zombie included.
func Alive(pid int) bool { return !errors.Is(syscall.Kill(pid, 0), syscall.ESRCH) }

// Resident is the memory in RAM of a process, in bytes, without what it shares
// with others: proc_pid_status(5), RssAnon.
func Resident(t testing.TB, pid int) uint64 {
	t.Helper()
	text, err := os.ReadFile(fmt.Sprintf("/proc/%d/status", pid))
	if err != nil {
		t.Fatal(err)
	}
	for line := range strings.Lines(string(text)) {
		var kib uint64
		if n, err := fmt.Sscanf(line, "RssAnon: %d kB", &kib); n == 1 && err == nil {
			return kib << 10
		}
	}
	t.Fatalf("no RssAnon for process %d", pid)
	return 0
}
