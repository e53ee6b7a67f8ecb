// SPDX-License-Identifier: Apache-2.0

package loopback

import (
	"fmt"
	"os"
	"strings"
	"testing"
	"time"

	"github.com/davit-dpu/davit/firmware/spec"
	"github.com/davit-dpu/davit/tests/vm"
	"github.com/davit-dpu/davit/tools/rig"
)

func TestMain(m *testing.M) { os.Exit(vm.Main(m)) }

// bootLimit bounds the boot of an instance without KVM on a busy machine.
const bootLimit = 90 * time.Second

// soon bounds what takes a moment.
const soon = 20 * time.Second

// phaseOf waits until an instance is in a phase for a reason that holds a text.
func phaseOf(t *testing.T, env *vm.LoopbackEnv, name string, want spec.Phase, reason string, limit time.Duration) *spec.InstanceStatus {
	t.Helper()
	var st *spec.InstanceStatus
	vm.Eventually(t, limit, func() error {
		var err error
		if st, err = env.Operator.Show(t.Context(), name); err != nil {
			return err
		}
		if st.Phase != want || !strings.Contains(st.Reason, reason) {
			return fmt.Errorf("instance %s is %s (%s), want %s (…%s…)", name, st.Phase, st.Reason, want, reason)
		}
		return nil
	})
	if st.Since.IsZero() || st.Since.After(time.Now().Add(time.Second)) {
		t.Errorf("instance %s is %s since %v", name, st.Phase, st.Since)
	}
	return st
}

// settled waits until the card reports itself ready, with its host, and the
// instance running with all its disks, each used by the guest's driver.
func settled(t *testing.T, env *vm.LoopbackEnv, name string) *spec.InstanceStatus {
	t.Helper()
	hostPhase(t, env, spec.PhaseReady)
	var st *spec.InstanceStatus
	vm.Eventually(t, bootLimit, func() error {
		st = phaseOf(t, env, name, spec.PhaseRunning, "", bootLimit)
		for _, d := range st.Devices {
			if d.Phase != spec.PhaseReady {
				return fmt.Errorf("disk %s is %s: %s", d.Name, d.Phase, d.Reason)
			}
		}
		return nil
	})
	if len(st.Devices) != len(st.Spec.Volumes) {
		t.Errorf("a running instance with %d of %d disks: %+v", len(st.Devices), len(st.Spec.Volumes), st.Devices)
	}
	return st
}

// hostPhase waits until the card sees its host in a phase.
func hostPhase(t *testing.T, env *vm.LoopbackEnv, want spec.Phase) spec.Component {
	t.Helper()
	var host spec.Component
	vm.Eventually(t, soon, func() error {
		var st spec.CardStatus
		if err := env.Operator.Ask(t.Context(), "status", nil, &st); err != nil {
			return err
		}
		host = vm.Component(t, &st, "host")
		if host.Phase != want {
			return fmt.Errorf("the card sees its host as %s: %s", host.Phase, host.Reason)
		}
		return nil
	})
	return host
}

// undone checks that nothing of a start is left: no VMM, no device, no memory.
func undone(t *testing.T, env *vm.LoopbackEnv, name string) {
	t.Helper()
	if st := env.Show(t, name); st.Generation != "" || st.PoolOffset != 0 {
		t.Errorf("a start of %s left generation %q, memory at %s", name, st.Generation, st.PoolOffset)
	}
	vm.Eventually(t, soon, func() error { // devices are as the vcard was last asked
		if st := env.Show(t, name); len(st.Devices) != 0 {
			return fmt.Errorf("a start of %s left devices %+v", name, st.Devices)
		}
		return nil
	})
	if pid := env.VMM(t, name); pid != 0 {
		t.Errorf("a start of %s left VMM %d", name, pid)
	}
}

// root is the demonstration's disk: with another one its guest powers off.
func root() spec.Volume { return spec.Volume{Name: rig.DemoVolume, Kind: spec.VolumeFile} }

// small is an instance that boots the demonstration's kernel with less memory.
func small(name string, volumes ...spec.Volume) spec.Instance {
	in := rig.Demo{}.Instance("00")
	in.Name, in.Memory, in.Restart, in.Volumes = name, 160*spec.MiB, spec.RestartNever, volumes
	return in
}
