// SPDX-License-Identifier: Apache-2.0

package loopback

import (
	"encoding/hex"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"testing"
	"time"

	"github.com/davit-dpu/davit/firmware/mailbox"
	"github.com/davit-dpu/davit/firmware/spec"
	"github.com/davit-dpu/davit/tests/vm"
	"github.com/davit-dpu/davit/tools/rig"
)

// twins are two instances with a root disk each, made from the demonstration's.
func twins(t *testing.T, env *vm.LoopbackEnv) (left, right spec.Instance) {
	t.Helper()
	volumes := filepath.Join(env.Loopback.StateDir(), "volumes")
	root, err := os.ReadFile(filepath.Join(volumes, rig.DemoVolume+".img"))
	if err != nil {
		t.Fatal(err)
	}
	for _, name := range []string{"left-root", "right-root"} {
		if err := os.WriteFile(filepath.Join(volumes, name+".img"), root, 0o600); err != nil {
			t.Fatal(err)
		}
	}
	disk := func(name string, queues int) spec.Volume {
		return spec.Volume{Name: name, Kind: spec.VolumeFile, Size: 64 * spec.MiB, Queues: queues}
	}
	left = small("left", disk("left-root", 2),
		spec.Volume{Name: "swift", Kind: spec.VolumeMemory, Size: 8 * spec.MiB, Queues: 2, Serial: "SWIFT-1"},
		spec.Volume{Name: rig.DemoVolume, Kind: spec.VolumeFile, ReadOnly: true})
	left.VCPUs = 2
	right = small("right", disk("right-root", 1), spec.Volume{Name: rig.DemoVolume, Kind: spec.VolumeFile, ReadOnly: true})
	return left, right
}

// TestVolumes runs two instances at once, each with disks of its own and one
// that both only read: several queues, memory, read-only.
func TestVolumes(t *testing.T) {
	t.Parallel()
	env := vm.StartLoopback(t, vm.Options{Pool: 512 * spec.MiB})
	left, right := twins(t, env)
	env.Create(t, left)
	t.Run("shared for writing", func(t *testing.T) { refuseShared(t, env) })
	env.Create(t, right)
	for _, in := range []spec.Instance{left, right} {
		env.Do(t, "instance.start", map[string]string{"name": in.Name}, nil)
	}
	consoles := map[string]*vm.Console{}
	for _, in := range []spec.Instance{left, right} {
		phaseOf(t, env, in.Name, spec.PhaseRunning, "", soon)
		consoles[in.Name] = env.Follow(t, in.Name)
	}
	for name, c := range consoles {
		c.AwaitLine(t, "DAVIT-PROOF nonce=00 end", bootLimit)
		c.Shell(t, "true", 0, soon)
		settled(t, env, name)
	}
	a, b := env.Show(t, left.Name), env.Show(t, right.Name)
	if a.PoolOffset < b.PoolOffset+b.Spec.Memory && b.PoolOffset < a.PoolOffset+a.Spec.Memory {
		t.Errorf("two instances share memory: %s and %s", a.PoolOffset, b.PoolOffset)
	}
	t.Run("queues", func(t *testing.T) { queues(t, env, consoles[left.Name]) })
	t.Run("memory", func(t *testing.T) { memoryVolume(t, env, consoles[left.Name]) })
	t.Run("read-only", func(t *testing.T) { readOnly(t, env, consoles[left.Name], "vdc", consoles[right.Name], "vdb") })
	t.Run("own disks", func(t *testing.T) {
		ownDisks(t, consoles)
		sum := func(name string) string { return cardSum(t, env, spec.VolumeFile, name+"-root", 64*spec.MiB) }
		if sum("left") == sum("right") {
			t.Error("two disks, one content")
		}
	})
	for _, in := range []spec.Instance{left, right} {
		if err := env.Operator.Stop(t.Context(), in.Name, time.Minute); err != nil {
			t.Error(err)
		}
		checkFileSystem(t, env, in.Name+"-root", 0)
	}
}

// refuseShared: a disk of one instance is no other's, and no reader's either.
func refuseShared(t *testing.T, env *vm.LoopbackEnv) {
	for _, v := range []spec.Volume{
		{Name: "left-root", Kind: spec.VolumeFile},
		{Name: "left-root", Kind: spec.VolumeFile, ReadOnly: true},
		{Name: rig.DemoVolume, Kind: spec.VolumeFile},
	} {
		text, err := spec.EncodeYAML(small("thief", v))
		if err != nil {
			t.Fatal(err)
		}
		err = env.Operator.Do(t.Context(), "instance.create", map[string]string{"yaml": string(text)}, nil)
		if !errors.Is(err, &mailbox.Refusal{Code: mailbox.Failed}) || !strings.Contains(err.Error(), "volume "+v.Name+" belongs to instance left") {
			t.Errorf("volume %+v of another: %v", v, err)
		}
	}
}

