// SPDX-License-Identifier: Apache-2.0

package instance

import (
	"fmt"
	"slices"
	"sync"

	"github.com/davit-dpu/davit/firmware/spec"
)

// pool divides the host's memory pool among instances. Its head stays reserved
// (spec.PoolReserved). Every range is a multiple of 2 MiB.
type pool struct {
	size spec.Bytes

	mu   sync.Mutex
	used []span // guarded by mu; sorted by offset, never overlapping
}

type span struct {
	offset, size spec.Bytes
	owner        string
}

// take reserves size bytes for owner at the lowest free offset.
func (p *pool) take(owner string, size spec.Bytes) (spec.Bytes, error) {
	p.mu.Lock()
	defer p.mu.Unlock()
	at := spec.PoolReserved
	var free spec.Bytes
	for i := 0; i <= len(p.used); i++ {
		end := p.size
		if i < len(p.used) {
			end = p.used[i].offset
		}
		if end > at && end-at >= size {
			p.used = slices.Insert(p.used, i, span{at, size, owner})
			return at, nil
		}
		if end > at {
			free += end - at
		}
		if i < len(p.used) {
			at = p.used[i].offset + p.used[i].size
		}
	}
	return 0, fmt.Errorf("memory: no %s in one piece left in the host's pool of %s (%s free)", size, p.size, free)
}

// claim reserves a known range, for an instance that was running before.
func (p *pool) claim(owner string, offset, size spec.Bytes) error {
	p.mu.Lock()
	defer p.mu.Unlock()
	if offset < spec.PoolReserved || offset%spec.MemoryAlign != 0 || offset > p.size || size > p.size-offset {
		return fmt.Errorf("memory [%s, +%s) is not inside the host's pool of %s", offset, size, p.size)
	}
	i, _ := slices.BinarySearchFunc(p.used, offset, func(s span, o spec.Bytes) int {
		if s.offset < o {
			return -1
		}
		return 1
	})
	if i > 0 && p.used[i-1].offset+p.used[i-1].size > offset {
		return fmt.Errorf("memory [%s, +%s) overlaps that of instance %s", offset, size, p.used[i-1].owner)
	}
	if i < len(p.used) && p.used[i].offset-offset < size {
		return fmt.Errorf("memory [%s, +%s) overlaps that of instance %s", offset, size, p.used[i].owner)
	}
	p.used = slices.Insert(p.used, i, span{offset, size, owner})
	return nil
}

// give frees what owner holds.
func (p *pool) give(owner string) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.used = slices.DeleteFunc(p.used, func(s span) bool { return s.owner == owner })
}
