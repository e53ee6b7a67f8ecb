// SPDX-License-Identifier: Apache-2.0

package cli

import (
	"crypto/sha256"
	"encoding/hex"
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

func volumes(t *testing.T, env *vm.LoopbackEnv, c *cli) {
	contains(t, c.ok(t, "volume", "list"), "NAME", rig.DemoVolume, "file", "64MiB")
	var list []struct {
		Name string
		Kind spec.VolumeKind
		Size spec.Bytes
	}
	c.json(t, &list, "volume", "list")
	if len(list) != 1 || list[0].Name != rig.DemoVolume || list[0].Size != 64*spec.MiB {
		t.Errorf("volume list --json: %+v", list)
	}
	content, err := os.ReadFile(filepath.Join(env.Loopback.StateDir(), "volumes", rig.DemoVolume+".img"))
	if err != nil {
		t.Fatal(err)
	}
	want := sha256.Sum256(content[4096 : 4096+128<<10])
	if got := c.ok(t, "volume", "digest", rig.DemoVolume, "--offset", "4KiB", "--length", "128KiB"); got != hex.EncodeToString(want[:])+"\n" {
		t.Errorf("volume digest: %s, want %x", got, want)
	}
	c.fails(t, 1, []string{rig.DemoVolume, "64MiB"}, "--card", c.card, "volume", "digest", rig.DemoVolume, "--offset", "64MiB")
	c.fails(t, 1, []string{"nonesuch"}, "--card", c.card, "volume", "digest", "nonesuch")
	volumeLife(t, c)
	c.fails(t, 2, []string{"--length", "4KB"}, "--card", c.card, "volume", "digest", rig.DemoVolume, "--length", "4KB")
}

// volumeLife makes a volume, gives it to an instance, limits it there, and deletes it.
func volumeLife(t *testing.T, c *cli) {
	contains(t, c.ok(t, "volume", "create", "data", "--size", "8MiB"), "volume data of 8MiB is created")
	c.fails(t, 1, []string{"data", "exists"}, "--card", c.card, "volume", "create", "data", "--size", "8MiB")
	c.fails(t, 1, []string{"multiple of 512"}, "--card", c.card, "volume", "create", "odd", "--size", "1000")
	c.fails(t, 2, []string{"--size"}, "--card", c.card, "volume", "create", "odd")
	contains(t, c.ok(t, "volume", "show", "data"), "data, kind file", "8MiB", "no instance")
	c.fails(t, 1, []string{"nonesuch", "no such volume"}, "--card", c.card, "volume", "show", "nonesuch")

	spare := strings.NewReplacer("name: web", "name: spare", "demo-root, kind: file", "data, kind: file, limits: {iops: 50}").Replace(webYAML)
	c.ok(t, "instance", "create", c.write(t, "spare.yaml", spare))
	contains(t, c.ok(t, "volume", "list"), "data", "spare")
	contains(t, c.ok(t, "volume", "show", "data"), "instance spare, which reads and writes; limits: 50 iops, burst 100ms")
	contains(t, c.ok(t, "volume", "limit", "spare", "data", "--bandwidth", "1MiB", "--burst", "2s"), "1MiB/s, burst 2s")
	var v spec.VolumeStatus
	c.json(t, &v, "volume", "show", "data")
	if want := (spec.Limits{Bandwidth: spec.MiB, Burst: spec.Duration(2 * time.Second)}); len(v.Uses) != 1 || !spec.SameLimits(v.Uses[0].Limits, &want) {
		t.Errorf("volume show --json: %+v", v)
	}
	contains(t, c.ok(t, "volume", "limit", "spare", "data", "--none"), "none")
	c.fails(t, 2, []string{"neither iops", "--none"}, "--card", c.card, "volume", "limit", "spare", "data")
	c.fails(t, 2, []string{"--none"}, "--card", c.card, "volume", "limit", "spare", "data", "--none", "--iops", "5")
	c.fails(t, 2, []string{"bandwidth"}, "--card", c.card, "volume", "limit", "spare", "data", "--bandwidth", "1KiB")
	c.fails(t, 1, []string{"no volume nonesuch"}, "--card", c.card, "volume", "limit", "spare", "nonesuch", "--iops", "5")

	c.fails(t, 1, []string{"data", "belongs to instance spare"}, "--card", c.card, "volume", "delete", "data")
	c.ok(t, "instance", "delete", "spare")
	contains(t, c.ok(t, "volume", "delete", "data"), "volume data is deleted")
	c.fails(t, 1, []string{"data", "no such file"}, "--card", c.card, "volume", "delete", "data")
}

// receipt is what davit send prints.
type receipt struct {
	Card, Command, Text string
	Code                mailbox.Code
	AuditIndex          uint64
	Result              any
}

// offline signs commands without contact to the card, and sends them later.
func offline(t *testing.T, env *vm.LoopbackEnv, c *cli) {
	nonce := func() string {
		var ch struct{ Nonce []byte }
		c.json(t, &ch, "send", "--challenge")
		return hex.EncodeToString(ch.Nonce)
	}
	contains(t, c.ok(t, "send", "--challenge"), "nonce", "expires", "lifecycle", env.Operator.Contact.CardID)
	good := filepath.Join(c.dir, "good.cose")
	// Signing needs the key and the card's name, and no card.
	r := c.run(t, "", "sign", "volume.list", "--key", env.Operator.KeyFile, "--card-id", env.Operator.Contact.CardID, "--nonce", nonce(), "--reason", "a test", "--out", good)
	if r.code != 0 || !strings.Contains(r.out, good) {
		t.Fatalf("sign: exit code %d\n%s%s", r.code, r.out, r.err)
	}
	var done receipt
	c.json(t, &done, "send", good)
	if done.Code != mailbox.OK || done.Card != env.Operator.Contact.CardID || done.AuditIndex == 0 || done.Result == nil {
		t.Errorf("send: %+v", done)
	}
	c.fails(t, 1, []string{"replayed"}, "--card", c.card, "send", good)

	viaHost := filepath.Join(c.dir, "host.cose")
	c.ok(t, "sign", "volume.digest", "--nonce", nonce(), "--out", viaHost,
		"--args", `{"kind":"file","name":"demo-root","offset":0,"length":4096}`)
	contains(t, c.ok(t, "send", viaHost, "--via-host"), "code", "ok", "result")

	t.Run("keygen", func(t *testing.T) {
		key := filepath.Join(c.dir, "stranger.key")
		var made struct{ KeyID, Algorithm, Private, Public string }
		c.json(t, &made, "keygen", "--algorithm", "ES256", "--out", key)
		st, err := os.Stat(key)
		if err != nil || st.Mode().Perm() != 0o600 || len(made.KeyID) != 16 || made.Public != key+".pub" {
			t.Errorf("keygen: %+v, file %v, %v", made, st, err)
		}
		c.fails(t, 1, []string{"stranger.key", "exists"}, "keygen", "--out", key)
		c.fails(t, 2, []string{"RSA", "ES256"}, "keygen", "--algorithm", "RSA", "--out", key+"2")
		unknown := filepath.Join(c.dir, "unknown.cose")
		c.ok(t, "sign", "volume.list", "--key", key, "--nonce", nonce(), "--out", unknown)
		c.fails(t, 1, []string{"unknown-key"}, "--card", c.card, "send", unknown)
	})
	t.Run("bad commands", func(t *testing.T) {
		bad := c.write(t, "bad.cose", "this is no command")
		c.fails(t, 1, []string{"malformed"}, "--card", c.card, "send", bad)
		whole, err := os.ReadFile(good)
		if err != nil {
			t.Fatal(err)
		}
		cut := c.write(t, "cut.cose", string(whole[:len(whole)/2]))
		c.fails(t, 1, []string{"malformed"}, "--card", c.card, "send", cut)
		huge := c.write(t, "huge.cose", strings.Repeat("x", 100<<10))
		c.fails(t, 1, []string{"too large"}, "--card", c.card, "send", huge)
		c.fails(t, 1, []string{"nonesuch.cose", "no such file"}, "--card", c.card, "send", "nonesuch.cose")
	})
}

// TestErrors: what is typed or written wrongly is told with the word to mend.
func TestErrors(t *testing.T) {
	t.Parallel()
	env := vm.StartLoopback(t, vm.Options{})
	c := newCLI(t, env)
	unreachable := *env.Operator.Contact
	unreachable.Address = "127.0.0.1:1"
	file := filepath.Join(c.dir, "unreachable.json")
	if err := unreachable.Save(file); err != nil {
		t.Fatal(err)
	}
	stranger := *env.Operator.Contact
	stranger.CardID = strings.Repeat("0", 64)
	other := filepath.Join(c.dir, "other.json")
	if err := stranger.Save(other); err != nil {
		t.Fatal(err)
	}
	yaml := func(name, from, to string) string {
		return c.write(t, name+".yaml", strings.Replace(webYAML, from, to, 1))
	}
	create := func(file string) []string { return []string{"--card", c.card, "instance", "create", file} }
	tests := []struct {
		name  string
		code  int
		words []string
		args  []string
	}{
		{"no card", 1, []string{"make run", "--card"}, []string{"status"}},
		{"missing card file", 1, []string{"nonesuch.json", "davit enrol"}, []string{"--card", "nonesuch.json", "status"}},
		{"controls in a message", 1, []string{`\u001b[6n`}, []string{"--card", "\x1b[6n", "status"}},
		{"card file that is none", 1, []string{"bad.json"}, []string{"--card", c.write(t, "bad.json", "{"), "status"}},
		{"unreachable card", 1, []string{"127.0.0.1:1", "refused"}, []string{"--card", file, "status"}},
		{"another card", 1, []string{env.Operator.Contact.CardID}, []string{"--card", other, "status"}},
		{"unknown command", 2, []string{"nonesuch"}, []string{"nonesuch"}},
		{"unknown command below", 2, []string{"nonesuch"}, []string{"instance", "nonesuch"}},
		{"unknown flag", 2, []string{"--nonesuch"}, []string{"status", "--nonesuch"}},
		{"too few arguments", 2, []string{"instance show NAME"}, []string{"instance", "show"}},
		{"too many arguments", 2, []string{"status"}, []string{"status", "more"}},
		{"nonce", 2, []string{"--nonce", "send --challenge"}, []string{"--card", c.card, "sign", "status", "--nonce", "xyz"}},
		{"args", 2, []string{"--args"}, []string{"--card", c.card, "sign", "status", "--nonce", "00", "--args", "{"}},
		{"key", 1, []string{"nonesuch.key"}, []string{"--card", c.card, "sign", "status", "--key", "nonesuch.key", "--nonce", "00"}},
		{"console", 2, []string{"instance/NAME"}, []string{"--card", c.card, "console", "nonesuch"}},
		{"guest boot", 2, []string{"--guest-boot", "kernel or disk"}, []string{"up", "--guest-boot", "floppy"}},
		{"grace", 2, []string{"--grace"}, []string{"--card", c.card, "instance", "stop", "x", "--grace", "1ms"}},
		{"name", 1, []string{"../x"}, []string{"--card", c.card, "instance", "show", "../x"}},
		{"no file", 1, []string{"nonesuch.yaml", "no such file"}, create("nonesuch.yaml")},
		{"unknown key", 1, []string{"[2:1]", "vcpu"}, create(yaml("key", "vcpus:", "vcpu:"))},
		{"unknown key below", 1, []string{"kernl"}, create(yaml("below", "kernel:", "kernl:"))},
		{"no YAML", 1, []string{"instance"}, create(c.write(t, "no.yaml", "\t{{"))},
		{"empty", 1, []string{"empty"}, create(c.write(t, "empty.yaml", ""))},
		{"memory", 1, []string{"memory", "161MiB"}, create(yaml("memory", "160MiB", "161MiB"))},
		{"unit", 1, []string{"160MB"}, create(yaml("unit", "160MiB", "160MB"))},
		{"kind", 1, []string{"volumes[0]", "tape"}, create(yaml("kind", "kind: file", "kind: tape"))},
		{"huge", 1, []string{"larger than"}, create(c.write(t, "huge.yaml", strings.Repeat("#", 300<<10)))},
		{"attest without TPM", 1, []string{"tpm"}, []string{"--card", c.card, "attest", "--maker-roots", makerRoot(t)}},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) { c.fails(t, tt.code, tt.words, tt.args...) })
	}
	var list []spec.InstanceStatus
	if c.json(t, &list, "instance", "list"); len(list) != 0 {
		t.Errorf("mistakes made instances: %+v", list)
	}
}

// makerRoot is some certificate: a loopback card has no TPM of any maker.
func makerRoot(t *testing.T) string {
	t.Helper()
	return filepath.Join(vm.State(t), "keys", "image.crt")
}
