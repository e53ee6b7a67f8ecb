// SPDX-License-Identifier: Apache-2.0

package agent

import (
	"bufio"
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"strings"

	"github.com/davit-dpu/davit/firmware/spec"
)

// residentSet is the memory that a process occupies now, its program's pages
// included: VmRSS of proc(5). proc is the folder of processes, normally /proc.
func residentSet(proc string, pid int) (spec.Bytes, error) {
	f, err := os.Open(filepath.Join(proc, strconv.Itoa(pid), "status"))
	if err != nil {
		return 0, fmt.Errorf("resident set of process %d: %w", pid, err)
	}
	defer f.Close()
	lines := bufio.NewScanner(f)
	for lines.Scan() {
		value, ok := strings.CutPrefix(lines.Text(), "VmRSS:")
		if !ok {
			continue
		}
		digits, ok := strings.CutSuffix(strings.TrimSpace(value), " kB")
		kib, err := strconv.ParseUint(digits, 10, 53)
		if !ok || err != nil {
			return 0, fmt.Errorf("resident set of process %d: %q is no size", pid, value)
		}
		return spec.Bytes(kib) * spec.KiB, nil
	}
	if err := lines.Err(); err != nil {
		return 0, fmt.Errorf("resident set of process %d: %w", pid, err)
	}
	return 0, fmt.Errorf("resident set of process %d: it has no memory any more", pid)
}

// memoryOf is residentSet for status, where 0 says that it is not known.
func (a *agent) memoryOf(pid int) spec.Bytes {
	size, err := residentSet("/proc", pid)
	if err != nil {
		a.log.Debug("status", "err", err)
		return 0
	}
	return size
}

// vcardMemory is that of the vcard which is connected; 0: none is.
func (a *agent) vcardMemory() spec.Bytes {
	client, err := a.vcard.current()
	if err != nil || client.PID() == 0 {
		return 0
	}
	return a.memoryOf(client.PID())
}
