// SPDX-License-Identifier: Apache-2.0

package bench

import (
	"cmp"
	"context"
	"crypto/rand"
	"errors"
	"os"
	"slices"
	"strconv"
	"testing"
	"time"

	"github.com/fxamacker/cbor/v2"

	"github.com/davit-dpu/davit/firmware/evidence"
	"github.com/davit-dpu/davit/firmware/mailbox/door"
	"github.com/davit-dpu/davit/firmware/spec"
	"github.com/davit-dpu/davit/firmware/supervise/initctl"
	"github.com/davit-dpu/davit/initramfs/image"
	"github.com/davit-dpu/davit/tests/vm"
	"github.com/davit-dpu/davit/tools/rig"
)

// bar is the most that a boot may take, as a multiple of the baseline.
const bar = 1.5

// bootLimit is how long a boot may take before the benchmark gives up.
const bootLimit = 3 * time.Minute

// Marks that the benchmark acts on.
const (
	markAddress = "management address"
	markNothing = "baseline's init runs"
	markOpen    = "init: davitd ready"
	markReset   = "reset"
)

// firmwareMarks are moments that both images have.
var firmwareMarks = []mark{
	{"firmware speaks", "UEFI firmware"},
	{"kernel's EFI stub", "EFI stub: Booting Linux"},
	{"kernel", "EFI stub: Exiting boot services"},
	{"kernel starts init", "Run /init as init process"},
}

// cardMarks are moments of the real image.
var cardMarks = append(slices.Clone(firmwareMarks),
	mark{"init: modules loaded", "s] modules  "},
	mark{"init: TPM and its log open", "s] tpm  "},
	mark{"init: all measured", "s] log handed over"},
	mark{"init: data mounted", "s] data  "},
	mark{"init: davitd started", "s] davitd            ok"},
	mark{markAddress, `msg="management network" phase=ready`},
	mark{markOpen, "s] davitd            ready"},
	mark{"vcard runs", `msg="vcard started"`},
)

// BenchmarkBoot compares a card's boot, from QEMU's start to a verified receipt
// that says ready, with that of the baseline.
func BenchmarkBoot(b *testing.B) {
	for _, boot := range []rig.Boot{rig.BootDirect, rig.BootESP} {
		b.Run(string(boot), func(b *testing.B) { benchmarkBoot(b, boot) })
	}
}

func benchmarkBoot(b *testing.B, boot rig.Boot) {
	card, idle := newCard(b, boot), newBaseline(b, boot)
	say("\n%s boot, %d of each image, on %s\n", boot, boots(b), machine(b))
	pairs := bootPairs(b, card, idle)
	var real, steps, base series
	var ratios []float64
	for _, p := range pairs {
		real.add(p.card.moments)
		steps.add(p.card.steps)
		base.add(p.idle.moments)
		ratios = append(ratios, p.card.end().Seconds()/p.idle.end().Seconds())
	}
	say("card: median since QEMU's start, after the line before, spread\n%s", real.table())
	say("steps of init, since the kernel's start, by its boot report\n%s", steps.table())
	say("baseline\n%s", base.table())
	ready, off := real.median(readyName).at, base.median(offName).at
	ratio := ready.Seconds() / off.Seconds()
	say("ready %.3fs / powered off %.3fs = %.2f (bar %.2f); each pair %.2f\n", ready.Seconds(), off.Seconds(), ratio, bar, ratios)
	b.ReportMetric(ready.Seconds(), "ready-s")
	b.ReportMetric(off.Seconds(), "baseline-s")
	b.ReportMetric(ratio, "ratio")
	b.ReportMetric(0, "ns/op") // of no meaning here
}

// pair is one boot of each image, one right after the other.
type pair struct{ card, idle run }

