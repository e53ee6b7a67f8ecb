// SPDX-License-Identifier: Apache-2.0

package main

import (
	"slices"
	"time"

	"golang.org/x/sys/unix"
)

// result is what came of a job.
type result struct {
	// Requests is how many were completed, in Seconds.
	Requests uint64  `json:"requests"`
	Seconds  float64 `json:"seconds"`
	IOPS     float64 `json:"iops"`
	// MBPerSecond is in units of 10^6 bytes.
	MBPerSecond float64 `json:"mb_per_s"`
	// Latency is in microseconds, of the samples.
	Latency latency `json:"latency_us"`
	Kicks   uint64  `json:"kicks"`
	// CPU is this process's use of processors meanwhile; 1 is one of them.
	CPU float64 `json:"cpu"`
}

// latency are percentiles.
type latency struct {
	P50  float64 `json:"p50"`
	P99  float64 `json:"p99"`
	P999 float64 `json:"p999"`
}

func (l *load) result(took, used time.Duration) *result {
	r := &result{
		Requests: l.done, Seconds: took.Seconds(), Kicks: l.kicks, CPU: used.Seconds() / took.Seconds(),
		IOPS: float64(l.done) / took.Seconds(),
	}
	r.MBPerSecond = r.IOPS * float64(l.block) / 1e6
	slices.Sort(l.samples)
	r.Latency = latency{percentile(l.samples, 500), percentile(l.samples, 990), percentile(l.samples, 999)}
	return r
}

// percentile is the value below which so many thousandths of the sorted samples
// are, in microseconds.
func percentile(sorted []time.Duration, thousandths int) float64 {
	if len(sorted) == 0 {
		return 0
	}
	return float64(sorted[(len(sorted)-1)*thousandths/1000]) / float64(time.Microsecond)
}

// usageNow is the processor time that this process has used.
func usageNow() time.Duration {
	var r unix.Rusage
	if err := unix.Getrusage(unix.RUSAGE_SELF, &r); err != nil {
		return 0 // not possible with a valid address
	}
	return time.Duration(r.Utime.Nano() + r.Stime.Nano())
}
