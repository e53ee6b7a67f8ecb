// SPDX-License-Identifier: Apache-2.0

package bench

import (
	"fmt"
	"slices"
	"strings"
	"testing"
	"time"
)

// row is one case with its turns.
type row struct {
	blockCase
	turns []turn
}

// of collects one figure of every turn, sorted: ours and the other's.
func (r row) of(figure func(figures) float64) (ours, theirs []float64) {
	for _, t := range r.turns {
		ours, theirs = append(ours, figure(t.ours)), append(theirs, figure(t.theirs))
	}
	slices.Sort(ours)
	slices.Sort(theirs)
	return ours, theirs
}

func iops(f figures) float64 { return f.IOPS }

// ratio is that of the medians.
func (r row) ratio() float64 {
	ours, theirs := r.of(iops)
	return middle(ours) / middle(theirs)
}

// verdict is the bar, and whether it was met.
func (r row) verdict() string {
	switch {
	case r.bar == 0:
		return "–"
	case r.ratio() < r.bar:
		return fmt.Sprintf("≥ %g: **missed**", r.bar)
	}
	return fmt.Sprintf("≥ %g: met", r.bar)
}

// detail is what each turn gave, for a reader who doubts the table.
func (r row) detail() string {
	var out strings.Builder
	fmt.Fprintf(&out, "%s\n", r.title)
	for _, t := range r.turns {
		fmt.Fprintf(&out, "  %s: %s | %s; others used %.0f%%\n", t.at, t.ours, t.theirs, 100*t.others())
	}
	return out.String()
}

// String is a run in one line.
func (f figures) String() string {
	return fmt.Sprintf("%.1f k/s, %.0f MB/s, p50 %.1f µs, p99 %.1f µs, %.2f µs of processor each",
		f.IOPS/1e3, f.MBPerSecond, f.Latency.P50, f.Latency.P99, f.cpuPerRequest())
}

// table is the result, in Markdown.
func table(rows []row) string {
	var out strings.Builder
	out.WriteString("| case | davit | qemu-storage-daemon | ratio | bar | processor time of each for a request |\n|---|---|---|---|---|---|\n")
	for _, r := range rows {
		ours, theirs := r.of(r.shown)
		ourCPU, theirCPU := r.of(figures.cpuPerRequest)
		fmt.Fprintf(&out, "| %s | %s | %s | **%.2f** | %s | %.2f µs / %.2f µs |\n",
			r.title, r.show(ours), r.show(theirs), r.ratio(), r.verdict(), middle(ourCPU), middle(theirCPU))
	}
	return out.String()
}

// shown is the figure that the table has: requests where they are small, bytes where
// they are large.
func (r row) shown(f figures) float64 {
	if r.work.block > 4<<10 {
		return f.MBPerSecond / 1e3
	}
	return f.IOPS / 1e3
}

func (r row) show(sorted []float64) string {
	unit := "k/s"
	if r.work.block > 4<<10 {
		unit = "GB/s"
	}
	return fmt.Sprintf("%.1f %s (%.1f … %.1f)", middle(sorted), unit, sorted[0], sorted[len(sorted)-1])
}

// middle is the median of sorted values.
func middle(sorted []float64) float64 {
	n := len(sorted)
	return (sorted[(n-1)/2] + sorted[n/2]) / 2
}

func TestTable(t *testing.T) {
	of := func(iops, mb float64) figures {
		return figures{Requests: 1000, IOPS: iops, MBPerSecond: mb, server: 2 * time.Millisecond}
	}
	small := row{
		blockCase: blockCase{title: "small", work: workload{block: 4096}, bar: 3},
		turns: []turn{
			{ours: of(300e3, 1), theirs: of(90e3, 1)}, {ours: of(100e3, 1), theirs: of(110e3, 1)}, {ours: of(200e3, 1), theirs: of(100e3, 1)},
		},
	}
	large := row{
		blockCase: blockCase{title: "large", work: workload{block: 128 << 10}, bar: 1},
		turns:     []turn{{ours: of(20, 4000), theirs: of(10, 3000)}, {ours: of(30, 5000), theirs: of(10, 3000)}},
	}
	free := row{blockCase: blockCase{title: "free", work: workload{block: 4096}}, turns: large.turns[:1]}
	got := table([]row{small, large, free})
	want := `| case | davit | qemu-storage-daemon | ratio | bar | processor time of each for a request |
|---|---|---|---|---|---|
| small | 200.0 k/s (100.0 … 300.0) | 100.0 k/s (90.0 … 110.0) | **2.00** | ≥ 3: **missed** | 2.00 µs / 2.00 µs |
| large | 4.5 GB/s (4.0 … 5.0) | 3.0 GB/s (3.0 … 3.0) | **2.50** | ≥ 1: met | 2.00 µs / 2.00 µs |
| free | 0.0 k/s (0.0 … 0.0) | 0.0 k/s (0.0 … 0.0) | **2.00** | – | 2.00 µs / 2.00 µs |
`
	if got != want {
		t.Errorf("got\n%s\nwant\n%s", got, want)
	}
}
