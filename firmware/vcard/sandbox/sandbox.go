// SPDX-License-Identifier: Apache-2.0

package sandbox

import (
	"errors"
	"fmt"

	"github.com/davit-dpu/davit/firmware/spec"
)

// Results of a spec.Check.
const (
	passed = "passed"
	failed = "failed"
)

// Config says how a process is confined.
type Config struct {
	Strict bool // a step that fails is an error
	ID     int  // uid and gid to become when started by root; not 0
}

// step is one row of the sandbox. do gives what was proved.
type step struct {
	name string
	do   func(Config) (string, error)
}

// steps runs top to bottom. DO NOT REARRANGE: see doc.go.
var steps = []step{
	{"namespaces", checkNamespaces},
	{"filesystem", emptyRoot},
	{"limits", setLimits},
	{"identity", dropIdentity},
	{"undumpable", setUndumpable},
	{"system-calls", filterCalls},
}

// Enter confines the whole process, all threads. It may be called once. The
// checks say what was done and what was not; with cfg.Strict anything that was
// not is the error instead, and the process, by then partly confined, must end.
func Enter(cfg Config) ([]spec.Check, error) {
	if cfg.ID <= 0 {
		return nil, fmt.Errorf("sandbox: id %d is not an unprivileged one", cfg.ID)
	}
	var checks []spec.Check
	var errs []error
	for _, s := range steps {
		detail, err := s.do(cfg)
		if err != nil {
			errs = append(errs, fmt.Errorf("sandbox: %s: %w", s.name, err))
			checks = append(checks, spec.Check{Name: s.name, Result: failed, Detail: err.Error()})
			continue
		}
		checks = append(checks, spec.Check{Name: s.name, Result: passed, Detail: detail})
	}
	if cfg.Strict && len(errs) > 0 {
		return nil, errors.Join(errs...)
	}
	return checks, nil
}
