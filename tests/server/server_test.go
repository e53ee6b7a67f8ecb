// SPDX-License-Identifier: Apache-2.0

package server

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/davit-dpu/davit/firmware/evidence"
	"github.com/davit-dpu/davit/firmware/mailbox"
	"github.com/davit-dpu/davit/firmware/mailbox/door"
	"github.com/davit-dpu/davit/firmware/measure"
	"github.com/davit-dpu/davit/firmware/spec"
	"github.com/davit-dpu/davit/tests/vm"
	"github.com/davit-dpu/davit/tools/rig"
)

func TestMain(m *testing.M) { os.Exit(vm.Main(m)) }

// Time limits for an emulated card on a busy machine.
const (
	cardLimit = 3 * time.Minute
	bootLimit = 90 * time.Second
)

// TestServer takes one server through its life.
func TestServer(t *testing.T) {
	env := vm.Start(t, vm.Options{Boot: rig.BootESP, Demonstrate: true, Demo: rig.Demo{Load: true}})
	console := env.Follow(t, rig.DemoName)
	console.Advance(t, 3, bootLimit)
	for _, step := range []struct {
		name string
		do   func(*testing.T, *vm.Env, *vm.Console)
	}{
		{"evidence", checkEvidence},
		{"status", checkStatus},
		{"reboot", reboot},
		{"power cut", powerCut},
		{"another TPM", anotherTPM},
	} {
		if !t.Run(step.name, func(t *testing.T) { step.do(t, env, console) }) {
			return // what follows would only bury the reason
		}
	}
}

// verdicts are an appraisal's by claim.
func verdicts(r *evidence.Report) map[string]evidence.Verdict {
	out := map[string]evidence.Verdict{}
	for _, c := range r.Claims {
		out[c.Name] = c.Verdict
	}
	return out
}

