// SPDX-License-Identifier: Apache-2.0

package host

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"time"

	"golang.org/x/sync/errgroup"

	"github.com/davit-dpu/davit/firmware/bus"
	"github.com/davit-dpu/davit/firmware/spec"
	"github.com/davit-dpu/davit/firmware/state"
)

// Config is how a Host was started. Bus, Pool, RunDir and QEMU are required.
type Config struct {
	Dial       bus.DialFunc // the way to the card
	Pool       string       // the memory pool's file
	RunDir     string
	QEMU       string   // path or name on PATH of qemu-system-ARCH
	QEMUArgs   []string // put before all others, for a QEMU that is not installed
	Accel      Accel
	UEFICode   string // read-only firmware image, "" if there is none
	UEFIVars   string // its variables, copied for each start
	KillOnExit bool   // kill all VMMs when Run ends
	Build      string
	Log        *slog.Logger
}

// killWait bounds how long a killed VMM may take to be gone: the kernel has to
// give back its memory.
const killWait = 10 * time.Second

// Host carries out a card's orders. It implements bus.VMMs.
type Host struct {
	cfg     Config
	log     *slog.Logger
	dir     *runDir
	pool    *pool
	machine func(context.Context) (machine, error) // what QEMU can do here; probed once

	door    *net.UnixListener
	session state.Cell[*bus.Session]     // nil while there is none
	running state.Cell[[]*vmm]           // set with mu held
	report  state.Cell[[]spec.VMMStatus] // set with mu held

	watching sync.WaitGroup

	mu     sync.Mutex
	vmms   map[string]*vmm           // guarded by mu; by instance
	exited map[string]spec.VMMStatus // guarded by mu; the last end of each instance that does not run
}

var _ bus.VMMs = (*Host)(nil)

// Open prepares a Host and adopts what its predecessor left running. The caller
// calls Run, then Close.
func Open(ctx context.Context, cfg Config) (*Host, error) {
	if cfg.Log == nil {
		cfg.Log = slog.New(slog.DiscardHandler)
	}
	if err := cfg.resolve(); err != nil {
		return nil, fmt.Errorf("open host: %w", err)
	}
	p, err := openPool(cfg.Pool)
	if err != nil {
		return nil, fmt.Errorf("open host: %w", err)
	}
	lctx, cancel := context.WithTimeout(ctx, 5*time.Second)
	defer cancel()
	dir, err := openRunDir(lctx, cfg.RunDir)
	if err != nil {
		return nil, errors.Join(fmt.Errorf("open host: %w", err), p.file.Close())
	}
	h := &Host{cfg: cfg, log: cfg.Log, dir: dir, pool: p, vmms: map[string]*vmm{}}
	h.machine = onceMachine(cfg)
	if h.exited, err = dir.tombstones(); err == nil {
		err = h.adoptAll()
	}
	if err == nil {
		h.door, err = listen(dir.path, MailboxSocket)
	}
	if err != nil {
		return nil, errors.Join(fmt.Errorf("open host: %w", err), h.Close())
	}
	h.publish()
	return h, nil
}

// resolve makes all paths absolute: VMMs work in directories of their own.
func (c *Config) resolve() error {
	qemu, err := exec.LookPath(c.QEMU)
	if err != nil {
		return err
	}
	c.QEMU = qemu
	for _, p := range []*string{&c.Pool, &c.QEMU, &c.UEFICode, &c.UEFIVars} {
		if *p == "" {
			continue
		}
		if *p, err = filepath.Abs(*p); err != nil {
			return err
		}
	}
	if (c.UEFICode == "") != (c.UEFIVars == "") {
		return errors.New("UEFI firmware needs both a code and a variables file")
	}
	return nil
}

// Close gives back the run directory. VMMs go on, unless KillOnExit is set.
func (h *Host) Close() error {
	h.mu.Lock()
	all := h.runningLocked()
	h.mu.Unlock()
	var err error
	for _, v := range all {
		if h.cfg.KillOnExit {
			v.killed.Store(true)
			if kerr := v.proc.kill(); kerr == nil {
				continue // its watcher ends when the process has
			} else {
				err = errors.Join(err, kerr)
			}
		}
		err = errors.Join(err, v.proc.pidfd.Close()) // ends its watcher, not the process
	}
	h.watching.Wait()
	if h.door != nil {
		if cerr := h.door.Close(); !errors.Is(cerr, net.ErrClosed) {
			err = errors.Join(err, cerr)
		}
		err = errors.Join(err, os.Remove(filepath.Join(h.dir.path, MailboxSocket)))
	}
	return errors.Join(err, h.pool.file.Close(), h.dir.close())
}

