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

// TestOverlays runs two instances from one disk that neither changes: each boots from an
// overlay of it, writes what the other does not see, and finds it again after the
// vcard was killed.
func TestOverlays(t *testing.T) {
	t.Parallel()
	env := vm.StartLoopback(t, vm.Options{Pool: 512 * spec.MiB})
	const size = 64 * spec.MiB
	before := cardSum(t, env, spec.VolumeFile, rig.DemoVolume, size)
	names := []string{"left", "right"}
	consoles := map[string]*vm.Console{}
	for _, name := range names {
		env.Create(t, small(name, spec.Volume{Name: name + "-root", Kind: spec.VolumeOverlay, Base: rig.DemoVolume, Queues: 2}))
		env.Do(t, "instance.start", map[string]string{"name": name}, nil)
	}
	for _, name := range names {
		phaseOf(t, env, name, spec.PhaseRunning, "", soon)
		consoles[name] = env.Follow(t, name)
	}
	for name, c := range consoles {
		c.AwaitLine(t, "DAVIT-PROOF nonce=00 end", bootLimit)
		c.Shell(t, "true", 0, soon)
		settled(t, env, name)
	}
	t.Run("base in use", func(t *testing.T) { refuseBase(t, env, "instance ") })
	t.Run("own data", func(t *testing.T) { ownDisks(t, consoles) })
	sums := map[string]string{}
	for name, c := range consoles {
		c.Shell(t, "dd if=/dev/urandom of=/var/data bs=65536 count=32 && sync", 0, bootLimit)
		sums[name] = fileSum(t, c)
	}
	if sums["left"] == sums["right"] {
		t.Error("two overlays, one content")
	}

	env.KillVcard(t)
	for name, c := range consoles {
		settled(t, env, name)
		vm.Eventually(t, soon, func() error { return c.Connected() })
		c.Shell(t, "echo 3 > /proc/sys/vm/drop_caches", 0, soon)
		if got := fileSum(t, c); got != sums[name] {
			t.Errorf("after a vcard was killed %s reads %s, it wrote %s", name, got, sums[name])
		}
	}
	for _, name := range names {
		if err := env.Operator.Stop(t.Context(), name, time.Minute); err != nil {
			t.Fatal(err)
		}
	}
	if got := cardSum(t, env, spec.VolumeFile, rig.DemoVolume, size); got != before {
		t.Errorf("the base was %s and is %s", before, got)
	}
	shown(t, env, size)

	// Without the instances there are still their overlays.
	for _, name := range names {
		env.Do(t, "instance.delete", map[string]string{"name": name}, nil)
	}
	t.Run("base of overlays", func(t *testing.T) { refuseBase(t, env, "left-root, right-root") })
	env.Do(t, "volume.delete", map[string]any{"kind": spec.VolumeOverlay, "name": "right-root"}, nil)
	t.Run("changed base", func(t *testing.T) { changedBase(t, env) })
}

// fileSum is the digest of what the guest wrote last.
func fileSum(t *testing.T, c *vm.Console) string {
	t.Helper()
	sum := sumRE.FindString(c.Shell(t, "sha256sum /var/data", 0, bootLimit))
	if sum == "" {
		t.Fatal("no digest")
	}
	return sum
}

// shown: the card says over what an overlay lies, and what it takes.
func shown(t *testing.T, env *vm.LoopbackEnv, size spec.Bytes) {
	t.Helper()
	var v spec.VolumeStatus
	env.Do(t, "volume.show", map[string]any{"kind": spec.VolumeOverlay, "name": "left-root"}, &v)
	if v.Kind != spec.VolumeOverlay || v.Base != rig.DemoVolume || v.Size != size || v.Allocated < 2*spec.MiB || v.Allocated > size/2 {
		t.Errorf("got %+v", v)
	}
	refused(t, env, "volume.digest", map[string]any{"kind": spec.VolumeOverlay, "name": "left-root", "offset": 0, "length": 512}, "an overlay has none")
}

// refuseBase: what lies below overlays is neither written nor deleted.
func refuseBase(t *testing.T, env *vm.LoopbackEnv, who string) {
	want := "volume " + rig.DemoVolume + " is the base of overlay "
	text, err := spec.EncodeYAML(small("thief", root()))
	if err != nil {
		t.Fatal(err)
	}
	refused(t, env, "instance.create", map[string]string{"yaml": string(text)}, want, who)
	refused(t, env, "volume.delete", map[string]any{"kind": spec.VolumeFile, "name": rig.DemoVolume}, want, who)
}

func refused(t *testing.T, env *vm.LoopbackEnv, op string, args any, want ...string) {
	t.Helper()
	err := env.Operator.Do(t.Context(), op, args, nil)
	if !errors.Is(err, &mailbox.Refusal{Code: mailbox.Failed}) {
		t.Errorf("%s: %v", op, err)
		return
	}
	for _, w := range want {
		if !strings.Contains(err.Error(), w) {
			t.Errorf("%s: error %q does not name %q", op, err, w)
		}
	}
}

// changedBase: whoever writes the base behind the card's back has no start with what
// is left of the overlay.
func changedBase(t *testing.T, env *vm.LoopbackEnv) {
	path := filepath.Join(env.Loopback.StateDir(), "volumes", rig.DemoVolume+".img")
	f, err := os.OpenFile(path, os.O_WRONLY, 0)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := f.WriteAt([]byte("changed"), 512); err != nil {
		t.Fatal(err)
	}
	if err := f.Close(); err != nil {
		t.Fatal(err)
	}
	env.Create(t, small("left", spec.Volume{Name: "left-root", Kind: spec.VolumeOverlay, Base: rig.DemoVolume}))
	env.Do(t, "instance.start", map[string]string{"name": "left"}, nil)
	phaseOf(t, env, "left", spec.PhaseFailed, "was changed since", soon)
	undone(t, env, "left")
}
