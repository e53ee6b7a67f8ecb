// SPDX-License-Identifier: Apache-2.0

package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"os"
	"path/filepath"
	"runtime"
	"strings"
	"syscall"
	"time"

	"github.com/spf13/cobra"
	"golang.org/x/term"

	"github.com/davit-dpu/davit/firmware/spec"
	"github.com/davit-dpu/davit/tools/davit/terminal"
	"github.com/davit-dpu/davit/tools/packages"
	"github.com/davit-dpu/davit/tools/rig"
)

// upFlags are those of davit up.
type upFlags struct {
	boot          string
	pool          spec.Bytes
	keep          bool
	exitWhenReady bool
	guestBoot     string
	load          bool
}

func upCommand(o *options) *cobra.Command {
	var f upFlags
	cmd := &cobra.Command{
		Use: "up", Short: "Boot a complete emulated server and an instance whose disk the card serves", Args: exactly(0),
		RunE: func(cmd *cobra.Command, _ []string) error { return f.run(cmd.Context(), cmd.OutOrStdout()) },
	}
	cmd.Flags().StringVar(&f.boot, "boot", string(rig.BootESP), "esp: from the card's own storage; direct: image handed to the firmware, some seconds faster")
	cmd.Flags().TextVar(&f.pool, "pool", 512*spec.MiB, "memory of the host that the card can reach")
	cmd.Flags().BoolVar(&f.keep, "keep", false, "go on with the storage and TPM of the last run instead of a new card")
	cmd.Flags().BoolVar(&f.exitWhenReady, "exit-when-ready", false, "stop everything and exit 0 once the instance's data was verified on the card's volume")
	cmd.Flags().StringVar(&f.guestBoot, "guest-boot", "kernel", "kernel: the instance boots a kernel that the card holds; disk: UEFI firmware boots it from its own disk")
	cmd.Flags().BoolVar(&f.load, "load", false, "have the instance write and verify for as long as it runs")
	return cmd
}

// workshop is a checkout with its folders.
type workshop struct{ source, state string }

func findWorkshop() (workshop, error) {
	dir, err := os.Getwd()
	if err != nil {
		return workshop{}, err
	}
	for {
		text, err := os.ReadFile(filepath.Join(dir, "go.mod"))
		if err == nil && strings.HasPrefix(string(text), "module github.com/davit-dpu/davit\n") {
			return workshop{dir, filepath.Join(dir, stateDir)}, nil
		}
		parent := filepath.Dir(dir)
		if parent == dir {
			return workshop{}, errors.New("this is not a checkout of Davit: change to one, the image is built from its sources")
		}
		dir = parent
	}
}

func (f *upFlags) run(ctx context.Context, out io.Writer) error {
	if b := rig.Boot(f.boot); b != rig.BootESP && b != rig.BootDirect {
		return &usageError{fmt.Errorf("--boot %q: want esp or direct", f.boot)}
	}
	if f.guestBoot != "kernel" && f.guestBoot != "disk" {
		return &usageError{fmt.Errorf("--guest-boot %q: want kernel or disk", f.guestBoot)}
	}
	if f.pool%spec.MemoryAlign != 0 || f.pool < 256*spec.MiB {
		return &usageError{fmt.Errorf("--pool %s: want a multiple of %s of at least 256MiB", f.pool, spec.MemoryAlign)}
	}
	ws, err := findWorkshop()
	if err != nil {
		return err
	}
	unlock, err := ws.lock()
	if err != nil {
		return err
	}
	defer unlock()
	show := newProgress(out)
	var ready prepared
	if err := rig.Run(ctx, ws.prepare(&ready, show), show.event); err != nil {
		return err
	}
	return f.power(ctx, out, ws, &ready, show)
}

// lock keeps two runs from sharing one folder.
func (ws workshop) lock() (func(), error) {
	if err := os.MkdirAll(ws.state, 0o700); err != nil {
		return nil, err
	}
	file, err := os.OpenFile(filepath.Join(ws.state, "lock"), os.O_CREATE|os.O_RDWR, 0o600)
	if err != nil {
		return nil, err
	}
	if err := syscall.Flock(int(file.Fd()), syscall.LOCK_EX|syscall.LOCK_NB); err != nil {
		file.Close()
		return nil, fmt.Errorf("another davit up runs in this checkout (%s): stop it first", ws.state)
	}
	return func() { file.Close() }, nil
}

// prepared is what prepare makes.
type prepared struct {
	set   *packages.Set
	image *rig.BuiltImage
	kvm   bool
}

// prepare are the steps that need no card: packages and image.
func (ws workshop) prepare(p *prepared, show *progress) []rig.Step {
	return []rig.Step{
		{Name: "packages", Limit: 30 * time.Minute, Do: func(ctx context.Context) (string, error) {
			cache, err := packages.Open(packages.Config{})
			if err != nil {
				return "", err
			}
			p.set, err = cache.Ensure(ctx, show.fetch, packages.Default()...)
			if err != nil {
				return "", err
			}
			_, version, err := p.set.Where(packages.QEMU)
			accel := "instances run on KVM"
			if why := cache.ProbeKVM(ctx, p.set); why != nil {
				accel = "instances are emulated: " + why.Error()
			} else {
				p.kvm = true
			}
			return "QEMU " + version + ", swtpm, firmware and kernels are here; " + accel, err
		}},
		{Name: "image", Limit: 30 * time.Minute, Do: func(ctx context.Context) (string, error) {
			b, err := ws.image(ctx, p.set, show.log())
			if err != nil {
				return "", err
			}
			p.image = b
			return fmt.Sprintf("signed UKI of %.1f MiB: kernel %s, initramfs %.1f MiB with %d files", mib(b.Size), b.Manifest.Uname,
				mib(b.Manifest.InitrdSize), len(b.Manifest.Entries)), nil
		}},
	}
}

