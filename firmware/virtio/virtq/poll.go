// SPDX-License-Identifier: Apache-2.0

package virtq

import (
	"runtime"
	"sync/atomic"
	"time"
)

// poller decides how long a device looks at its ring before it sleeps, after the
// manner of KVM's halt polling. Waking a sleeping core takes longer than most
// requests: a driver that answers soon is worth looking for, one that does not
// is not worth a core.
//
//	window   0 ──slept briefly──► shortest ──►×2──► longest
//	         ◄──── slept longer than longest: ÷2, below shortest: 0
type poller struct {
	longest time.Duration // the bound given; 0: never
	window  time.Duration // how long to look now
}

// shortest is the smallest window: about what a kick and a wake-up cost.
const shortest = 8 * time.Microsecond

// looks is how often the ring is looked at between two looks at the clock, and
// turns how often at the clock before others of this process get a chance to run.
const (
	looks = 64
	turns = 16
)

// spin looks at the ring until there is an entry or the window is over.
func (p *poller) spin(ring availableSide, stopped *atomic.Bool) (bool, error) {
	if p.window == 0 {
		return false, nil
	}
	begin := time.Now()
	for turn := 1; ; turn++ {
		for range looks {
			if ready, err := ring.available(); ready || err != nil {
				return ready, err
			}
		}
		if stopped.Load() || time.Since(begin) >= p.window {
			return false, nil
		}
		if turn%turns == 0 {
			runtime.Gosched()
		}
	}
}

// slept learns from how long the device had to sleep after it looked in vain.
func (p *poller) slept(d time.Duration) {
	switch {
	case p.longest == 0:
	case d <= p.longest:
		p.window = min(max(2*p.window, shortest), p.longest)
	default:
		if p.window /= 2; p.window < shortest {
			p.window = 0
		}
	}
}