// queues: the guest uses all that its spec gives it.
func queues(t *testing.T, env *vm.LoopbackEnv, c *vm.Console) {
	for _, disk := range []string{"vda", "vdb"} {
		c.Shell(t, "test -d /sys/block/"+disk+"/mq/1", 0, soon)
	}
	// One reader on each processor keeps both queues busy.
	c.Shell(t, "dd if=/dev/vda of=/dev/null bs=4096 count=2000 iflag=direct & dd if=/dev/vda of=/dev/null bs=4096 count=2000 skip=4000 iflag=direct; wait", 0, bootLimit)
	vm.Eventually(t, soon, func() error {
		for _, d := range env.Show(t, "left").Devices {
			if d.Name == "left-root" && len(d.Queues) == 2 && d.Queues[0].Reads > 0 && d.Queues[1].Reads > 0 {
				return nil
			}
		}
		return fmt.Errorf("not both queues were used: %+v", env.Show(t, "left").Devices)
	})
}

var sumRE = regexp.MustCompile(`\b[0-9a-f]{64}\b`)

// guestSum is SHA-256 of the beginning of a disk, as the guest reads it.
func guestSum(t *testing.T, c *vm.Console, disk string, size spec.Bytes) string {
	t.Helper()
	out := c.Shell(t, fmt.Sprintf("echo 3 > /proc/sys/vm/drop_caches; dd if=/dev/%s bs=65536 count=%d | sha256sum", disk, size/(64*spec.KiB)), 0, bootLimit)
	sum := sumRE.FindString(out)
	if sum == "" {
		t.Fatalf("no digest in %q", out)
	}
	return sum
}

// cardSum is the same as the card's storage has it.
func cardSum(t *testing.T, env *vm.LoopbackEnv, kind spec.VolumeKind, name string, size spec.Bytes) string {
	t.Helper()
	var sum []byte
	env.Do(t, "volume.digest", map[string]any{"kind": kind, "name": name, "offset": spec.Bytes(0), "length": size}, &sum)
	return hex.EncodeToString(sum)
}

// memoryVolume: what the guest wrote is in the card's memory, whole, and there
// again after a vcard was killed.
func memoryVolume(t *testing.T, env *vm.LoopbackEnv, c *vm.Console) {
	const size = 4 * spec.MiB
	if got := c.Shell(t, "cat /sys/block/vdb/serial /sys/block/vdb/size", 0, soon); !strings.Contains(got, "SWIFT-1") || !strings.Contains(got, "16384") {
		t.Errorf("serial and sectors: %q", got)
	}
	empty := cardSum(t, env, spec.VolumeMemory, "swift", size)
	if got := guestSum(t, c, "vdb", size); got != empty {
		t.Errorf("new: the guest reads %s, the card holds %s", got, empty)
	}
	c.Shell(t, "dd if=/dev/urandom of=/dev/vdb bs=65536 count=64 && sync", 0, bootLimit)
	card := cardSum(t, env, spec.VolumeMemory, "swift", size)
	if got := guestSum(t, c, "vdb", size); got != card || card == empty {
		t.Errorf("written: the guest reads %s, the card holds %s, empty is %s", got, card, empty)
	}
	env.KillVcard(t)
	settled(t, env, "left")
	vm.Eventually(t, soon, func() error { return c.Connected() })
	if got := guestSum(t, c, "vdb", size); got != card {
		t.Errorf("after a vcard was killed the guest reads %s, the card holds %s", got, card)
	}
}

// readOnly: both read the shared disk, neither writes it.
func readOnly(t *testing.T, env *vm.LoopbackEnv, left *vm.Console, leftDisk string, right *vm.Console, rightDisk string) {
	const size = 2 * spec.MiB
	card := cardSum(t, env, spec.VolumeFile, rig.DemoVolume, size)
	for c, disk := range map[*vm.Console]string{left: leftDisk, right: rightDisk} {
		if got := c.Shell(t, "cat /sys/block/"+disk+"/ro", 0, soon); !strings.Contains(got, "1") {
			t.Errorf("%s is offered for writing: %q", disk, got)
		}
		c.Shell(t, "dd if=/dev/zero of=/dev/"+disk+" bs=4096 count=1 conv=notrunc", 1, soon)
		if got := guestSum(t, c, disk, size); got != card {
			t.Errorf("%s: the guest reads %s, the card holds %s", disk, got, card)
		}
	}
}

// ownDisks: each writes what the other does not see.
func ownDisks(t *testing.T, consoles map[string]*vm.Console) {
	for name, c := range consoles {
		c.Shell(t, "echo I am "+name+" > /var/me && sync", 0, soon)
	}
	for name, c := range consoles {
		c.Shell(t, "echo 3 > /proc/sys/vm/drop_caches", 0, soon)
		if got := c.Shell(t, "cat /var/me", 0, soon); !strings.Contains(got, "I am "+name) {
			t.Errorf("%s reads %q", name, got)
		}
	}
}
