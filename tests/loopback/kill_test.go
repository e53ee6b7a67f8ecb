// SPDX-License-Identifier: Apache-2.0

package loopback

import (
	"math/rand/v2"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/davit-dpu/davit/firmware/audit"
	"github.com/davit-dpu/davit/firmware/spec"
	"github.com/davit-dpu/davit/tests/vm"
	"github.com/davit-dpu/davit/tools/rig"
)

// killer kills processes of a server whose instance is under load, and checks
// what is seen of it.
type killer struct {
	env     *vm.LoopbackEnv
	console *vm.Console
	random  *rand.Rand
	adopted bool // the VMM was started by an earlier hostd, which alone can learn how it ends
}

// kills are what TestKills does, each some times, in random order.
var kills = []struct {
	name  string
	times int
	do    func(*killer, *testing.T)
}{
	{"davitd", 3, (*killer).davitd},
	{"vcard", 3, (*killer).vcard},
	{"hostd", 3, (*killer).hostd},
	{"vmm", 1, (*killer).vmm},
	{"davitd and vcard", 1, (*killer).davitdAndVcard},
	{"vcard and hostd", 1, (*killer).vcardAndHostd},
	{"hostd and vmm", 1, (*killer).hostdAndVMM},
	{"all of the card and hostd", 1, (*killer).cardAndHostd},
}

// TestKills kills every process of the server at random moments, in random
// order, alone and together, while the instance writes, syncs and verifies.
// DAVIT_KILL_SEED repeats a run.
func TestKills(t *testing.T) {
	t.Parallel()
	random := seeded(t)
	env := vm.StartLoopback(t, vm.Options{Demonstrate: true, Demo: rig.Demo{Load: true}})
	k := &killer{env: env, console: env.Follow(t, rig.DemoName), random: random}
	k.console.Advance(t, 3, bootLimit)

	var order []int
	for i, kill := range kills {
		for range kill.times {
			order = append(order, i)
		}
	}
	k.random.Shuffle(len(order), func(i, j int) { order[i], order[j] = order[j], order[i] })
	for n, i := range order {
		moment(k.random, 1200*time.Millisecond)
		t.Run(strconv.Itoa(n)+" "+kills[i].name, func(t *testing.T) { kills[i].do(k, t) })
		if t.Failed() {
			return // what follows would only bury the reason
		}
	}
	t.Run("hostile host", k.hostileHost)
	t.Run("verify", k.verify)
}

// seeded is random, and the same again with the seed that it prints.
func seeded(t *testing.T) *rand.Rand {
	t.Helper()
	seed := uint64(time.Now().UnixNano())
	if text := os.Getenv("DAVIT_KILL_SEED"); text != "" {
		var err error
		if seed, err = strconv.ParseUint(text, 10, 64); err != nil {
			t.Fatalf("DAVIT_KILL_SEED: %v", err)
		}
	}
	t.Logf("DAVIT_KILL_SEED=%d", seed)
	return rand.New(rand.NewPCG(seed, 0))
}

// same checks that the VMM went on: the same one as before, never restarted.
func (k *killer) same(t *testing.T, before *spec.InstanceStatus, vmm int) {
	t.Helper()
	st := settled(t, k.env, rig.DemoName)
	if st.Generation != before.Generation || st.Restarts != before.Restarts || st.PoolOffset != before.PoolOffset {
		t.Errorf("generation %s with %d restarts at %s became %s with %d at %s", before.Generation, before.Restarts, before.PoolOffset,
			st.Generation, st.Restarts, st.PoolOffset)
	}
	if now := k.env.VMM(t, rig.DemoName); now != vmm || !vm.Alive(vmm) {
		t.Errorf("VMM %d became %d", vmm, now)
	}
	// What the card's storage sees is new; the console may tell of what was.
	k.env.AwaitWrites(t, rig.DemoVolume, 10, bootLimit)
	boot := k.console.Far().Boot
	if far := k.console.Advance(t, 5, bootLimit); far.Boot != boot {
		t.Errorf("the guest is at %+v: it booted again", far)
	}
}

// vcardIs checks that the card names the vcard that really runs.
func (k *killer) vcardIs(t *testing.T, alive func(pid int) bool) {
	t.Helper()
	pid := k.env.VcardPID(t)
	c := vm.Component(t, k.env.Status(t), "vcard")
	if !alive(pid) || c.Phase != spec.PhaseReady || !strings.Contains(c.Reason, "pid "+strconv.Itoa(pid)+" ") {
		t.Errorf("vcard %d runs; the card reports %s: %s", pid, c.Phase, c.Reason)
	}
}

// davitd: I/O goes on without it, and the next one adopts vcard and instance.
func (k *killer) davitd(t *testing.T) {
	before, vcard, vmm := settled(t, k.env, rig.DemoName), k.env.VcardPID(t), k.env.VMM(t, rig.DemoName)
	k.env.Server.Card.Kill()
	from := k.console.Far()
	k.env.AwaitWrites(t, rig.DemoVolume, 20, soon)
	k.env.StartAgent(t)
	k.same(t, before, vmm)
	k.vcardIs(t, func(pid int) bool { return pid == vcard })
	if far := k.console.Far(); far.Round < from.Round+4 {
		t.Errorf("the guest was at %+v when davitd was killed and is at %+v", from, far)
	}
}