func mib(n int) float64 { return float64(n) / (1 << 20) }

func (ws workshop) image(ctx context.Context, set *packages.Set, log *slog.Logger) (*rig.BuiltImage, error) {
	return rig.BuildImage(ctx, rig.ImageOptions{
		Source: ws.source, Set: set, Keys: filepath.Join(ws.state, "keys"), Out: filepath.Join(ws.state, "image"),
		Cache: filepath.Join(ws.state, "cache"), Log: log,
	})
}

// power brings the server up and stays until ctx ends, or not at all.
func (f *upFlags) power(ctx context.Context, out io.Writer, ws workshop, p *prepared, show *progress) error {
	run := filepath.Join(ws.state, "run")
	if !f.keep {
		if err := os.RemoveAll(run); err != nil {
			return err
		}
	}
	hostd, err := besides("davit-hostd")
	if err != nil {
		return err
	}
	server, err := rig.New(rig.Config{Dir: run, Set: p.set, UKI: p.image.UKI, Hostd: hostd, Boot: rig.Boot(f.boot), Pool: f.pool, KVM: p.kvm,
		Seed: rig.Seed{Dir: filepath.Join(ws.state, "seed")}})
	if err != nil {
		return err
	}
	defer func() {
		fmt.Fprintln(out, "stopping everything that was started")
		server.Close()
	}()
	operator := &rig.Operator{Server: server, KeyFile: filepath.Join(ws.state, "keys", "operator.key")}
	demo := rig.Demo{Disk: f.guestBoot == "disk", Load: f.load}
	steps := []rig.Step{{Name: "guest", Limit: 10 * time.Minute, Do: func(ctx context.Context) (string, error) {
		_, err := demo.Seed(ctx, p.set, ws.source, runtime.GOARCH, filepath.Join(ws.state, "seed"))
		return "the instance's kernel, initramfs and root disk, as an operator would flash them", err
	}}}
	steps = append(steps, server.PowerOn()...)
	steps = append(steps, operator.Attend()...)
	steps = append(steps, operator.Demonstrate(demo)...)
	if err := rig.Run(ctx, steps, show.event); err != nil {
		if ctx.Err() != nil {
			return errors.New("interrupted")
		}
		return err
	}
	if f.exitWhenReady {
		fmt.Fprintln(out, "ready: verified end to end")
		return nil
	}
	f.prompt(out)
	select {
	case <-ctx.Done():
		return nil
	case <-server.Card.Done():
		return server.Card.Failure()
	}
}

func (f *upFlags) prompt(out io.Writer) {
	fmt.Fprint(out, `
ready. In another terminal:
  bin/davit status                     what the card is doing, what was checked
  bin/davit attest                     fresh evidence, appraised
  bin/davit instance show demo         the instance and its disk
  bin/davit console instance/demo      a shell on it; Ctrl-] leaves
  bin/davit console card               the card's serial line
Ctrl-C stops everything.
`)
}

// besides finds a program of ours: they lie in one folder.
func besides(name string) (string, error) {
	self, err := os.Executable()
	if err != nil {
		return "", err
	}
	path := filepath.Join(filepath.Dir(self), name)
	if _, err := os.Stat(path); err != nil {
		return "", fmt.Errorf("%s is not beside %s: run make build", name, self)
	}
	return path, nil
}

// progress prints one line a step, and on a terminal what it is busy with.
type progress struct {
	out      io.Writer
	terminal bool
	begin    time.Time
}

func newProgress(out io.Writer) *progress {
	file, ok := out.(*os.File)
	return &progress{out: out, terminal: ok && term.IsTerminal(int(file.Fd())), begin: time.Now()}
}

func (p *progress) event(e rig.Event) {
	if e.Took == 0 {
		if p.terminal {
			fmt.Fprintf(p.out, "\r\033[K[%7.2fs] %-9s …", time.Since(p.begin).Seconds(), e.Step)
		}
		return
	}
	if p.terminal {
		fmt.Fprint(p.out, "\r\033[K")
	}
	result := "ok    "
	text := e.Proved
	if e.Err != nil {
		result, text = "FAILED", "see below"
	}
	fmt.Fprintf(p.out, "[%7.2fs] %-9s %s %5.1fs  %s\n", time.Since(p.begin).Seconds(), e.Step, result, e.Took.Seconds(), terminal.Escape(text))
}

// fetch shows what a fetch is busy with: it can take a minute the first time.
// Without a terminal each need gets one line, when it has arrived.
func (p *progress) fetch(s packages.Step) {
	if p.terminal {
		fmt.Fprint(p.out, "\r\033[K           ", s)
		return
	}
	if s.Phase == packages.PhaseReady || s.Need == "" {
		fmt.Fprintf(p.out, "           %s\n", s)
	}
}

// log shows the lines of a long build.
func (p *progress) log() *slog.Logger {
	return slog.New(slog.NewTextHandler(lineWriter{p}, &slog.HandlerOptions{
		ReplaceAttr: func(_ []string, a slog.Attr) slog.Attr {
			if a.Key == slog.TimeKey || a.Key == slog.LevelKey {
				return slog.Attr{}
			}
			return a
		},
	}))
}

// lineWriter prints a log line the way progress does.
type lineWriter struct{ p *progress }

// Write implements io.Writer for slog's handler: one call, one line.
func (w lineWriter) Write(line []byte) (int, error) {
	if w.p.terminal {
		fmt.Fprintf(w.p.out, "\r\033[K           %s", strings.TrimSpace(string(line)))
		return len(line), nil
	}
	_, err := fmt.Fprintf(w.p.out, "           %s", line)
	return len(line), err
}