// checkEvidence: a quote over a fresh nonce by the key known from enrolment,
// whose PCRs the logs replay to, and which lists what was measured. Keys and
// policy are in the configuration.
func checkEvidence(t *testing.T, env *vm.Env, _ *vm.Console) {
	report, err := env.Operator.Attest(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	for name, v := range verdicts(report) {
		if want := evidence.Passed; v != want && !(name == "pcr.reference" && v == evidence.Exempted) {
			t.Errorf("claim %s %s", name, v)
		}
	}
	zero := strings.Repeat("0", 64)
	for _, r := range report.Registers {
		if r.Quoted != r.Replayed {
			t.Errorf("PCR %d is quoted as %s and replayed to %s", r.PCR, r.Quoted, r.Replayed)
		}
		if slices.Contains([]int{0, 4, 7, 8, 11, 14}, r.PCR) && r.Quoted == zero {
			t.Errorf("PCR %d holds nothing", r.PCR)
		}
	}
	registers := measure.Registers()
	for _, want := range []struct{ kind, name string }{
		{"init", "init"}, {"program", "davitd"}, {"program", "vcard"}, {"config", "config.yaml"}, {"lifecycle", ""}, {"module", ""},
	} {
		if !slices.ContainsFunc(report.Events, func(e evidence.Event) bool {
			return e.Measured != nil && e.Measured.Kind == want.kind && e.Log == "card" && e.Replayed && e.DataHashed && int(e.PCR) == registers[want.kind] &&
				slices.ContainsFunc(e.Measured.Items, func(i evidence.Item) bool { return strings.Contains(i.Name, want.name) })
		}) {
			t.Errorf("no verified event says that the %s %s was measured", want.kind, want.name)
		}
	}
	if t.Failed() {
		var text strings.Builder
		if err := errors.Join(report.WriteEvents(&text), report.WriteTable(&text)); err != nil {
			t.Error(err)
		}
		t.Log("\n" + text.String())
	}
}

// checkStatus: what was checked, what was not and says so, and the network as
// DHCP gave it.
func checkStatus(t *testing.T, env *vm.Env, _ *vm.Console) {
	st := env.Status(t)
	results := map[string]string{}
	for _, c := range st.Checks {
		results[c.Name] = c.Result
		if c.Detail == "" && c.Result != "passed" {
			t.Errorf("check %s says nothing but %s", c.Name, c.Result)
		}
		if c.Result == "failed" {
			t.Errorf("check %s failed: %s", c.Name, c.Detail)
		}
	}
	for name, want := range map[string]string{
		"boot": "passed", "measured-boot": "passed", "secure-boot": "not-checked", "sealed-state": "not-checked", "host": "not-checked",
	} {
		if results[name] != want {
			t.Errorf("check %s: %q, want %s", name, results[name], want)
		}
	}
	if st.CardID != env.Operator.Contact.CardID || st.Board != "qemuvirt" || st.Lifecycle != spec.Development {
		t.Errorf("card %s, board %s, lifecycle %s", st.CardID, st.Board, st.Lifecycle)
	}
	for _, name := range []string{"agent", "vcard", "host", "door tls", "door unix", "network"} {
		if c := vm.Component(t, st, name); c.Phase != spec.PhaseReady || c.Reason == "" || c.Since.IsZero() {
			t.Errorf("%s is %s (%s) since %v", name, c.Phase, c.Reason, c.Since)
		}
	}
	n := st.Network
	if n == nil {
		t.Fatal("no network is reported")
	}
	prefix, err := netip.ParsePrefix(n.Address)
	if err != nil || !netip.MustParsePrefix("10.0.2.0/24").Contains(prefix.Addr()) {
		t.Errorf("address %q, %v; QEMU's network is 10.0.2.0/24", n.Address, err)
	}
	if n.Interface == "" || n.Server != "10.0.2.2" || !n.Obtained.Before(n.Expires) || !n.Expires.After(st.Time) {
		t.Errorf("lease %+v", n)
	}
}

// before is what must be the same after the card has been away.
type before struct {
	status   *spec.CardStatus
	instance *spec.InstanceStatus
	vmm      int
	far      vm.Progress
	nonce    []byte // issued and not used
}

func remember(t *testing.T, env *vm.Env, console *vm.Console) *before {
	t.Helper()
	b := &before{status: env.Status(t), instance: env.Show(t, rig.DemoName), vmm: env.VMM(t, rig.DemoName), far: console.Far()}
	if b.instance.Phase != spec.PhaseRunning {
		t.Fatalf("the instance is %s: %s", b.instance.Phase, b.instance.Reason)
	}
	client, err := env.Operator.Contact.Dial(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	defer client.Close()
	receipt, err := client.Request(t.Context(), mailbox.ChallengeOp, nil)
	var ch mailbox.Challenge
	if err == nil {
		err = receipt.Decode(&ch)
	}
	if err != nil {
		t.Fatal(err)
	}
	b.nonce = ch.Nonce
	return b
}

// back waits until the card answers as one that has booted again, with its
// host, and the instance is running as it was; its guest waited for its disk
// and goes on.
func (b *before) back(t *testing.T, env *vm.Env, console *vm.Console) {
	t.Helper()
	var st spec.CardStatus
	vm.Eventually(t, cardLimit, func() error {
		ctx, cancel := context.WithTimeout(t.Context(), 5*time.Second)
		defer cancel()
		if err := env.Operator.Ask(ctx, "status", nil, &st); err != nil {
			return err
		}
		if host := vm.Component(t, &st, "host"); !st.Booted.After(b.status.Booted) || st.Phase != spec.PhaseReady || host.Phase != spec.PhaseReady {
			return fmt.Errorf("booted %v, before %v; the card is %s (%s), its host %s (%s)", st.Booted, b.status.Booted, st.Phase, st.Reason, host.Phase, host.Reason)
		}
		return nil
	})
	if st.CardID != b.status.CardID {
		t.Errorf("card %s became %s", b.status.CardID, st.CardID)
	}
	var in *spec.InstanceStatus
	vm.Eventually(t, bootLimit, func() error {
		in = env.Show(t, rig.DemoName)
		if in.Phase != spec.PhaseRunning || in.Devices[0].Phase != spec.PhaseReady {
			return fmt.Errorf("the instance is %s: %s", in.Phase, in.Reason)
		}
		return nil
	})
	if in.Generation != b.instance.Generation || in.Restarts != b.instance.Restarts || in.PoolOffset != b.instance.PoolOffset || env.VMM(t, rig.DemoName) != b.vmm {
		t.Errorf("instance %+v became %+v", b.instance, in)
	}
	if far := console.Advance(t, 10, bootLimit); far.Boot != b.far.Boot {
		t.Errorf("the guest was at %+v and is at %+v: it booted again", b.far, far)
	}
	// The console may tell of what was before; these counters are of this boot.
	vm.Eventually(t, bootLimit, func() error {
		if q := env.Show(t, rig.DemoName).Devices[0].Queues; len(q) != 1 || q[0].Writes < 20 || q[0].Flushes < 10 || q[0].Errors != 0 {
			return fmt.Errorf("the disk's counters since the card is back: %+v", q)
		}
		return nil
	})
	b.staleNonce(t, env)
}

// staleNonce: a command made before the card was away is refused.
func (b *before) staleNonce(t *testing.T, env *vm.Env) {
	t.Helper()
	key, err := mailbox.ReadPrivateKey(env.Operator.KeyFile)
	if err != nil {
		t.Fatal(err)
	}
	id, err := mailbox.KeyID(key.Public())
	if err != nil {
		t.Fatal(err)
	}
	command, err := mailbox.Sign(key, id, mailbox.Request{
		Card: b.status.CardID, Op: "instance.list", Nonce: b.nonce, Lifecycle: spec.Development,
		NotBefore: time.Now().Add(-time.Hour), NotAfter: time.Now().Add(time.Hour),
	})
	if err != nil {
		t.Fatal(err)
	}
	client, err := env.Operator.Contact.Dial(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	defer client.Close()
	var answer *door.Answer
	if _, err := client.Send(t.Context(), command); !errors.As(err, &answer) || answer.Receipt.Code != mailbox.NoSuchNonce {
		t.Errorf("a nonce of the boot before: %v", err)
	}
}

// reboot: by command, in order. What was measured is measured again.
func reboot(t *testing.T, env *vm.Env, console *vm.Console) {
	b := remember(t, env, console)
	env.Do(t, "reboot", nil, nil)
	b.back(t, env, console)
	if _, err := env.Operator.Attest(t.Context()); err != nil {
		t.Error("evidence after a reboot:", err)
	}
}

// powerCut: the card is gone from one instruction to the next, and comes back
// with the same storage and TPM.
func powerCut(t *testing.T, env *vm.Env, console *vm.Console) {
	b := remember(t, env, console)
	env.Server.Card.Kill()
	powerOn(t, env)
	console.Move(env.Operator.Contact)
	b.back(t, env, console)
	if _, err := env.Operator.Attest(t.Context()); err != nil {
		t.Error("evidence after a power cut:", err)
	}
}

// powerOn starts the card's TPM and the card again. Its door gets another port.
func powerOn(t *testing.T, env *vm.Env) {
	t.Helper()
	env.Server.TPM.Kill()
	if err := env.Server.StartTPM(t.Context()); err != nil {
		t.Fatal(err)
	}
	if err := env.Server.StartCard(t.Context()); err != nil {
		t.Fatal(err)
	}
	env.Operator.Contact.Address = env.Server.Address
}

// anotherTPM: the storage of one card with the TPM of another is another card,
// and no receipt of it is taken for one of the first.
func anotherTPM(t *testing.T, env *vm.Env, _ *vm.Console) {
	env.Server.Card.Kill()
	if err := os.Rename(filepath.Join(env.Server.Dir(), "tpm"), filepath.Join(env.Server.Dir(), "tpm-of-the-first")); err != nil {
		t.Fatal(err)
	}
	powerOn(t, env)
	var report evidence.Report
	vm.Eventually(t, cardLimit, func() error {
		ctx, cancel := context.WithTimeout(t.Context(), 20*time.Second)
		defer cancel()
		_, err := env.Operator.Attest(ctx)
		var bad *rig.NotTrusted
		if !errors.As(err, &bad) {
			return fmt.Errorf("attest: %w", err)
		}
		report = bad.Report
		return nil
	})
	failed := []string{}
	for name, v := range verdicts(&report) {
		if v == evidence.Failed {
			failed = append(failed, name)
		}
	}
	slices.Sort(failed)
	if !slices.Contains(failed, "card.identity") || slices.Contains(failed, "quote.signature") || report.CardID == env.Operator.Contact.CardID {
		t.Errorf("evidence of card %s fails by %q", report.CardID, failed)
	}
	t.Logf("failed claims: %q", failed)
	if err := env.Operator.Ask(t.Context(), "status", nil, nil); !errors.Is(err, mailbox.ErrReceipt) {
		t.Errorf("a receipt of the other card: %v", err)
	}
}