// bootPairs boots both images in turn until there are enough pairs in which
// nobody else used much of the machine. When there are too few in three times as
// many, all of them count.
func bootPairs(b *testing.B, card *card, idle *baseline) []pair {
	b.Helper()
	var all, undisturbed []pair
	q := quiet{quietWait}
	for len(undisturbed) < boots(b) && len(all) < 3*boots(b) {
		var p pair
		q.await(b)
		p.card = card.boot(b)
		q.await(b)
		p.idle = idle.boot(b)
		all = append(all, p)
		if max(p.card.others, p.idle.others) <= disturbance {
			undisturbed = append(undisturbed, p)
		}
	}
	if len(undisturbed) < boots(b) {
		say("the machine was not quiet: others used more than %.0f%% of it in %d of %d pairs; all count\n",
			100*disturbance, len(all)-len(undisturbed), len(all))
		return all
	}
	say("%d pairs do not count: others used more than %.0f%% of the machine meanwhile\n", len(all)-len(undisturbed), 100*disturbance)
	return undisturbed
}

// boots is how often each image is booted.
func boots(b *testing.B) int {
	b.Helper()
	n, err := strconv.Atoi(cmp.Or(os.Getenv("DAVIT_BENCH_BOOTS"), "5"))
	if err != nil || n < 1 {
		b.Fatalf("DAVIT_BENCH_BOOTS: %q is no number of boots", os.Getenv("DAVIT_BENCH_BOOTS"))
	}
	return n
}

// subject is one image on one card.
type subject struct{ env *vm.Env }

// run is one boot.
type run struct {
	moments []moment // the last one is its end
	steps   []moment // of init
	others  float64  // share of the machine that others used meanwhile
}

func (r run) end() time.Duration { return r.moments[len(r.moments)-1].at }

const (
	readyName = "door answers: ready"
	offName   = "powered off"
)

// newSubject prepares storage and TPM.
func newSubject(b *testing.B, boot rig.Boot, built *rig.BuiltImage) *subject {
	b.Helper()
	s := &subject{vm.New(b, vm.Options{Boot: boot}, built)}
	s.env.Run(b, named(b, s.env.Server.PowerOn(), "storage", "tpm"))
	return s
}

// named picks steps of a sequence by name.
func named(b *testing.B, steps []rig.Step, names ...string) []rig.Step {
	b.Helper()
	var out []rig.Step
	for _, n := range names {
		i := slices.IndexFunc(steps, func(s rig.Step) bool { return s.Name == n })
		if i < 0 {
			b.Fatalf("the sequence has no step %s", n)
		}
		out = append(out, steps[i])
	}
	return out
}

// powerOn starts the machine and watches its console. The moment it returns is
// that of QEMU's start.
func (s *subject) powerOn(b *testing.B, marks []mark) (time.Time, *watch) {
	b.Helper()
	select {
	case <-s.env.Server.TPM.Done(): // it ends with a machine that ends by itself
		if err := s.env.Server.StartTPM(b.Context()); err != nil {
			b.Fatal(err)
		}
	default:
	}
	var offset int64
	if st, err := os.Stat(s.env.Server.CardLog()); err == nil {
		offset = st.Size()
	}
	begin := time.Now()
	if err := s.env.Server.StartCard(b.Context()); err != nil {
		b.Fatal(err)
	}
	return begin, watchConsole(s.env.Server.Card, s.env.Server.CardLog(), offset, begin, marks)
}

// card is the real image, on a card that is known.
type card struct{ *subject }

func newCard(b *testing.B, boot rig.Boot) *card {
	b.Helper()
	c := &card{newSubject(b, boot, vm.Image(b))}
	_, w := c.powerOn(b, cardMarks)
	c.env.Run(b, named(b, c.env.Operator.Attend(), "attest", "ready"))
	w.finish(b, time.Minute)
	c.shutDown(b)
	return c
}

func (c *card) boot(b *testing.B) run {
	b.Helper()
	before := usageNow(b)
	begin, w := c.powerOn(b, cardMarks)
	c.env.Operator.Contact.Address = c.env.Server.Address // another port each time
	w.await(b, markAddress, bootLimit)
	w.await(b, markOpen, bootLimit)
	c.awaitReady(b, begin.Add(bootLimit))
	ready := w.now(readyName)
	share := others(before, usageNow(b), ready.cpu)
	w.finish(b, 10*time.Second)
	r := run{moments: append(w.all(), ready), steps: c.steps(b), others: share}
	c.shutDown(b)
	return r
}

