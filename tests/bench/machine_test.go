// SPDX-License-Identifier: Apache-2.0

package bench

import (
	"fmt"
	"os"
	"runtime"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/davit-dpu/davit/tools/rig"
)

// quietLoad is the load average below which others disturb little, and
// quietWait how long it is waited for.
const (
	quietLoad = 1.0
	quietWait = 5 * time.Minute
)

// load is the machine's load average of the last minute.
func load(b *testing.B) float64 {
	b.Helper()
	text, err := os.ReadFile("/proc/loadavg")
	if err != nil {
		b.Fatal(err)
	}
	first, _, _ := strings.Cut(string(text), " ")
	v, err := strconv.ParseFloat(first, 64)
	if err != nil {
		b.Fatal(err)
	}
	return v
}

// awaitQuiet waits, within bounds, until the machine has little else to do; the
// build of this test is what it had to do last.
func awaitQuiet(b *testing.B) {
	b.Helper()
	tick := time.NewTicker(time.Second)
	defer tick.Stop()
	over := time.After(quietWait)
	for load(b) >= quietLoad {
		select {
		case <-tick.C:
		case <-over:
			say("\nthe machine does not get quiet: load %.2f\n", load(b))
			return
		}
	}
}

// userHz is the unit of processor times in /proc, the same on every Linux.
const userHz = 100

// processorTime is what a process has used so far, proc(5): fields 14 and 15 of
// its stat, which begin behind the name's closing parenthesis. One that has
// ended has used nothing that is known.
func processorTime(p *rig.Process) time.Duration {
	text, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", p.PID()))
	if err != nil {
		return 0
	}
	fields := strings.Fields(string(text[strings.LastIndexByte(string(text), ')')+1:]))
	if len(fields) < 13 {
		return 0
	}
	user, err1 := strconv.ParseUint(fields[11], 10, 63)
	system, err2 := strconv.ParseUint(fields[12], 10, 63)
	if err1 != nil || err2 != nil {
		return 0
	}
	return time.Duration(user+system) * time.Second / userHz
}

// machine names what the figures are of.
func machine(b *testing.B) string {
	b.Helper()
	model := runtime.GOARCH
	text, err := os.ReadFile("/proc/cpuinfo")
	if err != nil {
		b.Fatal(err)
	}
	for line := range strings.Lines(string(text)) {
		if name, ok := strings.CutPrefix(line, "model name"); ok {
			model = strings.Trim(name, "\t :\n")
			break
		}
	}
	return fmt.Sprintf("%d × %s, load %.2f", runtime.NumCPU(), model, load(b))
}

// say prints: the testing package cuts what a benchmark logs.
func say(format string, args ...any) { fmt.Printf(format, args...) }
