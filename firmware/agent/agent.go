// SPDX-License-Identifier: Apache-2.0

package agent

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"os"
	"path/filepath"
	"sync"
	"time"

	"github.com/davit-dpu/davit/board"
	"github.com/davit-dpu/davit/firmware/attest"
	"github.com/davit-dpu/davit/firmware/audit"
	"github.com/davit-dpu/davit/firmware/control"
	"github.com/davit-dpu/davit/firmware/dhcp"
	"github.com/davit-dpu/davit/firmware/instance"
	"github.com/davit-dpu/davit/firmware/mailbox"
	"github.com/davit-dpu/davit/firmware/mailbox/door"
	"github.com/davit-dpu/davit/firmware/measure"
	"github.com/davit-dpu/davit/firmware/spec"
	"github.com/davit-dpu/davit/firmware/state"
	"github.com/davit-dpu/davit/firmware/supervise/initctl"
	"github.com/davit-dpu/davit/firmware/tpm"
)

// Config says where the agent finds what it works with. Empty paths mean that
// the board has no such thing.
type Config struct {
	Board      board.Board
	ConfigFile string // the card's signed configuration
	StateDir   string // outlives reboots
	RunDir     string // does not: sockets, memory volumes, vcard
	TPM        string // device or swtpm's socket
	EventLog   string // init's event log, which the agent goes on with
	Firmware   string // the firmware's event log, as the kernel shows it
	BootReport string
	InitSocket string // to ask pid 1 for a reboot
	ResolvConf string // written with the lease's name servers

	Vcard     string   // program
	VcardArgs []string // its flags
	Pool      string   // loopback: the host's memory pool
	Disks     []string // loopback: file volumes offered on RunDir/disks/NAME.sock

	Version string
	Output  io.Writer    // log lines
	Ready   func() error // called once the doors are open; may be nil
}

// agent is the card's program. Its fields are set while it opens and never change;
// each component owns its own state.
type agent struct {
	cfg     Config
	config  *spec.CardConfig
	started time.Time
	logs    *logRing
	log     *slog.Logger

	tpm       *tpm.TPM
	measurer  *measure.Measurer
	attest    *attest.Service
	audit     *audit.Log
	instances *instance.Service
	mailbox   *mailbox.Mailbox
	vcard     *vcardLink
	doors     []*doorRunner
	busDoor   *door.Server
	cardID    string
	memory    error // why the host's pool could not be opened at start; nil

	network       *dhcp.Client // nil without DHCP
	selfAppraisal state.Cell[spec.Check]
	closers       []func() error // in opening order
	opened        chan struct{}  // closed once all fields above are set
}

// Run is the agent, from start to the end of ctx. It returns an error when it
// cannot begin; what fails later is retried and reported in status.
func Run(ctx context.Context, cfg Config) error {
	a := &agent{cfg: cfg, started: time.Now(), logs: newLogRing(cfg.Output), opened: make(chan struct{})}
	a.log = slog.New(slog.NewTextHandler(a.logs, nil))
	a.selfAppraisal.Set(spec.Check{Name: "measured-boot", Result: "not-checked", Detail: "the agent has just started"})
	defer func() {
		for i := len(a.closers) - 1; i >= 0; i-- {
			if err := a.closers[i](); err != nil {
				a.log.Warn("close", "err", err)
			}
		}
	}()
	ctx, cancel := context.WithCancel(ctx)
	var running sync.WaitGroup
	defer running.Wait() // before anything is closed
	defer cancel()
	err := a.open(ctx, []step{
		{"configuration", a.openConfig},
		{"folders", a.openFolders},
		{"vcard", a.openVcard},
		{"network", a.openNetwork},
	})
	if err != nil {
		return err
	}
	// Both take long and need nothing of what follows: they go on beside it. The
	// vcard waits with its host's memory until the agent is open.
	running.Go(func() { a.vcard.run(ctx) })
	running.Go(func() { a.runNetwork(ctx) })
	err = a.open(ctx, []step{
		{"tpm", a.openTPM},
		{"event log", a.openEventLog},
		{"attestation", a.openAttestation},
		{"audit log", a.openAudit},
		{"instances", a.openInstances},
		{"mailbox", a.openMailbox},
		{"doors", a.openDoors},
	})
	if err != nil {
		return err
	}
	close(a.opened)
	a.log.Info("davitd", "version", cfg.Version, "board", cfg.Board.Name, "card", a.cardID, "lifecycle", a.config.Lifecycle)
	a.serve(ctx)
	running.Wait()
	a.log.Info("davitd ends; vcards and instances go on")
	return nil
}

