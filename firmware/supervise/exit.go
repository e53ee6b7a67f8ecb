// SPDX-License-Identifier: Apache-2.0

package supervise

import (
	"fmt"
	"syscall"
)

// Exit is how a process ended.
type Exit struct {
	// Known is false when the process was not our child (see Adopt), or could
	// not be started or waited for; Detail then says what is known.
	Known bool
	// Code is the exit code, 0 to 255; -1 when it did not exit by itself.
	Code int
	// Signal is what killed it; 0 when none did.
	Signal syscall.Signal
	// Core is set when the kernel wrote a core image.
	Core bool
	// Detail adds what the supervisor knows, such as "not ready within 30s".
	Detail string
}

// ExitFromStatus translates a wait status, wait4(2).
func ExitFromStatus(ws syscall.WaitStatus) Exit {
	switch {
	case ws.Exited():
		return Exit{Known: true, Code: ws.ExitStatus()}
	case ws.Signaled():
		return Exit{Known: true, Code: -1, Signal: ws.Signal(), Core: ws.CoreDump()}
	}
	return Exit{Code: -1, Detail: fmt.Sprintf("unexpected wait status %#x", uint32(ws))}
}

// OK says that the process is known to have exited with code 0.
func (e Exit) OK() bool { return e.Known && e.Code == 0 && e.Signal == 0 }

// String is the exit for people: "exit code 2", "killed by signal 9 (killed)",
// followed by the detail.
func (e Exit) String() string {
	s := "ended, exit code not known"
	switch {
	case e.Known && e.Signal != 0:
		s = fmt.Sprintf("killed by signal %d (%s)", int(e.Signal), e.Signal)
		if e.Core {
			s += ", core dumped"
		}
	case e.Known:
		s = fmt.Sprintf("exit code %d", e.Code)
	case e.Detail != "":
		return e.Detail
	}
	if e.Detail != "" {
		s += ": " + e.Detail
	}
	return s
}