// Run serves the card until ctx ends, through any number of sessions.
func (h *Host) Run(ctx context.Context) error {
	cfg := bus.Config{Role: bus.Host, Build: h.cfg.Build, PoolSize: h.pool.size, Log: h.log}
	g, ctx := errgroup.WithContext(ctx)
	g.Go(func() error { return bus.Run(ctx, cfg, h.cfg.Dial, h.serveSession) })
	g.Go(func() error { return h.serveDoor(ctx) })
	g.Go(func() error {
		_, _ = h.machine(ctx) // so that the first order need not wait; the order reports a failure
		return nil
	})
	return g.Wait()
}

// Start implements bus.VMMs.
func (h *Host) Start(ctx context.Context, order spec.VMMOrder) (spec.VMMStatus, error) {
	if err := order.Validate(spec.Bytes(h.pool.size)); err != nil {
		return spec.VMMStatus{}, err
	}
	order.Generation = strings.ToLower(order.Generation)
	if st, err := h.settled(&order); st != nil || err != nil {
		if err != nil {
			return spec.VMMStatus{}, err
		}
		return *st, nil
	}
	m, err := h.machine(ctx)
	if err != nil {
		return spec.VMMStatus{}, err
	}
	v, err := h.launch(m, &order)
	if err != nil {
		return spec.VMMStatus{}, err
	}
	h.log.Info("VMM started", "instance", order.Instance, "generation", order.Generation, "pid", v.proc.pid, "accel", string(m.accel))
	h.mu.Lock()
	defer h.mu.Unlock()
	delete(h.exited, order.Instance)
	h.watchLocked(v)
	return v.status(), nil
}

// settled answers an order that was carried out before, and refuses one that
// contradicts what runs. Nil and nil mean that there is something to do.
func (h *Host) settled(order *spec.VMMOrder) (*spec.VMMStatus, error) {
	h.mu.Lock()
	defer h.mu.Unlock()
	if v := h.vmms[order.Instance]; v != nil {
		if v.order.Generation != order.Generation {
			return nil, fmt.Errorf("%s runs generation %s", order.Instance, v.order.Generation)
		}
		st := v.status()
		return &st, nil
	}
	if st, ok := h.exited[order.Instance]; ok && st.Generation == order.Generation {
		return &st, nil
	}
	if len(h.vmms) >= bus.MaxVMMs/2 {
		return nil, fmt.Errorf("%d VMMs run", len(h.vmms))
	}
	for _, v := range h.vmms {
		if v.overlaps(order) {
			return nil, fmt.Errorf("memory of %s is in use by %s", order.Instance, v.order.Instance)
		}
	}
	return nil, nil
}

// Kill implements bus.VMMs.
func (h *Host) Kill(ctx context.Context, ref bus.VMMRef) error {
	h.mu.Lock()
	v := h.vmms[ref.Instance]
	h.mu.Unlock()
	if v == nil || v.order.Generation != strings.ToLower(ref.Generation) {
		return nil
	}
	v.killed.Store(true)
	if err := v.proc.kill(); err != nil {
		return err
	}
	ctx, cancel := context.WithTimeout(ctx, killWait)
	defer cancel()
	select {
	case <-v.done:
		return nil
	case <-ctx.Done():
		return fmt.Errorf("process %d is still there: %w", v.proc.pid, ctx.Err())
	}
}

// List implements bus.VMMs.
func (h *Host) List() []spec.VMMStatus {
	list, _ := h.report.Get()
	return slices.Clone(list)
}