// serve runs the other components until ctx ends and all of them have.
func (a *agent) serve(ctx context.Context) {
	var wg sync.WaitGroup
	for _, run := range []func(context.Context){a.instances.Run, a.followVcardLog, a.appraiseSelf} {
		wg.Go(func() { run(ctx) })
	}
	tried := make(chan struct{}, len(a.doors))
	for _, d := range a.doors {
		wg.Go(func() { d.run(ctx, tried) })
	}
	wg.Go(func() { a.announce(ctx, tried) })
	wg.Wait()
}

// announce says that the agent is ready once it has tried to open all its
// doors; status tells which of them are open.
func (a *agent) announce(ctx context.Context, tried <-chan struct{}) {
	for range a.doors {
		select {
		case <-tried:
		case <-ctx.Done():
			return
		}
	}
	a.log.Info("ready for commands")
	if a.cfg.Ready != nil {
		if err := a.cfg.Ready(); err != nil {
			a.log.Warn("tell init that the agent is ready", "err", err)
		}
	}
}

func (a *agent) openConfig(context.Context) error {
	text, err := os.ReadFile(a.cfg.ConfigFile)
	if err != nil {
		return err
	}
	if a.config, err = spec.ParseCardConfig(text); err != nil {
		return err
	}
	if a.config.Board != "" && a.config.Board != a.cfg.Board.Name {
		return fmt.Errorf("the configuration is for board %s, this is %s", a.config.Board, a.cfg.Board.Name)
	}
	return a.checkLifecycle()
}

// checkLifecycle refuses an image whose kernel command line, by which init was
// strict or lenient, and whose configuration, by which the agent is, differ.
func (a *agent) checkLifecycle() error {
	if a.cfg.BootReport == "" {
		return nil
	}
	report, err := initctl.ReadReport(a.cfg.BootReport)
	if err != nil {
		return fmt.Errorf("lifecycle of the boot: %w", err)
	}
	if report.Lifecycle != a.config.Lifecycle {
		return fmt.Errorf("the card was booted as %q and is configured as %q: build an image in which both agree", report.Lifecycle, a.config.Lifecycle)
	}
	return nil
}

func (a *agent) openFolders(context.Context) error {
	for _, dir := range []string{a.cfg.StateDir, a.cfg.RunDir, filepath.Join(a.cfg.RunDir, "vcard", "0"), filepath.Join(a.cfg.RunDir, "disks")} {
		if err := os.MkdirAll(dir, 0o700); err != nil {
			return err
		}
	}
	return nil
}

// openTPM opens the TPM. A production card without one does not run: it could
// neither be identified nor prove what it is.
func (a *agent) openTPM(context.Context) error {
	if a.cfg.TPM == "" {
		if a.config.Lifecycle != spec.Development {
			return fmt.Errorf("board %s names no TPM, and a card in %s needs one", a.cfg.Board.Name, a.config.Lifecycle)
		}
		return nil
	}
	t, err := tpm.Open(a.cfg.TPM)
	if err != nil {
		return fmt.Errorf("%s: %w", a.cfg.TPM, err)
	}
	a.tpm = t
	a.closers = append(a.closers, t.Close)
	return nil
}

func (a *agent) openEventLog(ctx context.Context) error {
	if a.cfg.EventLog == "" {
		return nil
	}
	var err error
	if a.tpm == nil {
		a.measurer, err = measure.OpenUnanchored(a.cfg.EventLog)
	} else {
		var firmware []byte
		firmware, err = os.ReadFile(a.cfg.Firmware)
		if err != nil && !errors.Is(err, os.ErrNotExist) {
			return fmt.Errorf("firmware's event log: %w", err)
		}
		a.measurer, err = measure.Open(ctx, a.tpm, a.cfg.EventLog, firmware)
	}
	if errors.Is(err, measure.ErrBroken) && a.config.Lifecycle == spec.Development {
		a.log.Error("measurements are broken; evidence will say so and fail", "err", err)
		a.measurer = nil
		return nil
	}
	if err != nil {
		return err
	}
	a.closers = append(a.closers, a.measurer.Close)
	return nil
}

