// SPDX-License-Identifier: Apache-2.0

package boot

import (
	"context"
	"errors"
	"fmt"

	"github.com/davit-dpu/davit/firmware/spec"
	"github.com/davit-dpu/davit/firmware/supervise/initctl"
)

// step is one row of the boot table.
type step struct {
	name string
	need need
	run  func(ctx context.Context, m *machine) (detail string, err error)
}

// need says whether the boot goes on without a step.
type need bool

const (
	required need = true  // its failure stops the boot, except in development
	optional need = false // its failure is reported
)

// steps is the boot, from top to bottom.
var steps = []step{
	{"mounts", required, stepMounts},
	{"read ahead", optional, stepCapture},
	{"lifecycle", required, stepLifecycle},
	{"board", optional, stepBoard},
	{"console", optional, stepConsole},
	{"sysctl", required, stepSysctl},
	{"modules", optional, stepModules},
	{"clock", optional, stepClock},
	{"watchdog", optional, stepWatchdog},
	{"hostname", optional, stepHostname},
	{"loopback", required, stepLoopback},
	{"tpm", required, stepTPM},
	{"measure lifecycle", required, stepMeasureLifecycle},
	{"measure init", required, stepMeasureInit},
	{"measure modules", required, stepMeasureModules},
	{"measure davitd", required, stepMeasureAgent},
	{"measure vcard", required, stepMeasureVcard},
	{"measure config", required, stepMeasureConfig},
	{"log handed over", required, stepCloseLog},
	{"data", required, stepData},
	{"root read-only", required, stepSealRoot},
	{"control", required, stepControl},
	{"davitd", required, stepAgent},
}

// skipped is the reason why a step had nothing to do.
type skipped string

func (s skipped) Error() string { return string(s) }

func skip(why string) error { return skipped(why) }

// errStopped is why a boot does not go on.
var errStopped = errors.New("boot stopped")

// work runs the table. It fails at the first required step that does, unless
// the lifecycle is development.
func (m *machine) work(ctx context.Context, table []step) error {
	m.report.Steps = make([]initctl.Step, len(table))
	for i, s := range table {
		m.report.Steps[i] = initctl.Step{Name: s.name, Required: bool(s.need), Result: initctl.Pending}
	}
	for i, s := range table {
		row := &m.report.Steps[i]
		m.do(ctx, s, row)
		m.say(row)
		if err := m.watchdog.ping(); err != nil {
			m.term.line("%v", err)
		}
		if row.Result != initctl.OK && bool(s.need) && m.strict() {
			return fmt.Errorf("%w: %s: %s", errStopped, s.name, row.Detail)
		}
	}
	return nil
}

// do runs one step. A panic in it is its failure.
func (m *machine) do(ctx context.Context, s step, row *initctl.Step) {
	row.Started = m.term.sinceUp()
	var detail string
	var err error
	if p := caught(s.name, &m.term, func() { detail, err = s.run(ctx, m) }); p != nil {
		err = p
	}
	row.Finished = m.term.sinceUp()
	row.Result, row.Detail = initctl.OK, detail
	if err == nil {
		return
	}
	row.Result, row.Detail = initctl.Failed, err.Error()
	var why skipped
	if errors.As(err, &why) {
		row.Result = initctl.Skipped
	}
}

func (m *machine) say(row *initctl.Step) {
	text := fmt.Sprintf("%-17s %-7s %s", row.Name, row.Result, row.Detail)
	if row.Result == initctl.Failed && row.Required && m.strict() {
		m.term.critical("%s", text)
		return
	}
	m.term.line("%s", text)
}

// strict says that required steps bind.
func (m *machine) strict() bool { return m.report.Lifecycle != spec.Development }

// publish writes the boot report for others to read.
func (m *machine) publish() {
	m.report.Dropped = m.term.consoles.dropped()
	if err := initctl.WriteReport(m.cfg.Report, &m.report); err != nil {
		m.term.line("%v", err)
	}
}
