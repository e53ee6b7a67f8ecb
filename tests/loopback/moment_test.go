// SPDX-License-Identifier: Apache-2.0

package loopback

import (
	"fmt"
	"math/rand/v2"
	"slices"
	"syscall"
	"testing"
	"time"

	"github.com/davit-dpu/davit/firmware/spec"
	"github.com/davit-dpu/davit/tests/vm"
)

// victims are what is killed in the middle of a start or stop, and how it comes
// back.
var victims = []struct {
	name string
	kill func(*testing.T, *vm.LoopbackEnv)
}{
	{"davitd", func(t *testing.T, env *vm.LoopbackEnv) {
		env.Server.Card.Kill()
		env.StartAgent(t)
	}},
	{"vcard", func(t *testing.T, env *vm.LoopbackEnv) { env.KillVcard(t) }},
	{"hostd", func(t *testing.T, env *vm.LoopbackEnv) {
		env.Server.Host.Kill()
		env.StartHost(t)
	}},
	{"vmm", func(t *testing.T, env *vm.LoopbackEnv) {
		for _, pid := range env.VMMs(t) { // none yet, or no longer: that is a moment too
			_ = syscall.Kill(pid, syscall.SIGKILL)
		}
	}},
	{"davitd and vcard", func(t *testing.T, env *vm.LoopbackEnv) {
		env.Server.Card.Kill()
		env.KillVcard(t)
		env.StartAgent(t)
	}},
	{"davitd and hostd", func(t *testing.T, env *vm.LoopbackEnv) {
		env.Server.Card.Kill()
		env.Server.Host.Kill()
		env.StartHost(t)
		env.StartAgent(t)
	}},
}

// TestKillInTheMiddle kills each process at random moments of a start and of a
// stop. What was wanted comes about all the same, with exactly one VMM or none,
// and what is reported is what is there.
func TestKillInTheMiddle(t *testing.T) {
	t.Parallel()
	random := seeded(t)
	env := vm.StartLoopback(t, vm.Options{})
	in := small("moment", root())
	in.Restart = spec.RestartOnFailure
	env.Create(t, in)
	for round := range 3 {
		for _, v := range victims {
			t.Run(fmt.Sprintf("%s in start %d", v.name, round), func(t *testing.T) {
				env.Do(t, "instance.start", map[string]string{"name": in.Name}, nil)
				moment(random, 120*time.Millisecond)
				v.kill(t, env)
				runs(t, env, in.Name)
			})
			t.Run(fmt.Sprintf("%s in stop %d", v.name, round), func(t *testing.T) {
				env.Do(t, "instance.stop", map[string]any{"name": in.Name, "graceSeconds": uint32(0)}, nil)
				moment(random, 30*time.Millisecond)
				v.kill(t, env)
				phaseOf(t, env, in.Name, spec.PhaseStopped, "", bootLimit)
				undone(t, env, in.Name)
				if pids := env.VMMs(t); len(pids) != 0 {
					t.Errorf("VMMs %d run, and the instance is reported as stopped", pids)
				}
			})
			if t.Failed() {
				return
			}
		}
	}
}

// moment passes a random time: it is no wait for anything.
func moment(random *rand.Rand, limit time.Duration) {
	<-time.After(time.Duration(random.Int64N(int64(limit))))
}

// runs waits until the instance is reported as running, and checks that it is.
func runs(t *testing.T, env *vm.LoopbackEnv, name string) {
	t.Helper()
	vm.Eventually(t, bootLimit, func() error {
		st := phaseOf(t, env, name, spec.PhaseRunning, "", bootLimit)
		pids := env.VMMs(t)
		if len(pids) != 1 || !slices.Contains(pids, env.VMM(t, name)) || st.Devices[0].Phase != spec.PhaseReady {
			return fmt.Errorf("reported as running with disk %s; VMMs %d run, hostd knows %d", st.Devices[0].Phase, pids, env.VMM(t, name))
		}
		return nil
	})
}
