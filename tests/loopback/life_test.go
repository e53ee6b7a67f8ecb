// SPDX-License-Identifier: Apache-2.0

package loopback

import (
	"errors"
	"fmt"
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

// checkFileSystem checks the file system that begins at an offset of a stopped
// instance's volume: clean and without error, though the VMM never wrote to it
// itself.
func checkFileSystem(t *testing.T, env *vm.LoopbackEnv, volume string, offset spec.Bytes) {
	t.Helper()
	path := filepath.Join(env.Loopback.StateDir(), "volumes", volume+".img")
	text, err := vm.Packages(t).Command("e2fsck", "-f", "-n", fmt.Sprintf("%s?offset=%d", path, uint64(offset))).CombinedOutput()
	if err != nil {
		t.Errorf("e2fsck of %s: %v\n%s", volume, err, text)
	}
	if strings.Contains(string(text), "recovering journal") {
		t.Errorf("%s was not unmounted:\n%s", volume, text)
	}
}

// offloaded checks that the host's processes have neither the volume nor
// anything else of the card open, and no device of their own but the front end
// of the card's.
func offloaded(t *testing.T, env *vm.LoopbackEnv) {
	vmm := env.VMM(t, rig.DemoName)
	for _, pid := range []int{vmm, env.Server.Host.PID()} {
		links, err := filepath.Glob(fmt.Sprintf("/proc/%d/fd/*", pid))
		if err != nil || len(links) == 0 {
			t.Fatalf("files of process %d: %q, %v", pid, links, err)
		}
		for _, l := range links {
			if target, err := os.Readlink(l); err == nil && strings.HasPrefix(target, env.Loopback.StateDir()) {
				t.Errorf("process %d of the host has %s open", pid, target)
			}
		}
	}
	text, err := os.ReadFile(fmt.Sprintf("/proc/%d/cmdline", vmm))
	if err != nil {
		t.Fatal(err)
	}
	var devices []string
	for _, arg := range strings.Split(string(text), "\x00") {
		switch {
		case strings.HasPrefix(arg, "vhost-user-blk-pci,"):
			devices = append(devices, arg)
		case arg == "-drive" || arg == "-blockdev" || arg == "-netdev" || arg == "-hda":
			t.Errorf("the VMM is started with %s", arg)
		}
	}
	if len(devices) != 1 {
		t.Errorf("the VMM has devices %q, want one front end", devices)
	}
}

// TestLife takes an instance through its life: its data verified on the card's
// volume, the guest's own power-off, a start on the same disk, a stop in the
// middle of a start, a forced stop, and deletion.
func TestLife(t *testing.T) {
	t.Parallel()
	env := vm.StartLoopback(t, vm.Options{Demonstrate: true})
	console := env.Follow(t, rig.DemoName)
	console.AwaitLine(t, "DAVIT-GUEST root mounted from the card's disk, boot 1", bootLimit)
	first := settled(t, env, rig.DemoName)
	vm.Eventually(t, soon, func() error { // the card asks for counters every two seconds
		if q := env.Show(t, rig.DemoName).Devices[0].Queues; len(q) != 1 || q[0].Writes == 0 || q[0].Reads == 0 || q[0].Flushes == 0 || q[0].Errors != 0 {
			return fmt.Errorf("the disk's counters after a boot: %+v", q)
		}
		return nil
	})

	t.Run("no process of the host has a disk", func(t *testing.T) { offloaded(t, env) })
	t.Run("a start of what runs changes nothing", func(t *testing.T) {
		env.Do(t, "instance.start", map[string]string{"name": rig.DemoName}, nil)
		if st := settled(t, env, rig.DemoName); st.Generation != first.Generation {
			t.Errorf("generation %s became %s", first.Generation, st.Generation)
		}
	})
	t.Run("it cannot be deleted", func(t *testing.T) {
		err := env.Operator.Do(t.Context(), "instance.delete", map[string]string{"name": rig.DemoName}, nil)
		if !errors.Is(err, &mailbox.Refusal{Code: mailbox.Failed}) || !strings.Contains(err.Error(), "stop it first") {
			t.Errorf("got %v", err)
		}
		settled(t, env, rig.DemoName)
	})
	t.Run("graceful stop", func(t *testing.T) {
		if err := env.Operator.Stop(t.Context(), rig.DemoName, time.Minute); err != nil {
			t.Fatal(err)
		}
		console.AwaitLine(t, "power button: powering off", soon)
		st := env.Show(t, rig.DemoName)
		if st.Desired != spec.PhaseStopped || !strings.HasPrefix(st.Reason, "stopped as asked") || strings.Contains(st.Reason, "kill") {
			t.Errorf("stopped: desired %s, reason %q", st.Desired, st.Reason)
		}
		undone(t, env, rig.DemoName)
		checkFileSystem(t, env, rig.DemoVolume, 0)
	})
	t.Run("stop during a start", func(t *testing.T) {
		env.Do(t, "instance.start", map[string]string{"name": rig.DemoName}, nil)
		if err := env.Operator.Stop(t.Context(), rig.DemoName, 0); err != nil {
			t.Fatal(err)
		}
		undone(t, env, rig.DemoName)
	})
	t.Run("start on the same disk", func(t *testing.T) {
		if err := env.Operator.Start(t.Context(), rig.DemoName); err != nil {
			t.Fatal(err)
		}
		console.AwaitLine(t, "DAVIT-GUEST root mounted from the card's disk, boot 2", bootLimit)
		if st := settled(t, env, rig.DemoName); st.Generation == first.Generation {
			t.Error("two starts have the same generation")
		}
	})
	t.Run("forced stop and deletion", func(t *testing.T) {
		pid := env.VMM(t, rig.DemoName)
		if err := env.Operator.Stop(t.Context(), rig.DemoName, 0); err != nil {
			t.Fatal(err)
		}
		if vm.Alive(pid) {
			t.Errorf("VMM %d runs on", pid)
		}
		undone(t, env, rig.DemoName)
		env.Do(t, "instance.delete", map[string]string{"name": rig.DemoName}, nil)
		_, err := env.Operator.Show(t.Context(), rig.DemoName)
		if !errors.Is(err, &mailbox.Refusal{Code: mailbox.Failed}) || !strings.Contains(err.Error(), "no such instance") {
			t.Errorf("show of a deleted instance: %v", err)
		}
	})
}
