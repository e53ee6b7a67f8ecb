// SPDX-License-Identifier: Apache-2.0

package vm

import (
	"encoding/json"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/davit-dpu/davit/firmware/spec"
	"github.com/davit-dpu/davit/tools/rig"
)

// Options say how much of a server a test wants.
type Options struct {
	Boot rig.Boot   // default BootDirect: firmware and measurements are the same, and it is faster
	Pool spec.Bytes // default 384 MiB
	Demo rig.Demo   // what the card's storage is seeded for

	Demonstrate bool // start the demonstration instance and verify its data

	Configure func(*spec.CardConfig) // loopback: changes the card's configuration
}

func (o *Options) fill() {
	if o.Boot == "" {
		o.Boot = rig.BootDirect
	}
	if o.Pool == 0 {
		o.Pool = 384 * spec.MiB
	}
}

// Env is a running emulated server.
type Env struct {
	Server   *rig.Server
	Operator *rig.Operator
}

// New prepares a server without starting anything.
func New(t testing.TB, o Options, image *rig.BuiltImage) *Env {
	t.Helper()
	o.fill()
	server, err := rig.New(rig.Config{
		Dir: t.TempDir(), Set: Packages(t), UKI: image.UKI, Hostd: Program(t, "./tools/hostd"),
		Boot: o.Boot, Pool: o.Pool, Seed: Seed(t, o.Demo),
	})
	if err != nil {
		t.Fatal(err)
	}
	env := &Env{server, &rig.Operator{Server: server, KeyFile: filepath.Join(State(t), "keys", "operator.key")}}
	t.Cleanup(func() { env.end(t, server.Close) })
	return env
}

// end stops a server, shows its logs if the test failed, and checks that
// nothing of it is left.
func (e *Env) end(t testing.TB, stop func()) {
	if t.Failed() {
		Report(t, e.Server.HostDir()) // gone afterwards
	}
	stop()
	if t.Failed() {
		Report(t, e.Server.Dir())
	}
	checkGone(t, e.Server)
}

// Start brings a server up to a card that is ready and sees its host, and with
// Demonstrate to an instance whose data was verified.
func Start(t testing.TB, o Options) *Env {
	t.Helper()
	env := New(t, o, Image(t))
	steps := append(env.Server.PowerOn(), env.Operator.Attend()...)
	if o.Demonstrate {
		steps = append(steps, env.Operator.Demonstrate(o.Demo)...)
	}
	env.Run(t, steps)
	return env
}

// Run takes steps and logs them.
func (e *Env) Run(t testing.TB, steps []rig.Step) {
	t.Helper()
	err := rig.Run(t.Context(), steps, func(ev rig.Event) {
		if ev.Took > 0 && ev.Err == nil {
			t.Logf("[%6.2fs] %s: %s", ev.Since.Seconds(), ev.Step, ev.Proved)
		}
	})
	if err != nil {
		t.Fatal(err)
	}
}

// Do is a command that must succeed.
func (e *Env) Do(t testing.TB, op string, args, result any) {
	t.Helper()
	if err := e.Operator.Do(t.Context(), op, args, result); err != nil {
		t.Fatalf("%s %v: %v", op, args, err)
	}
}

// Create makes an instance, stopped.
func (e *Env) Create(t testing.TB, in spec.Instance) {
	t.Helper()
	text, err := spec.EncodeYAML(in)
	if err != nil {
		t.Fatal(err)
	}
	e.Do(t, "instance.create", map[string]string{"yaml": string(text)}, nil)
}

// Show is an instance as the card reports it.
func (e *Env) Show(t testing.TB, name string) *spec.InstanceStatus {
	t.Helper()
	st, err := e.Operator.Show(t.Context(), name)
	if err != nil {
		t.Fatal(err)
	}
	return st
}

// Status is the card as it reports itself.
func (e *Env) Status(t testing.TB) *spec.CardStatus {
	t.Helper()
	var st spec.CardStatus
	if err := e.Operator.Ask(t.Context(), "status", nil, &st); err != nil {
		t.Fatal(err)
	}
	return &st
}

// Component is one part of a card's status; the test fails without it.
func Component(t testing.TB, st *spec.CardStatus, name string) spec.Component {
	t.Helper()
	for _, c := range st.Components {
		if c.Name == name {
			return c
		}
	}
	t.Fatalf("status has no component %s: %+v", name, st.Components)
	return spec.Component{}
}

// VMM is the process id of an instance's VMM, as hostd recorded it; 0 for none.
func (e *Env) VMM(t testing.TB, instance string) int {
	t.Helper()
	text, err := os.ReadFile(filepath.Join(e.Server.HostDir(), "vmm", instance, "pid.json"))
	if os.IsNotExist(err) {
		return 0
	}
	var record struct{ PID int }
	if err == nil {
		err = json.Unmarshal(text, &record)
	}
	if err != nil {
		t.Fatal(err)
	}
	return record.PID
}

// Report prints the end of every log of a run.
func Report(t testing.TB, dir string) {
	err := filepath.WalkDir(dir, func(path string, d fs.DirEntry, err error) error {
		if err == nil && d.IsDir() && d.Name() == "audit" {
			return fs.SkipDir // not text
		}
		if err == nil && !d.IsDir() && (strings.HasSuffix(path, ".log") || d.Name() == "log") {
			t.Logf("==== %s\n%s", strings.TrimPrefix(path, dir+"/"), rig.Tail(path, 60))
		}
		return nil
	})
	if err != nil {
		t.Log(err)
	}
}

// look is how often something that has no event is looked at.
const look = 50 * time.Millisecond

// Eventually waits until check succeeds, and fails the test with its last
// error when it does not within limit.
func Eventually(t testing.TB, limit time.Duration, check func() error) {
	t.Helper()
	tick := time.NewTicker(look)
	defer tick.Stop()
	deadline := time.After(limit)
	for {
		err := check()
		if err == nil {
			return
		}
		select {
		case <-tick.C:
		case <-deadline:
			t.Fatalf("not within %v: %v", limit, err)
		}
	}
}

// Log is the newest lines of the card's log.
func (e *Env) Log(t testing.TB, lines int) string {
	t.Helper()
	client, err := e.Operator.Contact.Dial(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	defer client.Close()
	stream, err := client.Stream(t.Context(), "log.tail", map[string]any{"lines": lines}, "")
	if err != nil {
		t.Fatal(err)
	}
	text, err := io.ReadAll(stream)
	if err == nil {
		_, err = stream.Wait()
	}
	if err != nil {
		t.Fatal(err)
	}
	return string(text)
}
