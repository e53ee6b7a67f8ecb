// SPDX-License-Identifier: Apache-2.0

package agent

import (
	"fmt"
	"os"
	"time"

	"golang.org/x/sys/unix"

	"github.com/davit-dpu/davit/firmware/spec"
	"github.com/davit-dpu/davit/firmware/supervise/initctl"
)

// status is the card as it is now, put together from what each owner publishes.
func (a *agent) status() spec.CardStatus {
	now := time.Now()
	st := spec.CardStatus{
		Name: a.config.Name, CardID: a.cardID, Board: a.cfg.Board.Name, Lifecycle: a.config.Lifecycle,
		Version: a.cfg.Version, Booted: a.booted(now), Time: now, Checks: a.checks(), Instances: len(a.instances.List()),
	}
	vcard, _ := a.vcard.condition.Get()
	st.Components = append(st.Components,
		spec.Component{Name: "agent", Memory: a.memoryOf(os.Getpid()), Condition: spec.Condition{Phase: spec.PhaseReady, Reason: "answers", Since: a.started}},
		spec.Component{Name: "vcard", Memory: a.vcardMemory(), Condition: vcard},
		spec.Component{Name: "host", Condition: a.hostCondition(vcard)})
	if a.memory != nil {
		st.Components = append(st.Components, spec.Component{Name: "host memory",
			Condition: spec.Condition{Phase: spec.PhaseFailed, Reason: a.memory.Error(), Since: a.started}})
	}
	for _, d := range a.doors {
		st.Components = append(st.Components, spec.Component{Name: "door " + d.name, Condition: d.current()})
	}
	if a.network != nil {
		lease, _ := a.network.Status()
		st.Network = &lease
		st.Components = append(st.Components, spec.Component{Name: "network", Condition: lease.Condition})
	}
	st.Condition, st.Alerts = summary(st.Components, st.Checks, a.started)
	if s, _ := a.vcard.status.Get(); s != nil && s.Host.Alerts > 0 {
		st.Alerts = append(st.Alerts, fmt.Sprintf("host: %d violations of a protocol by it or its guests since the vcard started; the log names them", s.Host.Alerts))
	}
	if err, _ := a.vcard.local.result.Get(); err != nil {
		st.Alerts = append(st.Alerts, err.Error())
	}
	if err := a.audit.Err(); err != nil {
		st.Alerts = append(st.Alerts, "audit: "+err.Error())
	}
	return st
}

// booted is when the card's kernel started; on the loopback board, which is not
// a machine of its own, when the agent did.
func (a *agent) booted(now time.Time) time.Time {
	var info unix.Sysinfo_t
	if a.cfg.BootReport == "" || unix.Sysinfo(&info) != nil {
		return a.started
	}
	return now.Add(-time.Duration(info.Uptime) * time.Second)
}

func (a *agent) hostCondition(vcard spec.Condition) spec.Condition {
	if vcard.Phase != spec.PhaseReady {
		return spec.Condition{Phase: spec.PhaseUnknown, Reason: "the vcard, which sees the host, is down", Since: vcard.Since}
	}
	if s, _ := a.vcard.status.Get(); s != nil {
		return s.Host.Condition
	}
	return vcard
}

// summary is the worst of all: a card is ready when everything it needs for
// serving is. A host that is not connected is no fault of the card.
func summary(components []spec.Component, checks []spec.Check, started time.Time) (spec.Condition, []string) {
	worst := spec.Condition{Phase: spec.PhaseReady, Reason: "all components are ready", Since: started}
	var alerts []string
	for _, c := range components {
		switch {
		case c.Phase == spec.PhaseReady:
			if c.Since.After(worst.Since) && worst.Phase == spec.PhaseReady {
				worst.Since = c.Since
			}
		case c.Name == "host":
			alerts = append(alerts, "host: "+c.Reason)
		default:
			alerts = append(alerts, fmt.Sprintf("%s is %s: %s", c.Name, c.Phase, c.Reason))
			if worst.Phase == spec.PhaseReady || c.Phase == spec.PhaseFailed {
				worst = spec.Condition{Phase: c.Phase, Reason: c.Name + ": " + c.Reason, Since: c.Since}
			}
		}
	}
	for _, c := range checks {
		if c.Result == "failed" {
			alerts = append(alerts, fmt.Sprintf("check %s failed: %s", c.Name, c.Detail))
		}
	}
	return worst, alerts
}

// checks says what was verified, and what nobody has verified yet.
func (a *agent) checks() []spec.Check {
	checks := []spec.Check{a.bootCheck(), a.measuredCheck()}
	if v, err := a.vcard.current(); err == nil {
		for _, c := range v.Peer().Sandbox {
			c.Name = "sandbox " + c.Name
			checks = append(checks, c)
		}
	} else {
		checks = append(checks, spec.Check{Name: "sandbox", Result: "not-checked", Detail: err.Error()})
	}
	return append(checks,
		spec.Check{Name: "secure-boot", Result: "not-checked", Detail: "the agent does not check what the firmware verified before it started the image"},
		spec.Check{Name: "sealed-state", Result: "not-checked", Detail: "the card's storage is not sealed to a boot state"},
		spec.Check{Name: "host", Result: "not-checked", Detail: "nothing that the host runs has been validated; it is treated as hostile"},
	)
}

// bootCheck is init's own report.
func (a *agent) bootCheck() spec.Check {
	c := spec.Check{Name: "boot", Result: "not-checked"}
	if a.cfg.BootReport == "" {
		c.Detail = "this board is not booted by Davit's init"
		return c
	}
	report, err := initctl.ReadReport(a.cfg.BootReport)
	if err != nil {
		c.Result, c.Detail = "failed", err.Error()
		return c
	}
	skipped := 0
	c.Result = "passed"
	for _, step := range report.Steps {
		switch {
		case step.Result == initctl.Failed:
			c.Result, c.Detail = "failed", step.Name+": "+step.Detail
			return c
		case step.Result == initctl.Pending, step.Result == initctl.Skipped && step.Required:
			c.Result, c.Detail = "not-checked", fmt.Sprintf("%s: %s %s", step.Name, step.Result, step.Detail)
		case step.Result == initctl.Skipped:
			skipped++
		}
	}
	if c.Detail == "" {
		c.Detail = fmt.Sprintf("%d steps, of which %d had nothing to do", len(report.Steps), skipped)
	}
	return c
}

// measuredCheck is what the agent found when it appraised its own evidence.
func (a *agent) measuredCheck() spec.Check {
	c, _ := a.selfAppraisal.Get()
	return c
}
