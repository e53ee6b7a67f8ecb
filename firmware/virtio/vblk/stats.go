// SPDX-License-Identifier: Apache-2.0

package vblk

import "sync/atomic"

// Stats counts what one queue did since the device was made. Failed requests count as errors only.
type Stats struct {
	Reads, Writes, Flushes, Discards uint64 // requests; Discards includes write-zeroes
	ReadBytes, WriteBytes            uint64
	Errors                           uint64 // requests with a status other than OK
	Waited                           uint64 // requests that the limits held back
}

// counters is Stats while it is counted. It has its cache lines to itself, so that
// queues on different processors don't meet.
type counters struct {
	reads, writes, flushes, discards atomic.Uint64
	readBytes, writeBytes, errors    atomic.Uint64
	waited                           atomic.Uint64
	_                                [64]byte
}

func (c *counters) snapshot() Stats {
	return Stats{
		Reads: c.reads.Load(), Writes: c.writes.Load(), Flushes: c.flushes.Load(), Discards: c.discards.Load(),
		ReadBytes: c.readBytes.Load(), WriteBytes: c.writeBytes.Load(), Errors: c.errors.Load(),
		Waited: c.waited.Load(),
	}
}

// count adds one request with n bytes of data.
func (c *counters) count(kind uint32, status byte, n uint64) {
	if status != statusOK {
		c.errors.Add(1)
		return
	}
	switch kind {
	case typeIn:
		c.reads.Add(1)
		c.readBytes.Add(n)
	case typeOut:
		c.writes.Add(1)
		c.writeBytes.Add(n)
	case typeFlush:
		c.flushes.Add(1)
	case typeDiscard, typeWriteZeroes:
		c.discards.Add(1)
	}
}