func (a *agent) openAttestation(ctx context.Context) error {
	cfg := attest.Config{
		TPM: a.tpm, KeyFile: filepath.Join(a.cfg.StateDir, "identity.key"),
		CardLogFile: a.cfg.EventLog, FirmwareLogFile: a.cfg.Firmware, BootReportFile: a.cfg.BootReport, Logger: a.log,
	}
	if a.tpm == nil {
		cfg.NoTPM = fmt.Sprintf("board %s has none", a.cfg.Board.Name)
	}
	if a.measurer != nil {
		cfg.CardLog = a.measurer
	}
	var err error
	if a.attest, err = attest.New(ctx, cfg); err != nil {
		return err
	}
	a.cardID = a.attest.CardID().String()
	return nil
}

func (a *agent) openAudit(context.Context) error {
	var err error
	a.audit, err = audit.Open(audit.Config{Dir: filepath.Join(a.cfg.StateDir, "audit"), Log: a.log})
	if err != nil {
		return err
	}
	a.closers = append(a.closers, a.audit.Close)
	return nil
}

// openVcard prepares the vcard's place. What the vcard wants of the rest of the
// agent it wants once that is open.
func (a *agent) openVcard(context.Context) error {
	a.vcard = &vcardLink{
		program: a.cfg.Vcard, args: a.cfg.VcardArgs, dir: filepath.Join(a.cfg.RunDir, "vcard", "0"),
		build: a.cfg.Version, host: a.hostPort(), log: a.log, opened: a.opened,
		observe: func(o instance.Observation) { a.instances.Observe(o) },
		onDoor:  a.serveBusDoor,
		local: localDisks{dir: filepath.Join(a.cfg.RunDir, "disks"), names: a.cfg.Disks,
			open: func(name string) (*os.File, error) {
				return a.instances.OpenVolume(name)
			}},
	}
	a.vcard.publish(spec.PhasePending, "not started yet")
	return nil
}

func (a *agent) hostPort() hostPort {
	return hostPort{board: a.cfg.Board.Bus, pool: a.cfg.Pool, socket: filepath.Join(a.cfg.RunDir, "bus.sock")}
}

// openInstances prepares the instances. A pool that cannot be opened leaves a
// card that runs nothing without room for instances, and shows it; the agent of
// one whose instances run ends instead, for init to start it again: it must not
// take what it cannot see for dead.
func (a *agent) openInstances(ctx context.Context) error {
	port := a.hostPort()
	var size spec.Bytes
	var err error
	if port.present() {
		size, err = port.poolSize(ctx)
	}
	if err != nil && instance.AnyStarted(a.cfg.StateDir) {
		return fmt.Errorf("the host's memory cannot be reached, and instances may be running in it: %w", err)
	}
	if err != nil {
		a.log.Error("the host's memory cannot be reached; restart the agent once it can", "err", err)
		a.memory = err
	}
	a.instances, err = instance.New(instance.Config{
		StateDir: a.cfg.StateDir, MemoryDir: filepath.Join(a.cfg.RunDir, "volumes"),
		Durable: a.cfg.Board.StatePartition != "", // loopback shares its host's power
		Pool:    size, Host: a.vcard, Log: a.log, Now: time.Now,
	})
	return err
}

func (a *agent) openMailbox(context.Context) error {
	keyring, err := mailbox.NewKeyring(a.config.Keys, a.config.Policy)
	if err != nil {
		return err
	}
	a.mailbox, err = mailbox.New(mailbox.Config{
		Card: a.cardID, Lifecycle: a.config.Lifecycle, Keyring: keyring, Ops: a.ops(),
		Receipt: a.attest.Signer(), Audit: a.audit, Log: a.log,
	})
	if err != nil {
		return err
	}
	a.closers = append(a.closers, func() error { a.mailbox.Close(); return nil })
	return nil
}

func (a *agent) openNetwork(context.Context) error {
	if !a.config.Management.DHCP {
		return nil
	}
	var err error
	a.network, err = dhcp.New(dhcp.Config{
		Interface: a.config.Management.Interface, Hostname: a.config.Name, ResolvConf: a.cfg.ResolvConf, Log: a.log,
	})
	return err
}

func (a *agent) runNetwork(ctx context.Context) {
	if a.network == nil {
		return
	}
	if err := a.network.Run(ctx); err != nil {
		a.log.Error("management network", "err", err)
	}
}

func (a *agent) followVcardLog(ctx context.Context) {
	if err := a.logs.follow(ctx, a.vcard.path("log"), "vcard: "); err != nil {
		a.log.Error("follow the vcard's log", "err", err)
	}
}

// serveBusDoor serves one mailbox client on the host, for as long as the vcard
// carries its bytes.
func (a *agent) serveBusDoor(ctx context.Context, c *control.Client, id uint64) {
	a.busDoor.ServeConn(ctx, c.Door(ctx, id), "host")
}
