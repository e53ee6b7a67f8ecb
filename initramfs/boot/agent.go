// SPDX-License-Identifier: Apache-2.0

package boot

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"syscall"

	"github.com/davit-dpu/davit/firmware/spec"
	"github.com/davit-dpu/davit/firmware/supervise"
	"github.com/davit-dpu/davit/firmware/supervise/initctl"
)

// agentEnv is all that davitd inherits.
var agentEnv = []string{"PATH=/davit:/bin:/sbin", "HOME=/var/lib/davit", "TMPDIR=/tmp"}

// stepAgent begins to supervise davitd. That it became ready is said later.
func stepAgent(ctx context.Context, m *machine) (string, error) {
	m.publish() // davitd reads it as soon as it runs
	if err := m.superviseAgent(ctx); err != nil {
		return "", err
	}
	return "started under supervision", nil
}

func (m *machine) superviseAgent(ctx context.Context) error {
	policy := supervise.DefaultPolicy
	if !m.canRescue() {
		policy.CoolDown = m.cfg.CoolDown
	}
	s, err := supervise.New(supervise.Config{
		Name:        "davitd",
		Start:       m.startAgent,
		Policy:      policy,
		ReadyWithin: m.cfg.ReadyWithin,
		Grace:       m.cfg.Grace,
		Log:         m.log,
	})
	if err != nil {
		return err
	}
	ctx, m.stop = context.WithCancel(ctx)
	gaveUp := make(chan error, 1)
	m.steward, m.gaveUp = s, gaveUp
	m.state.Store(initctl.Running)
	guard("supervisor", &m.term, func() {
		err := errors.New("davitd: supervision ended by a panic")
		defer func() { gaveUp <- err }()
		err = s.Run(ctx)
	})
	return nil
}

// startAgent starts davitd from the copy that was measured. Only development
// gets here without one.
func (m *machine) startAgent(context.Context) (supervise.Process, error) {
	c := supervise.Command{
		Path:   m.cfg.Agent,
		Env:    agentEnv,
		Output: &m.term,
		Notify: true,
	}
	if m.agent != nil {
		c.Path, c.Name = m.agent.ExecPath(), m.cfg.Agent
	} else if m.strict() {
		return nil, fmt.Errorf("%s was not measured", m.cfg.Agent)
	}
	child, err := supervise.Start(c, m.reaper)
	if err != nil {
		return nil, err
	}
	return child, nil
}

// follow shows davitd's newest status and gives the channel of the next one.
func (m *machine) follow() <-chan struct{} {
	if m.steward == nil {
		return nil
	}
	s, changed := m.steward.Status()
	if s.Since.Equal(m.shown) {
		return changed
	}
	m.shown = s.Since
	state := initctl.Running
	if s.Cooling || s.Phase == spec.PhaseFailed {
		state = initctl.Cooling
	}
	m.state.Store(state)
	if s.Phase == spec.PhaseReady {
		m.term.line("%-17s %-7s pid %d, %d restarts", "davitd", s.Phase, s.Identity.PID, s.Restarts)
	}
	return changed
}

// shell is the rescue shell; "" when the image has none, as in production.
func (m *machine) shell() string {
	for _, path := range m.cfg.Shells {
		if info, err := os.Stat(path); err == nil && info.Mode().IsRegular() {
			return path
		}
	}
	return ""
}

// canRescue says whether a shell may and can be offered.
func (m *machine) canRescue() bool {
	return !m.strict() && len(m.ttys) > 0 && m.shell() != ""
}

// rescue runs a shell on the last console and waits for its end.
func (m *machine) rescue() error {
	if !m.canRescue() {
		return errors.New("rescue shell: none in this lifecycle or image, or no console")
	}
	tty, err := os.OpenFile(filepath.Join("/dev", m.ttys[len(m.ttys)-1]), os.O_RDWR|syscall.O_NOCTTY, 0)
	if err != nil {
		return fmt.Errorf("rescue shell: %w", err)
	}
	defer tty.Close()
	child, err := supervise.Start(supervise.Command{
		Path:        m.shell(),
		Env:         append([]string{"TERM=vt100"}, agentEnv...),
		Input:       tty,
		OutputFile:  tty,
		SysProcAttr: &syscall.SysProcAttr{Setsid: true, Setctty: true, Ctty: 0},
	}, m.reaper)
	if err != nil {
		return fmt.Errorf("rescue shell: %w", err)
	}
	m.term.line("rescue shell on %s; davitd is started again when it ends", tty.Name())
	m.term.line("rescue shell: %s", child.Exit())
	return nil
}
