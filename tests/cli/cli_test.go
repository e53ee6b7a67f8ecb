// SPDX-License-Identifier: Apache-2.0

package cli

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/davit-dpu/davit/firmware/spec"
	"github.com/davit-dpu/davit/tests/vm"
	"github.com/davit-dpu/davit/tools/rig"
)

func TestMain(m *testing.M) { os.Exit(vm.Main(m)) }

// callLimit bounds one call of the program.
const callLimit = 90 * time.Second

// cli is the program in a folder of its own, and the card that it is told of.
type cli struct {
	program, dir, card string
}

func newCLI(t *testing.T, env *vm.LoopbackEnv) *cli {
	t.Helper()
	return &cli{vm.Program(t, "./tools/davit"), t.TempDir(), filepath.Join(env.Server.Dir(), "card.json")}
}

// output is what one call left.
type output struct {
	out, err string
	code     int
}

// run calls the program with input, as typed.
func (c *cli) run(t *testing.T, input string, args ...string) output {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), callLimit)
	defer cancel()
	cmd := exec.CommandContext(ctx, c.program, args...)
	cmd.Dir, cmd.Stdin = c.dir, strings.NewReader(input)
	var out, problem bytes.Buffer
	cmd.Stdout, cmd.Stderr = &out, &problem
	err := cmd.Run()
	var exit *exec.ExitError
	if err != nil && !errors.As(err, &exit) || ctx.Err() != nil {
		t.Fatalf("davit %q: %v, %v\n%s%s", args, err, ctx.Err(), out.String(), problem.String())
	}
	return output{out.String(), problem.String(), cmd.ProcessState.ExitCode()}
}

// ok calls the program for the card; it must work and complain of nothing.
func (c *cli) ok(t *testing.T, args ...string) string {
	t.Helper()
	r := c.run(t, "", append([]string{"--card", c.card}, args...)...)
	if r.code != 0 || r.err != "" {
		t.Fatalf("davit %q: exit code %d\n%s%s", args, r.code, r.out, r.err)
	}
	return r.out
}

// json is ok with --json, decoded.
func (c *cli) json(t *testing.T, v any, args ...string) {
	t.Helper()
	out := c.ok(t, append([]string{"--json"}, args...)...)
	dec := json.NewDecoder(strings.NewReader(out))
	if err := dec.Decode(v); err != nil || dec.More() {
		t.Fatalf("davit --json %q: %v\n%s", args, err, out)
	}
}

// fails calls the program; it must fail with the code, and its one complaint
// must hold all the words.
func (c *cli) fails(t *testing.T, code int, words []string, args ...string) {
	t.Helper()
	r := c.run(t, "", args...)
	if r.code != code {
		t.Errorf("davit %q: exit code %d, want %d\n%s%s", args, r.code, code, r.out, r.err)
	}
	if !strings.HasPrefix(r.err, "davit: ") {
		t.Errorf("davit %q complains with %q", args, r.err)
	}
	for _, w := range words {
		if !strings.Contains(r.err, w) {
			t.Errorf("davit %q: %q does not tell of %q", args, r.err, w)
		}
	}
}

func contains(t *testing.T, text string, words ...string) {
	t.Helper()
	for _, w := range words {
		if !strings.Contains(text, w) {
			t.Errorf("%q is not in\n%s", w, text)
		}
	}
}

// write makes a file in the program's folder.
func (c *cli) write(t *testing.T, name, text string) string {
	t.Helper()
	path := filepath.Join(c.dir, name)
	if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
	return path
}

const webYAML = `name: web
vcpus: 1
memory: 160MiB
boot:
  kernel: vmlinuz
  initrd: initrd
  cmdline: console=ttyS0 quiet panic=1 ` + rig.NoTimerCheck + ` davit.nonce=00
volumes:
  - {name: demo-root, kind: file}
`

