// SPDX-License-Identifier: Apache-2.0

package spec

import (
	"errors"
	"fmt"
	"time"
)

// Bounds of Limits.
const (
	MaxIOPS      = 1_000_000
	MinBandwidth = 64 * KiB
	MaxBandwidth = 1 * TiB
	MinBurst     = Duration(time.Millisecond)
	MaxBurst     = Duration(time.Minute)
	DefaultBurst = Duration(100 * time.Millisecond)
)

// Limits are how fast a volume works for its guest, over all queues. Every read, write,
// flush, discard and write-zeroes is one operation; bandwidth is the bytes of
// reads and writes. What is not used is saved up for as long as Burst.
type Limits struct {
	IOPS      uint64   `json:"iops,omitempty"`      // operations a second; 0: no limit
	Bandwidth Bytes    `json:"bandwidth,omitempty"` // bytes a second; 0: no limit
	Burst     Duration `json:"burst,omitempty"`     // 0: DefaultBurst
}

// Validate refuses limits that limit nothing: without any there are no Limits.
func (l *Limits) Validate() error {
	switch {
	case l.IOPS == 0 && l.Bandwidth == 0:
		return errors.New("limits: neither iops nor bandwidth is given")
	case l.IOPS > MaxIOPS:
		return fmt.Errorf("limits: iops: %d are more than %d", l.IOPS, MaxIOPS)
	case l.Bandwidth != 0 && (l.Bandwidth < MinBandwidth || l.Bandwidth > MaxBandwidth):
		return fmt.Errorf("limits: bandwidth: %s is not between %s and %s", l.Bandwidth, MinBandwidth, MaxBandwidth)
	case l.Burst != 0 && (l.Burst < MinBurst || l.Burst > MaxBurst):
		return fmt.Errorf("limits: burst: %s is not between %s and %s", l.Burst, MinBurst, MaxBurst)
	}
	return nil
}

// BurstOrDefault is Burst with its default.
func (l *Limits) BurstOrDefault() time.Duration {
	if l.Burst == 0 {
		return time.Duration(DefaultBurst)
	}
	return time.Duration(l.Burst)
}

// String says the limits in a few words, for example "500 iops, 10MiB/s, burst 1s".
// Nil has none.
func (l *Limits) String() string {
	if l == nil {
		return "none"
	}
	text := ""
	if l.IOPS != 0 {
		text += fmt.Sprintf("%d iops, ", l.IOPS)
	}
	if l.Bandwidth != 0 {
		text += fmt.Sprintf("%s/s, ", l.Bandwidth)
	}
	return text + "burst " + l.BurstOrDefault().String()
}

// SameLimits compares limits; nil are none.
func SameLimits(a, b *Limits) bool {
	if a == nil || b == nil {
		return a == b
	}
	return *a == *b
}

// Duration is a time span. Its text form is that of time.ParseDuration, for
// example "100ms"; its CBOR form is an integer of nanoseconds.
type Duration time.Duration

// String implements fmt.Stringer.
func (d Duration) String() string { return time.Duration(d).String() }

// MarshalText implements encoding.TextMarshaler, for YAML and JSON.
func (d Duration) MarshalText() ([]byte, error) { return []byte(d.String()), nil }

// UnmarshalText implements encoding.TextUnmarshaler, for YAML and JSON.
func (d *Duration) UnmarshalText(text []byte) error {
	v, err := time.ParseDuration(string(text))
	if err != nil {
		return fmt.Errorf("duration %q: want a number with a unit, such as 100ms", text)
	}
	*d = Duration(v)
	return nil
}
