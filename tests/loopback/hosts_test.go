// SPDX-License-Identifier: Apache-2.0

package loopback

import (
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/davit-dpu/davit/firmware/mailbox/door"
	"github.com/davit-dpu/davit/firmware/spec"
	"github.com/davit-dpu/davit/tests/vm"
	"github.com/davit-dpu/davit/tools/rig"
)

// launchHost starts another hostd, with flags changed.
func launchHost(t *testing.T, env *vm.LoopbackEnv, name string, flags map[string]string) *rig.Process {
	t.Helper()
	cmd, err := env.Server.HostCommand()
	if err != nil {
		t.Fatal(err)
	}
	for flag, value := range flags {
		i := slices.Index(cmd.Args, flag)
		if i < 0 {
			t.Fatalf("hostd is not started with %s: %q", flag, cmd.Args)
		}
		cmd.Args[i+1] = value
	}
	p, err := env.Server.Launch(name, cmd)
	if err != nil {
		t.Fatal(err)
	}
	return p
}

// TestNoHost: while no hostd is there, what is wanted waits, with the reason,
// and comes about when it is.
func TestNoHost(t *testing.T) {
	t.Parallel()
	env := vm.StartLoopback(t, vm.Options{})
	in := small("waits", root())
	env.Create(t, in)
	env.Server.Host.Kill()
	if host := hostPhase(t, env, spec.PhasePending); !strings.HasPrefix(host.Reason, "no host: ") {
		t.Errorf("the card sees no host, and says %q", host.Reason)
	}
	if st := env.Status(t); st.Phase != spec.PhaseReady || !slices.ContainsFunc(st.Alerts, func(a string) bool { return strings.HasPrefix(a, "host: ") }) {
		t.Errorf("without a host the card is %s (%s) with alerts %q; want ready, with an alert", st.Phase, st.Reason, st.Alerts)
	}
	env.Do(t, "instance.start", map[string]string{"name": in.Name}, nil)
	phaseOf(t, env, in.Name, spec.PhasePending, "waits: the host: no host", soon)
	undone(t, env, in.Name)

	env.StartHost(t)
	started := phaseOf(t, env, in.Name, spec.PhaseRunning, "1 of 1 disks attached", soon)

	env.Server.Host.Kill()
	phaseOf(t, env, in.Name, spec.PhaseUnknown, "last seen", soon)
	env.Do(t, "instance.stop", map[string]any{"name": in.Name, "graceSeconds": uint32(0)}, nil)
	if st := env.Show(t, in.Name); st.Phase != spec.PhaseUnknown || st.Desired != spec.PhaseStopped || st.Generation != started.Generation || st.PoolOffset == 0 {
		t.Errorf("a stop that cannot be passed on: %s, wanted %s, generation %s, memory at %s", st.Phase, st.Desired, st.Generation, st.PoolOffset)
	}
	env.StartHost(t)
	phaseOf(t, env, in.Name, spec.PhaseStopped, "stopped as asked", soon)
	undone(t, env, in.Name)
}

// TestSecondHost: one hostd at a time, on the run folder and on the bus.
func TestSecondHost(t *testing.T) {
	t.Parallel()
	env := vm.StartLoopback(t, vm.Options{})
	in := small("stays", root())
	env.Create(t, in)
	if err := env.Operator.Start(t.Context(), in.Name); err != nil {
		t.Fatal(err)
	}
	before, vmm := env.Show(t, in.Name), env.VMM(t, in.Name)

	t.Run("same run folder", func(t *testing.T) {
		second := launchHost(t, env, "hostd-2", nil)
		select {
		case <-second.Done():
		case <-time.After(soon):
			t.Fatal("it runs on")
		}
		if why := second.Failure().Error(); !strings.Contains(why, "exit status 1") || !strings.Contains(why, "another hostd uses this run directory") {
			t.Error(why)
		}
	})
	t.Run("another run folder", func(t *testing.T) {
		dir := env.Server.HostDir() + "-2"
		second := launchHost(t, env, "hostd-3", map[string]string{"--run": dir})
		defer second.Kill()
		// It has a door for its clients, and no card behind it.
		vm.Eventually(t, soon, func() error {
			_, err := os.Stat(filepath.Join(dir, "mailbox.sock"))
			return err
		})
		client, err := door.DialUnix(t.Context(), filepath.Join(dir, "mailbox.sock"), door.ClientConfig{})
		if err != nil {
			t.Fatal(err)
		}
		defer client.Close()
		if _, err := client.Request(t.Context(), "status", nil); err == nil {
			t.Error("the card answers a second host")
		}
	})
	hostPhase(t, env, spec.PhaseReady)
	after := phaseOf(t, env, in.Name, spec.PhaseRunning, "1 of 1 disks attached", soon)
	if after.Generation != before.Generation || after.Restarts != 0 || env.VMM(t, in.Name) != vmm {
		t.Errorf("the instance of the first: %+v became %+v", before, after)
	}
}

// TestPools: a hostd with a smaller pool than the card was told, or with
// another file, gets no instance into it.
func TestPools(t *testing.T) {
	t.Parallel()
	env := vm.StartLoopback(t, vm.Options{})
	env.Server.Host.Kill()
	tests := []struct {
		name   string
		size   spec.Bytes
		reason string
	}{
		{"smaller", 128 * spec.MiB, "is not inside the pool of 128MiB"},
		{"another", 384 * spec.MiB, "SHA-256 is"},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			other := filepath.Join(t.TempDir(), "pool")
			if err := os.WriteFile(other, nil, 0o600); err != nil {
				t.Fatal(err)
			}
			if err := os.Truncate(other, int64(tt.size)); err != nil {
				t.Fatal(err)
			}
			hostPhase(t, env, spec.PhasePending) // the one before is known to be gone
			p := launchHost(t, env, "hostd-"+tt.name, map[string]string{"--pool": other})
			defer p.Kill()
			hostPhase(t, env, spec.PhaseReady)
			in := small(tt.name, scratch("disk-"+tt.name, spec.VolumeMemory))
			env.Create(t, in)
			env.Do(t, "instance.start", map[string]string{"name": in.Name}, nil)
			phaseOf(t, env, in.Name, spec.PhaseFailed, tt.reason, soon)
			undone(t, env, in.Name)
		})
	}
}

// TestNothingIsLeft ends with its card and its hostd killed while an instance
// runs: the harness finds that VMM and vcard are gone all the same.
func TestNothingIsLeft(t *testing.T) {
	t.Parallel()
	env := vm.StartLoopback(t, vm.Options{})
	in := small("orphan", root())
	env.Create(t, in)
	if err := env.Operator.Start(t.Context(), in.Name); err != nil {
		t.Fatal(err)
	}
	env.Server.Card.Kill()
	env.Server.Host.Kill()
	if pids := env.VMMs(t); len(pids) != 1 || !vm.Alive(env.VcardPID(t)) {
		t.Fatalf("VMMs %d and a vcard were to outlive davitd and hostd", pids)
	}
}