// adoptAll looks at every directory a predecessor left. One that is in disorder
// is no reason not to serve the others.
func (h *Host) adoptAll() error {
	names, err := h.dir.instances()
	if err != nil {
		return err
	}
	h.mu.Lock()
	defer h.mu.Unlock()
	for _, name := range names {
		v, order, err := adopt(h.dir.vmm(name))
		if err == nil {
			err = h.adoptedLocked(v)
		}
		switch {
		case err == nil:
		case errors.Is(err, errGone):
			st := spec.VMMStatus{Instance: name, Generation: order.Generation, State: spec.VMMExited,
				Reason: "exit status unknown: it ended while no hostd ran"}
			if err := h.dir.bury(st); err != nil {
				h.log.Error("VMM left something behind", "instance", name, "err", err)
			}
			h.exited[name] = st
		case order == nil: // nobody could say what it is, so nothing may go on in it
			n, kerr := killIn(h.dir.vmm(name))
			if kerr == nil {
				kerr = os.RemoveAll(h.dir.vmm(name))
			}
			if kerr != nil {
				h.log.Error("unfinished VMM directory stays", "instance", name, "reason", err, "err", kerr)
				continue
			}
			h.log.Warn("removed an unfinished VMM directory", "instance", name, "killed", n, "reason", err)
		default: // it may run, in memory that would be given to others
			return fmt.Errorf("adopt VMM of %s: %w", name, err)
		}
	}
	return nil
}

// adoptedLocked takes over a VMM that was found. errGone says that it has ended
// meanwhile. Called with mu held.
func (h *Host) adoptedLocked(v *vmm) error {
	err := v.recordAgain()
	if errors.Is(err, errGone) {
		return err
	}
	if err != nil { // the next hostd finds it by the old record, or without
		h.log.Warn("adopted VMM is not recorded", "instance", v.order.Instance, "err", err)
	}
	h.log.Info("VMM adopted", "instance", v.order.Instance, "generation", v.order.Generation, "pid", v.proc.pid)
	delete(h.exited, v.order.Instance) // of an earlier start
	h.watchLocked(v)
	return nil
}

// watchLocked makes a VMM known and follows it to its end. Called with mu held.
func (h *Host) watchLocked(v *vmm) {
	v.console = newConsole(v.dir)
	h.vmms[v.order.Instance] = v
	h.publishLocked()
	h.watching.Go(func() {
		ctx, cancel := context.WithCancel(context.Background())
		var tasks sync.WaitGroup
		tasks.Go(func() { v.console.pump(ctx) })
		tasks.Go(func() {
			boundLog(ctx, filepath.Join(v.dir, logFile), func(err error) { // the VMM is worth more than the space
				h.log.Warn("the VMM's output is not bounded", "instance", v.order.Instance, "err", err)
			})
		})
		reason, err := v.await()
		cancel()
		tasks.Wait()
		if err != nil {
			h.log.Debug("VMM left to the next hostd", "instance", v.order.Instance, "reason", err)
			return
		}
		h.buried(v, reason)
	})
}

// buried records the end of a VMM.
func (h *Host) buried(v *vmm, reason string) {
	st := spec.VMMStatus{Instance: v.order.Instance, Generation: v.order.Generation, State: spec.VMMExited,
		Reason: reason[:min(len(reason), bus.MaxReason)], Adopted: v.child == nil}
	h.log.Info("VMM exited", "instance", st.Instance, "generation", st.Generation, "reason", st.Reason)
	h.mu.Lock()
	defer h.mu.Unlock()
	defer close(v.done)
	v.close() // devices may just be trying to be connected again
	if err := errors.Join(h.dir.bury(st), v.proc.pidfd.Close()); err != nil {
		h.log.Error("VMM left something behind", "instance", st.Instance, "err", err)
	}
	delete(h.vmms, st.Instance)
	h.exited[st.Instance] = st
	h.publishLocked()
}

func (h *Host) publish() {
	h.mu.Lock()
	defer h.mu.Unlock()
	h.publishLocked()
}

func (h *Host) runningLocked() []*vmm {
	var all []*vmm
	for _, v := range h.vmms {
		all = append(all, v)
	}
	return all
}

// publishLocked tells sessions what runs and what has exited. The number of
// tombstones is bounded: those that do not fit the report are forgotten.
func (h *Host) publishLocked() {
	all := h.runningLocked()
	h.running.Set(all)
	var list []spec.VMMStatus
	for _, v := range all {
		list = append(list, v.status())
	}
	for name, st := range h.exited {
		if len(list) == bus.MaxVMMs {
			delete(h.exited, name)
			_ = os.Remove(h.dir.exited(name)) // read again, and forgotten again, by the next hostd
			continue
		}
		list = append(list, st)
	}
	slices.SortFunc(list, func(a, b spec.VMMStatus) int { return strings.Compare(a.Instance, b.Instance) })
	h.report.Set(list)
}
