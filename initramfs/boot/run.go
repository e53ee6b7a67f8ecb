// SPDX-License-Identifier: Apache-2.0

package boot

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/signal"
	"syscall"
	"time"

	"golang.org/x/sys/unix"

	"github.com/davit-dpu/davit/firmware/supervise"
	"github.com/davit-dpu/davit/firmware/supervise/initctl"
)

// ErrNotPID1 says that Run was called by another process than pid 1.
var ErrNotPID1 = errors.New("init: not pid 1: it would take this machine over")

// signals maps what pid 1 is sent to what it does, as BusyBox has it. SIGINT is
// the kernel's word for Ctrl-Alt-Del.
var signals = map[os.Signal]initctl.Word{
	syscall.SIGTERM: initctl.Reboot,
	syscall.SIGINT:  initctl.Reboot,
	syscall.SIGUSR1: initctl.PowerOff,
	syscall.SIGUSR2: initctl.PowerOff,
	unix.SIGPWR:     initctl.PowerOff,
}

// Run boots the card, keeps it running and takes it down. As pid 1 it does not
// return.
func Run(cfg Config) error {
	if os.Getpid() != 1 {
		return ErrNotPID1
	}
	newMachine(cfg, sinceUp).run(steps)
	return nil
}

// run does not return, unless reboot(2) ends less than the machine.
func (m *machine) run(table []step) {
	end := initctl.PowerOff
	if p := caught("init", &m.term, func() { end = m.live(table) }); p != nil {
		m.holdBeforePowerOff(p)
	}
	m.shutDown(end)
	// Only when reboot(2) failed: pid 1 must not return.
	select {}
}

// live is the life of the card up to its clean stop.
func (m *machine) live(table []step) initctl.Word {
	// Ctrl-Alt-Del is to send SIGINT instead of rebooting at once. It fails in
	// a container, where there is none.
	_ = unix.Reboot(unix.LINUX_REBOOT_CMD_CAD_OFF)
	ctx := context.Background()
	guard("reaper", &m.term, func() {
		m.reaper.Run(ctx, func(pid int, e supervise.Exit) { m.term.line("orphan pid %d: %s", pid, e) })
	})
	sig := make(chan os.Signal, 4)
	for s := range signals {
		signal.Notify(sig, s)
	}
	err := m.work(ctx, table)
	m.publish()
	if err != nil {
		return m.holdBeforePowerOff(err)
	}
	return m.keep(ctx, sig)
}

// keep supervises until somebody asks for the end. While the card runs it is the
// only place that pings the watchdog: when it hangs, the card is reset.
func (m *machine) keep(ctx context.Context, sig <-chan os.Signal) initctl.Word {
	ticks, stop := m.watchdog.ticks()
	defer stop()
	for {
		select {
		case <-m.follow():
		case <-ticks:
			m.ping()
		case s := <-sig:
			m.term.line("signal %v: %s", s, signals[s])
			return signals[s]
		case w := <-m.requests:
			m.term.line("asked to %s", w)
			return w
		case err := <-m.gaveUp:
			m.term.line("%v", err)
			m.stop, m.gaveUp = nil, nil
			m.rescued = m.offerRescue()
		case err := <-m.rescued:
			m.rescued = nil
			if err != nil {
				m.term.line("%v; davitd is started again in %v", err, m.cfg.CoolDown)
				m.retry = time.After(m.cfg.CoolDown)
				continue
			}
			m.restartAgent(ctx)
		case <-m.retry:
			m.retry = nil
			m.restartAgent(ctx)
		}
	}
}

func (m *machine) ping() {
	if err := m.watchdog.ping(); err != nil {
		m.term.line("%v", err)
	}
}

// restartAgent begins supervision anew, or tries to later.
func (m *machine) restartAgent(ctx context.Context) {
	if err := m.superviseAgent(ctx); err != nil {
		m.term.line("%v", err)
		m.retry = time.After(m.cfg.CoolDown)
	}
}

// offerRescue runs the rescue shell beside us, and gives its end.
func (m *machine) offerRescue() <-chan error {
	done := make(chan error, 1)
	guard("rescue", &m.term, func() {
		err := errors.New("rescue shell: ended by a panic")
		defer func() { done <- err }()
		err = m.rescue()
	})
	return done
}