// vcard: davitd starts another one, the guest waits meanwhile.
func (k *killer) vcard(t *testing.T) {
	before, vmm := settled(t, k.env, rig.DemoName), k.env.VMM(t, rig.DemoName)
	old := k.nextVcard(t)
	k.same(t, before, vmm)
	k.vcardIs(t, func(pid int) bool { return pid != old })
}

// nextVcard kills the vcard, waits until davitd has seen that and started
// another one, and returns the process id of the first.
func (k *killer) nextVcard(t *testing.T) int {
	t.Helper()
	old := k.env.KillVcard(t)
	vm.Eventually(t, soon, func() error {
		_, err := k.env.Loopback.VcardProcess()
		return err
	})
	return old
}

// hostd: its VMM is reported as not visible, with the reason; the next one
// adopts it.
func (k *killer) hostd(t *testing.T) {
	before, vmm := settled(t, k.env, rig.DemoName), k.env.VMM(t, rig.DemoName)
	k.env.Server.Host.Kill()
	phaseOf(t, k.env, rig.DemoName, spec.PhaseUnknown, "; last seen", soon)
	if host := hostPhase(t, k.env, spec.PhasePending); host.Reason == "" {
		t.Error("no reason for the host that is gone")
	}
	if !vm.Alive(vmm) {
		t.Fatal("hostd took its VMM along")
	}
	k.startHost(t)
	k.same(t, before, vmm)
}

// vmm: seen, reported with its signal, restarted by policy with a new
// generation; the disk kept what was on it.
func (k *killer) vmm(t *testing.T) {
	before := settled(t, k.env, rig.DemoName)
	k.killVMM(t)
	reason := "signal: killed"
	if k.adopted {
		reason = "exit status unknown: started by an earlier hostd"
	}
	phaseOf(t, k.env, rig.DemoName, spec.PhaseFailed, reason, soon)
	k.restarted(t, before)
}

// startHost starts the next hostd.
func (k *killer) startHost(t *testing.T) {
	t.Helper()
	k.env.StartHost(t)
	k.adopted = true
}

// killVMM kills the VMM and returns the process id that it had.
func (k *killer) killVMM(t *testing.T) int {
	t.Helper()
	pid := k.env.VMM(t, rig.DemoName)
	if err := syscall.Kill(pid, syscall.SIGKILL); err != nil {
		t.Fatalf("kill VMM %d: %v", pid, err)
	}
	return pid
}

// restarted waits for the next boot.
func (k *killer) restarted(t *testing.T, before *spec.InstanceStatus) {
	t.Helper()
	boot := k.console.Far().Boot
	st := settled(t, k.env, rig.DemoName)
	k.adopted = false
	if st.Generation == before.Generation || st.Restarts != before.Restarts+1 {
		t.Errorf("generation %s with %d restarts became %s with %d", before.Generation, before.Restarts, st.Generation, st.Restarts)
	}
	if far := k.console.AwaitBoot(t, boot, bootLimit); far.Boot != boot+1 {
		t.Errorf("the guest counts boot %d after boot %d", far.Boot, boot)
	}
}

func (k *killer) davitdAndVcard(t *testing.T) {
	before, vmm := settled(t, k.env, rig.DemoName), k.env.VMM(t, rig.DemoName)
	k.env.Server.Card.Kill()
	old := k.env.KillVcard(t)
	k.env.StartAgent(t)
	k.same(t, before, vmm)
	k.vcardIs(t, func(pid int) bool { return pid != old })
}

func (k *killer) vcardAndHostd(t *testing.T) {
	before, vmm := settled(t, k.env, rig.DemoName), k.env.VMM(t, rig.DemoName)
	k.env.KillVcard(t)
	k.env.Server.Host.Kill()
	k.startHost(t)
	k.same(t, before, vmm)
}

// hostdAndVMM: the VMM ends while nobody looks, which is what is reported.
func (k *killer) hostdAndVMM(t *testing.T) {
	before := settled(t, k.env, rig.DemoName)
	k.env.Server.Host.Kill()
	k.killVMM(t)
	phaseOf(t, k.env, rig.DemoName, spec.PhaseUnknown, "; last seen", soon)
	k.startHost(t)
	phaseOf(t, k.env, rig.DemoName, spec.PhaseFailed, "ended while no hostd ran", soon)
	k.restarted(t, before)
}

func (k *killer) cardAndHostd(t *testing.T) {
	before, vmm := settled(t, k.env, rig.DemoName), k.env.VMM(t, rig.DemoName)
	k.env.Server.Card.Kill()
	k.env.KillVcard(t)
	k.env.Server.Host.Kill()
	k.startHost(t) // finds no card, and waits for it
	k.env.StartAgent(t)
	k.same(t, before, vmm)
}

// verify stops the instance in order and has its file system checked, and the
// audit log: each davitd that was killed left it whole.
func (k *killer) verify(t *testing.T) {
	if err := k.env.Operator.Stop(t.Context(), rig.DemoName, time.Minute); err != nil {
		t.Fatal(err)
	}
	k.console.Check(t)
	checkFileSystem(t, k.env, rig.DemoVolume, 0)
	undone(t, k.env, rig.DemoName)
	k.env.Server.Card.Stop(soon)
	opened := 0
	verifyAudit(t, filepath.Join(k.env.Loopback.StateDir(), "audit"), func(r audit.Record) {
		if r.Kind == audit.KindOpen {
			opened++
		}
	})
	if opened < 5 {
		t.Errorf("the audit log tells of %d starts of davitd", opened)
	}
}