// awaitReady asks for the card's status until a verified receipt says ready.
func (c *card) awaitReady(b *testing.B, deadline time.Time) {
	b.Helper()
	ctx, cancel := context.WithDeadlineCause(b.Context(), deadline, errors.New("the card is not ready in time"))
	defer cancel()
	client, err := c.env.Operator.Contact.Dial(ctx)
	if err != nil {
		b.Fatal(err)
	}
	defer client.Close()
	tick := time.NewTicker(25 * time.Millisecond)
	defer tick.Stop()
	for {
		var st spec.CardStatus
		if err := ask(ctx, client, "status", nil, &st); err != nil {
			b.Fatal(err)
		}
		if st.Phase == spec.PhaseReady {
			return
		}
		select {
		case <-tick.C:
		case <-ctx.Done():
			b.Fatalf("%v: it is %s: %s", context.Cause(ctx), st.Phase, st.Reason)
		}
	}
}

// ask sends a public request; the receipt is verified before it is decoded.
func ask(ctx context.Context, client *door.Client, op string, args, result any) error {
	receipt, err := client.Request(ctx, op, args)
	if err != nil {
		return err
	}
	return receipt.Decode(result)
}

// steps are the times of init's own report, which evidence holds.
func (c *card) steps(b *testing.B) []moment {
	b.Helper()
	nonce := make([]byte, 32)
	rand.Read(nonce) // never returns an error
	var raw []byte
	var doc evidence.Document
	err := c.env.Operator.Ask(b.Context(), "attest", map[string]any{"nonce": nonce}, &raw)
	if err == nil {
		err = cbor.Unmarshal(raw, &doc)
	}
	if err != nil {
		b.Fatal(err)
	}
	report, err := initctl.ParseReport(doc.BootReport)
	if err != nil {
		b.Fatal(err)
	}
	var out []moment
	for _, s := range report.Steps {
		if s.Result == initctl.Failed {
			b.Fatalf("step %s failed: %s", s.Name, s.Detail)
		}
		if s.Result != initctl.Pending {
			out = append(out, moment{name: s.Name, at: s.Finished})
		}
	}
	return out
}

// shutDown reboots the card and cuts its power when it resets: its file systems
// are clean then.
func (c *card) shutDown(b *testing.B) {
	b.Helper()
	st, err := os.Stat(c.env.Server.CardLog())
	if err != nil {
		b.Fatal(err)
	}
	w := watchConsole(c.env.Server.Card, c.env.Server.CardLog(), st.Size(), time.Now(), []mark{{markReset, "reboot: Restarting system"}})
	c.env.Do(b, "reboot", nil, nil)
	w.await(b, markReset, time.Minute)
	c.env.Server.Card.Kill()
}

// baseline is the image with an init that does nothing.
type baseline struct{ *subject }

func newBaseline(b *testing.B, boot rig.Boot) *baseline {
	b.Helper()
	l := &baseline{newSubject(b, boot, baselineImage(b))}
	l.boot(b)
	return l
}

func baselineImage(b *testing.B) *rig.BuiltImage {
	b.Helper()
	return vm.BuildImage(b, rig.ImageOptions{Commands: []image.Command{{
		Path: "init", Package: "github.com/davit-dpu/davit/tests/bench/poweroff",
	}}})
}

func (l *baseline) boot(b *testing.B) run {
	b.Helper()
	before := usageNow(b)
	begin, w := l.powerOn(b, append(slices.Clone(firmwareMarks), mark{markNothing, "davit-bench: init runs"}))
	over := time.NewTimer(bootLimit)
	defer over.Stop()
	select {
	case <-l.env.Server.Card.Done():
	case <-over.C:
		b.Fatalf("the baseline is not off within %v:\n%s", bootLimit, rig.Tail(l.env.Server.CardLog(), 15))
	}
	off, after := moment{name: offName, at: time.Since(begin)}, usageNow(b)
	w.finish(b, time.Second)
	seen := w.all() // QEMU's own count went with it: the last one known is close
	return run{moments: append(seen, off), others: others(before, after, seen[len(seen)-1].cpu)}
}
