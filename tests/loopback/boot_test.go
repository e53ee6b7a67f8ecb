// SPDX-License-Identifier: Apache-2.0

package loopback

import (
	"fmt"
	"strings"
	"testing"
	"time"

	"github.com/davit-dpu/davit/firmware/spec"
	"github.com/davit-dpu/davit/tests/vm"
	"github.com/davit-dpu/davit/tools/rig"
)

// TestFirmware has UEFI firmware boot an instance from nothing but its disk,
// and kills the vcard while the firmware reads, while the system writes, and at
// random moments of a second boot.
func TestFirmware(t *testing.T) {
	t.Parallel()
	random := seeded(t)
	demo := rig.Demo{Disk: true, Load: true}
	env := vm.StartLoopback(t, vm.Options{Demo: demo})
	steps := env.Operator.Demonstrate(demo)
	env.Run(t, steps[:1])
	k := &killer{env: env, console: env.Follow(t, rig.DemoName), random: random}
	vmm := env.VMM(t, rig.DemoName)

	st := phaseOf(t, env, rig.DemoName, spec.PhaseRunning, "1 of 1 disks attached", soon)
	if len(st.Devices) != 1 || st.Devices[0].Phase != spec.PhaseStarting {
		t.Errorf("disks before the firmware has come to them: %+v", st.Devices)
	}
	settled(t, env, rig.DemoName) // the firmware's driver runs the queue, and has yet to read the image
	k.nextVcard(t)
	settled(t, env, rig.DemoName)
	env.Run(t, steps[1:])
	if now := env.VMM(t, rig.DemoName); now != vmm {
		t.Errorf("VMM %d became %d", vmm, now)
	}
	vm.Eventually(t, soon, func() error { // the card asks for counters every two seconds
		if d := env.Show(t, rig.DemoName).Devices; len(d) != 1 || len(d[0].Queues) != 1 || d[0].Queues[0].ReadBytes < 8<<20 || d[0].Queues[0].Errors != 0 {
			return fmt.Errorf("the firmware has not read its image from the vcard that came after: %+v", d)
		}
		return nil
	})

	t.Run("vcard under load", k.vcard)
	t.Run("graceful stop", func(t *testing.T) { stopInOrder(t, k) })
	t.Run("vcard during a boot", func(t *testing.T) { killedBoot(t, k) })
	t.Run("graceful stop again", func(t *testing.T) { stopInOrder(t, k) })
	t.Run("no system", func(t *testing.T) { noSystem(t, env) })
}

// stopInOrder: the system that firmware started hears the power button.
func stopInOrder(t *testing.T, k *killer) {
	if err := k.env.Operator.Stop(t.Context(), rig.DemoName, time.Minute); err != nil {
		t.Fatal(err)
	}
	if st := k.env.Show(t, rig.DemoName); !strings.HasPrefix(st.Reason, "stopped as asked") || strings.Contains(st.Reason, "kill") {
		t.Errorf("stopped: %s", st.Reason)
	}
	undone(t, k.env, rig.DemoName)
	checkFileSystem(t, k.env, rig.DemoVolume, rig.DemoRootOffset)
}

// killedBoot kills the vcard some times between power-on and the system's load.
func killedBoot(t *testing.T, k *killer) {
	if err := k.env.Operator.Start(t.Context(), rig.DemoName); err != nil {
		t.Fatal(err)
	}
	vmm, boot := k.env.VMM(t, rig.DemoName), k.console.Far().Boot
	for range 4 {
		moment(k.random, 3*time.Second)
		k.nextVcard(t)
		phaseOf(t, k.env, rig.DemoName, spec.PhaseRunning, "", soon)
	}
	if far := k.console.AwaitBoot(t, boot, bootLimit); far.Boot != boot+1 {
		t.Errorf("the guest counts boot %d after boot %d", far.Boot, boot)
	}
	if now := k.env.VMM(t, rig.DemoName); now != vmm {
		t.Errorf("VMM %d became %d", vmm, now)
	}
}

// noSystem: firmware that finds nothing on the first disk looks at no other one.
// The instance runs, but nobody in it hears the power button: it is killed when
// its time is over, as reported.
func noSystem(t *testing.T, env *vm.LoopbackEnv) {
	env.Do(t, "instance.delete", map[string]string{"name": rig.DemoName}, nil) // its disk is taken
	in := small("blank", spec.Volume{Name: "blank", Kind: spec.VolumeMemory, Size: 8 * spec.MiB}, root())
	in.Boot = spec.Boot{Firmware: spec.FirmwareUEFI}
	env.Create(t, in)
	if err := env.Operator.Start(t.Context(), in.Name); err != nil {
		t.Fatal(err)
	}
	env.Follow(t, in.Name).AwaitLine(t, "BdsDxe: failed to load ", bootLimit)
	for _, d := range phaseOf(t, env, in.Name, spec.PhaseRunning, "2 of 2 disks attached", soon).Devices {
		if d.Name == rig.DemoVolume && d.Phase != spec.PhaseStarting {
			t.Errorf("the second disk is %s: %s", d.Phase, d.Reason)
		}
	}
	env.Do(t, "instance.stop", map[string]any{"name": in.Name, "graceSeconds": 2}, nil)
	phaseOf(t, env, in.Name, spec.PhaseStopping, "asked the guest to power down; killed after 2s", soon)
	phaseOf(t, env, in.Name, spec.PhaseStopped, "signal: killed, on the card's order", soon)
	undone(t, env, in.Name)
}