// TestCommands goes through what an operator does with a card.
func TestCommands(t *testing.T) {
	t.Parallel()
	env := vm.StartLoopback(t, vm.Options{})
	c := newCLI(t, env)
	t.Run("status", func(t *testing.T) { status(t, env, c) })
	t.Run("instance", func(t *testing.T) { instances(t, env, c) })
	t.Run("volume", func(t *testing.T) { volumes(t, env, c) })
	t.Run("log", func(t *testing.T) {
		contains(t, c.ok(t, "log", "-n", "2000"), "msg=davitd", "op=instance.create", "vcard: ")
		if got := strings.Count(c.ok(t, "log", "-n", "3"), "\n"); got != 3 {
			t.Errorf("log -n 3 prints %d lines", got)
		}
	})
	t.Run("offline", func(t *testing.T) { offline(t, env, c) })
	t.Run("what a loopback card cannot", func(t *testing.T) {
		c.fails(t, 1, []string{"cannot be rebooted"}, "--card", c.card, "reboot")
		c.fails(t, 1, []string{"serial line"}, "--card", c.card, "console", "card")
	})
}

func status(t *testing.T, env *vm.LoopbackEnv, c *cli) {
	contains(t, c.ok(t, "status"), env.Operator.Contact.CardID, "loopback", "lifecycle development", "COMPONENT", "vcard", "door tls",
		"secure-boot", "not-checked", "all components are ready")
	var st spec.CardStatus
	c.json(t, &st, "status")
	if st.CardID != env.Operator.Contact.CardID || st.Board != "loopback" || st.Phase != spec.PhaseReady || len(st.Checks) == 0 || st.Booted.IsZero() {
		t.Errorf("status --json: %+v", st)
	}
}

func instances(t *testing.T, env *vm.LoopbackEnv, c *cli) {
	file := c.write(t, "web.yaml", webYAML)
	contains(t, c.ok(t, "instance", "create", file), "instance web is created", "davit instance start web")
	c.fails(t, 1, []string{"web", "there already"}, "--card", c.card, "instance", "create", file)
	contains(t, c.ok(t, "instance", "list"), "NAME", "web", "stopped", "160MiB")
	var list []spec.InstanceStatus
	c.json(t, &list, "instance", "list")
	if len(list) != 1 || list[0].Spec.Name != "web" || list[0].Phase != spec.PhaseStopped {
		t.Errorf("instance list --json: %+v", list)
	}
	contains(t, c.ok(t, "instance", "start", "web"), "web starting", "web running: vmm runs, 1 of 1 disks attached")
	env.Follow(t, "web").AwaitLine(t, "DAVIT-PROOF nonce=00 end", callLimit)
	contains(t, c.ok(t, "instance", "show", "web"), "running", "wanted running", "generation", "disk demo-root", "virtio-blk 64MiB", "queue 0")
	var st spec.InstanceStatus
	c.json(t, &st, "instance", "show", "web")
	if st.Phase != spec.PhaseRunning || len(st.Devices) != 1 || len(st.Generation) != 32 {
		t.Errorf("instance show --json: %+v", st)
	}
	c.fails(t, 1, []string{"web", "stop it first"}, "--card", c.card, "instance", "delete", "web")
	typed := c.run(t, "\n\x1d", "--card", c.card, "console", "instance/web")
	if typed.code != 0 {
		t.Errorf("leaving a console: exit code %d: %s", typed.code, typed.err)
	}
	contains(t, c.ok(t, "instance", "stop", "web", "--grace", "60s"), "web stopped: stopped as asked")
	c.json(t, &st, "instance", "stop", "web", "--force") // it is already
	if st.Phase != spec.PhaseStopped || st.Desired != spec.PhaseStopped {
		t.Errorf("instance stop --json: %+v", st)
	}
	contains(t, c.ok(t, "instance", "delete", "web"), "instance web is deleted")
	c.fails(t, 1, []string{"web", "no such instance"}, "--card", c.card, "instance", "show", "web")
	if r := c.run(t, webYAML, "--card", c.card, "instance", "create", "-"); r.code != 0 {
		t.Errorf("create from standard input: %s", r.err)
	}
	broken := c.write(t, "broken.yaml", strings.NewReplacer("name: web", "name: broken", "vmlinuz", "nonesuch").Replace(webYAML))
	c.ok(t, "instance", "delete", "web")
	c.ok(t, "instance", "create", broken)
	c.fails(t, 1, []string{"broken failed", "boot file nonesuch"}, "--card", c.card, "instance", "start", "broken")
	c.ok(t, "instance", "delete", "broken")
}
