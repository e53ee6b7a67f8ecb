// SPDX-License-Identifier: Apache-2.0

package loopback

import (
	"fmt"
	"strconv"
	"testing"
	"time"

	"github.com/davit-dpu/davit/firmware/spec"
	"github.com/davit-dpu/davit/tests/vm"
)

// TestLimits holds a volume of a running instance to a rate, changes that by signed
// commands, and kills the vcard: the guest is never faster.
func TestLimits(t *testing.T) {
	t.Parallel()
	env := vm.StartLoopback(t, vm.Options{})
	env.Do(t, "volume.create", map[string]any{"name": "slow", "size": 64 * spec.MiB}, nil)
	first := &spec.Limits{Bandwidth: 2 * spec.MiB, Burst: spec.MinBurst}
	env.Create(t, small("web", root(), spec.Volume{Name: "slow", Kind: spec.VolumeFile, Limits: first}))
	env.Do(t, "instance.start", map[string]string{"name": "web"}, nil)
	phaseOf(t, env, "web", spec.PhaseRunning, "", soon)
	console := env.Follow(t, "web")
	console.AwaitLine(t, "DAVIT-PROOF nonce=00 end", bootLimit)
	settled(t, env, "web")
	limitIs(t, env, first)
	held(t, env, console, 8*spec.MiB, 2*spec.MiB)

	second := &spec.Limits{Bandwidth: 4 * spec.MiB, Burst: spec.MinBurst}
	env.Do(t, "volume.limit", map[string]any{"instance": "web", "volume": "slow", "limits": second}, nil)
	limitIs(t, env, second)
	held(t, env, console, 16*spec.MiB, 4*spec.MiB)

	env.KillVcard(t)
	settled(t, env, "web")
	vm.Eventually(t, soon, func() error { return console.Connected() })
	limitIs(t, env, second)
	held(t, env, console, 16*spec.MiB, 4*spec.MiB)

	env.Do(t, "volume.limit", map[string]any{"instance": "web", "volume": "slow"}, nil)
	limitIs(t, env, nil)
	err := env.Operator.Do(t.Context(), "volume.delete", map[string]any{"kind": spec.VolumeFile, "name": "slow"}, nil)
	if err == nil {
		t.Error("a volume in use was deleted")
	}
	if err := env.Operator.Stop(t.Context(), "web", 0); err != nil {
		t.Fatal(err)
	}
	env.Do(t, "instance.delete", map[string]string{"name": "web"}, nil)
	env.Do(t, "volume.delete", map[string]any{"kind": spec.VolumeFile, "name": "slow"}, nil)
}

// slow is the volume as the card reports it.
func slow(t *testing.T, env *vm.LoopbackEnv) spec.VolumeUse {
	t.Helper()
	var v spec.VolumeStatus
	env.Do(t, "volume.show", map[string]any{"kind": spec.VolumeFile, "name": "slow"}, &v)
	if len(v.Uses) != 1 {
		t.Fatalf("volume slow: %+v", v)
	}
	return v.Uses[0]
}

// limitIs waits until limits are wanted, and reported by the device.
func limitIs(t *testing.T, env *vm.LoopbackEnv, want *spec.Limits) {
	t.Helper()
	vm.Eventually(t, soon, func() error {
		if u := slow(t, env); !spec.SameLimits(u.Limits, want) || u.Device == nil || !spec.SameLimits(u.Device.Limits, want) {
			return fmt.Errorf("limits %v, want %v; device %+v", u.Limits, want, u.Device)
		}
		return nil
	})
}

// held has the guest write so much past its cache: it is not faster than the rate,
// less what a full bucket and one request are worth, and the card counts what waited.
func held(t *testing.T, env *vm.LoopbackEnv, c *vm.Console, n, rate spec.Bytes) {
	t.Helper()
	before := waited(slow(t, env))
	start := time.Now()
	c.Shell(t, "dd if=/dev/zero of=/dev/vdb bs=65536 count="+strconv.Itoa(int(n/(64*spec.KiB)))+" oflag=direct", 0, bootLimit)
	took, least := time.Since(start), time.Duration(n-spec.MiB)*time.Second/time.Duration(rate)
	if took < least {
		t.Errorf("%s were written in %v; at %s a second it takes %v", n, took, rate, least)
	}
	t.Logf("%s in %v at %s a second", n, took, rate)
	vm.Eventually(t, soon, func() error { // the card asks for counters every two seconds
		if now := waited(slow(t, env)); now <= before {
			return fmt.Errorf("%d requests have waited, %d before", now, before)
		}
		return nil
	})
}

func waited(u spec.VolumeUse) uint64 {
	var n uint64
	if u.Device != nil {
		for _, q := range u.Device.Queues {
			n += q.Waited
		}
	}
	return n
}
