// SPDX-License-Identifier: Apache-2.0

package boot

import (
	"context"
	"errors"
	"fmt"
	"os"
	"strings"

	"golang.org/x/sys/unix"

	"github.com/davit-dpu/davit/firmware/spec"
)

// Words of the kernel command line that pid 1 looks at. The command line is
// part of the signed UKI.
const (
	wordLifecycle = "davit.lifecycle="
	wordHostname  = "davit.hostname="
)

const defaultHostname = "davit"

// option finds the value of a word of the command line. It says no when the
// word is absent, and when it is there twice with different values: then none
// of them can be believed.
func option(cmdline, word string) (value string, ok bool) {
	for _, f := range strings.Fields(cmdline) {
		v, is := strings.CutPrefix(f, word)
		if !is {
			continue
		}
		if ok && v != value {
			return "", false
		}
		value, ok = v, true
	}
	return value, ok
}

// lifecycle takes the lifecycle from the command line: production unless it
// says development or rma exactly.
func lifecycle(cmdline string) spec.Lifecycle {
	v, _ := option(cmdline, wordLifecycle)
	switch l := spec.Lifecycle(v); l {
	case spec.Development, spec.RMA:
		return l
	}
	return spec.Production
}

func stepLifecycle(_ context.Context, m *machine) (string, error) {
	text, err := os.ReadFile("/proc/cmdline")
	if err != nil {
		return "", fmt.Errorf("kernel command line: %w", err)
	}
	m.cmdline = string(text)
	m.report.Lifecycle = lifecycle(m.cmdline)
	var u unix.Utsname
	if err := unix.Uname(&u); err == nil {
		m.report.Kernel = unix.ByteSliceToString(u.Release[:])
	}
	how := "kernel command line"
	if _, ok := option(m.cmdline, wordLifecycle); !ok {
		how = "not given, or contradictory: the default"
	}
	return fmt.Sprintf("%s (%s), kernel %s", m.report.Lifecycle, how, m.report.Kernel), nil
}

func stepHostname(_ context.Context, m *machine) (string, error) {
	name, ok := option(m.cmdline, wordHostname)
	if !ok {
		name = defaultHostname
	}
	if !validHostname(name) {
		return "", errors.New(wordHostname + " is no host name")
	}
	if err := unix.Sethostname([]byte(name)); err != nil {
		return "", fmt.Errorf("set hostname: %w", err)
	}
	return name, nil
}

// validHostname is one label of RFC 1123, section 2.1.
func validHostname(s string) bool {
	if len(s) < 1 || len(s) > 63 || s[0] == '-' || s[len(s)-1] == '-' {
		return false
	}
	for _, c := range []byte(s) {
		if (c < 'a' || c > 'z') && (c < '0' || c > '9') && c != '-' {
			return false
		}
	}
	return true
}
