// SPDX-License-Identifier: Apache-2.0

package loopback

import (
	"errors"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/davit-dpu/davit/firmware/mailbox"
	"github.com/davit-dpu/davit/firmware/spec"
	"github.com/davit-dpu/davit/tests/vm"
	"github.com/davit-dpu/davit/tools/rig"
)

// scratch is a volume that a start makes.
func scratch(name string, kind spec.VolumeKind) spec.Volume {
	return spec.Volume{Name: name, Kind: kind, Size: spec.MiB}
}

// TestFailedStarts checks that a start that cannot work says which part of it
// does not, and leaves nothing of the others.
func TestFailedStarts(t *testing.T) {
	t.Parallel()
	env := vm.StartLoopback(t, vm.Options{Pool: 384 * spec.MiB})
	if err := os.WriteFile(filepath.Join(env.Loopback.StateDir(), "boot", "rubbish"), make([]byte, 4096), 0o600); err != nil {
		t.Fatal(err)
	}
	missing := spec.Volume{Name: "nowhere", Kind: spec.VolumeFile} // without a size it must exist
	wrong := spec.Volume{Name: rig.DemoVolume, Kind: spec.VolumeFile, Size: 32 * spec.MiB}
	tests := []struct {
		name   string
		reason string
		change func(*spec.Instance)
	}{
		{"kernel", "boot file nonesuch: open ", func(in *spec.Instance) { in.Boot.Kernel = "nonesuch" }},
		{"initrd", "boot file nonesuch: open ", func(in *spec.Instance) { in.Boot.Initrd = "nonesuch" }},
		{"rubbish", "vmm exited: exit status 1: qemu", func(in *spec.Instance) { in.Boot.Kernel = "rubbish" }},
		{"size", "open volume demo-root: has 64MiB, the instance wants 32MiB", func(in *spec.Instance) { in.Volumes = append(in.Volumes, wrong) }},
		{"third", "open volume nowhere: ", func(in *spec.Instance) {
			in.Volumes = append(in.Volumes, scratch("second", spec.VolumeFile), missing)
		}},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			in := small(tt.name, scratch("first-"+tt.name, spec.VolumeMemory))
			tt.change(&in)
			env.Create(t, in)
			env.Do(t, "instance.start", map[string]string{"name": in.Name}, nil)
			st := phaseOf(t, env, in.Name, spec.PhaseFailed, tt.reason, soon)
			if st.Desired != spec.PhaseStopped || st.Restarts != 0 {
				t.Errorf("wanted %s after %d restarts; it must not be tried again", st.Desired, st.Restarts)
			}
			undone(t, env, in.Name)
			env.Do(t, "instance.delete", map[string]string{"name": in.Name}, nil)
		})
	}
	t.Run("tried again by policy", func(t *testing.T) { failsAgain(t, env) })
	t.Run("memory", func(t *testing.T) { noMemory(t, env) })
}

// failsAgain: a policy that restarts has a failed start tried again, until it
// is stopped.
func failsAgain(t *testing.T, env *vm.LoopbackEnv) {
	in := small("again", scratch("first-again", spec.VolumeMemory))
	in.Boot.Kernel, in.Restart = "nonesuch", spec.RestartOnFailure
	env.Create(t, in)
	env.Do(t, "instance.start", map[string]string{"name": in.Name}, nil)
	first := phaseOf(t, env, in.Name, spec.PhaseFailed, "next try in", soon)
	second := phaseOf(t, env, in.Name, spec.PhaseFailed, "next try in 2s", soon)
	if second.Desired != spec.PhaseRunning || second.Restarts <= first.Restarts {
		t.Errorf("wanted %s, restarts %d became %d", second.Desired, first.Restarts, second.Restarts)
	}
	undone(t, env, in.Name)
	env.Do(t, "instance.stop", map[string]any{"name": in.Name, "graceSeconds": uint32(0)}, nil)
	if st := env.Show(t, in.Name); st.Desired != spec.PhaseStopped {
		t.Errorf("wanted %s after a stop", st.Desired)
	}
	env.Do(t, "instance.delete", map[string]string{"name": in.Name}, nil)
}

// noMemory: what does not fit is refused with figures, whoever has the rest is
// not disturbed, and what it gives back can be used.
func noMemory(t *testing.T, env *vm.LoopbackEnv) {
	large := small("large")
	large.Memory = spec.GiB
	text, err := spec.EncodeYAML(large)
	if err != nil {
		t.Fatal(err)
	}
	err = env.Operator.Do(t.Context(), "instance.create", map[string]string{"yaml": string(text)}, nil)
	if !errors.Is(err, &mailbox.Refusal{Code: mailbox.Failed}) || !strings.Contains(err.Error(), "1GiB is more than the host's pool holds") {
		t.Errorf("an instance larger than the pool: %v", err)
	}
	first, second := small("first", root()), small("second", scratch("disk-2", spec.VolumeMemory))
	first.Memory = 256 * spec.MiB
	env.Create(t, first)
	env.Create(t, second)
	if err := env.Operator.Start(t.Context(), first.Name); err != nil {
		t.Fatal(err)
	}
	env.Do(t, "instance.start", map[string]string{"name": second.Name}, nil)
	phaseOf(t, env, second.Name, spec.PhaseFailed, "no 160MiB in one piece left in the host's pool of 384MiB (126MiB free)", soon)
	undone(t, env, second.Name)
	if st := phaseOf(t, env, first.Name, spec.PhaseRunning, "", soon); st.Restarts != 0 {
		t.Errorf("the other instance was restarted %d times", st.Restarts)
	}
	if err := env.Operator.Stop(t.Context(), first.Name, 0); err != nil {
		t.Fatal(err)
	}
	if err := env.Operator.Start(t.Context(), second.Name); err != nil {
		t.Fatal("start in the memory that was given back:", err)
	}
	if err := env.Operator.Stop(t.Context(), second.Name, time.Second); err != nil {
		t.Fatal(err)
	}
}