// holdBeforePowerOff leaves the reason on the consoles for a while. The
// watchdog goes on being pinged: a reset would make this a reboot loop.
func (m *machine) holdBeforePowerOff(reason error) initctl.Word {
	m.state.Store(initctl.Stopping)
	m.term.critical("CRITICAL ERROR: %v", reason)
	m.term.critical("power-off in %v", m.cfg.StopDelay)
	ticks, stop := m.watchdog.ticks()
	defer stop()
	over := time.NewTimer(m.cfg.StopDelay)
	defer over.Stop()
	for {
		select {
		case <-over.C:
			return initctl.PowerOff
		case <-ticks:
			m.ping()
		}
	}
}

// shutDown stops everything in order and ends the machine.
func (m *machine) shutDown(w initctl.Word) {
	m.state.Store(initctl.Stopping)
	m.during(m.cfg.Grace+stopMargin, m.stopAgent)
	m.during(m.cfg.Grace+stopMargin, m.stopRest)
	m.during(unmountWithin, func() {
		if err := unmountData(m.cfg.StateDir); err != nil {
			m.term.line("%v", err)
		}
	})
	if n := m.term.consoles.dropped(); n > 0 {
		m.term.line("%d console lines were lost", n)
	}
	m.term.line("%s", w)
	m.term.consoles.drain(3 * time.Second)
	if err := m.watchdog.disarm(); err != nil {
		m.term.critical("%v", err)
	}
	m.end(w)
}

// Bounds of the stages of the end: from then on they count as hung.
const (
	stopMargin    = 10 * time.Second // beyond what a stage that stops processes allows them
	unmountWithin = 3 * time.Minute  // writing back all that is dirty, to a slow medium
)

// during runs one stage of the end and pings the watchdog meanwhile, but no
// longer than within: a slow stage must not be reset in the middle of an
// unmount, and one that hangs must be.
func (m *machine) during(within time.Duration, stage func()) {
	m.ping()
	over, fed := time.NewTimer(within), make(chan struct{})
	done := make(chan struct{})
	guard("watchdog", &m.term, func() {
		defer close(fed)
		ticks, stop := m.watchdog.ticks()
		defer stop()
		for {
			select {
			case <-ticks:
				m.ping()
			case <-over.C:
				return
			case <-done:
				return
			}
		}
	})
	defer func() {
		over.Stop()
		close(done)
		<-fed // a ping after the magic character would take that back
	}()
	stage()
}

func (m *machine) stopAgent() {
	if m.stop == nil {
		return
	}
	m.stop()
	m.term.line("stopping davitd")
	t := time.NewTimer(m.cfg.Grace + 5*time.Second)
	defer t.Stop()
	select {
	case <-m.gaveUp: // Run has returned, for whatever reason
	case <-t.C:
		m.term.line("davitd does not end")
	}
}

// stopRest ends every other process, the vcards among them.
func (m *machine) stopRest() {
	for _, s := range []syscall.Signal{syscall.SIGTERM, syscall.SIGKILL} {
		// ESRCH: nobody is left.
		if err := syscall.Kill(-1, s); errors.Is(err, syscall.ESRCH) {
			return
		}
		ctx, cancel := context.WithTimeout(context.Background(), m.cfg.Grace/2)
		err := m.reaper.WaitEmpty(ctx)
		cancel()
		if err == nil {
			return
		}
		m.term.line("processes are left after %v", s)
	}
}

// end calls reboot(2). Power-off falls back to halt, for a board that cannot.
func (m *machine) end(w initctl.Word) {
	commands := []int{unix.LINUX_REBOOT_CMD_POWER_OFF, unix.LINUX_REBOOT_CMD_HALT}
	if w == initctl.Reboot {
		commands = []int{unix.LINUX_REBOOT_CMD_RESTART}
	}
	for _, c := range commands {
		err := unix.Reboot(c)
		m.term.critical("%v", fmt.Errorf("%s: reboot(%#x): %w", w, c, err))
	}
}
