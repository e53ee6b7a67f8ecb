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
)

// A machine is quiet while it is idle for quietShare of a second. That is waited
// for before each boot, for at most quietWait in all: on a shared machine the
// rest would never begin.
const (
	quietShare = 0.85
	quietWait  = 10 * time.Minute
)

// disturbance is the largest share of the machine that others may use during a
// boot that counts.
const disturbance = 0.08

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

// usage is what all processors did since the machine's start, in units of userHz.
type usage struct{ busy, all uint64 }

// usageNow reads the first line of /proc/stat: user, nice, system, idle, iowait,
// irq, softirq, steal; what follows is counted in these already.
func usageNow(b *testing.B) usage {
	b.Helper()
	text, err := os.ReadFile("/proc/stat")
	if err != nil {
		b.Fatal(err)
	}
	line, _, _ := strings.Cut(string(text), "\n")
	fields := strings.Fields(line)
	if len(fields) < 9 || fields[0] != "cpu" {
		b.Fatalf("/proc/stat begins with %q", line)
	}
	var u usage
	for i, f := range fields[1:9] {
		n, err := strconv.ParseUint(f, 10, 64)
		if err != nil {
			b.Fatal(err)
		}
		u.all += n
		if i != 3 && i != 4 {
			u.busy += n
		}
	}
	return u
}

// quiet waits for a quiet machine and counts how long it has waited.
type quiet struct{ left time.Duration }

func (q *quiet) await(b *testing.B) {
	b.Helper()
	tick := time.NewTicker(time.Second)
	defer tick.Stop()
	for before := usageNow(b); q.left > 0; q.left -= time.Second {
		<-tick.C
		now := usageNow(b)
		if float64(now.busy-before.busy) <= (1-quietShare)*float64(now.all-before.all) {
			return
		}
		before = now
	}
}

// others is the share of the machine that was used between two moments by
// anybody but the processes that used own.
func others(from, to usage, own time.Duration) float64 {
	busy := float64(to.busy-from.busy) - own.Seconds()*userHz
	return max(0, busy) / max(1, float64(to.all-from.all))
}

// userHz is the unit of processor times in /proc, the same on every Linux.
const userHz = 100

// processorTime is what a process has used so far, proc(5): fields 14 and 15 of
// its stat, which begin behind the name's closing parenthesis. One that has
// ended has used nothing that is known.
func processorTime(pid int) time.Duration {
	text, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", pid))
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
