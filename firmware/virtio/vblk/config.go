// SPDX-License-Identifier: Apache-2.0

package vblk

import (
	"encoding/binary"
	"fmt"

	"github.com/davit-dpu/davit/firmware/disk"
	"github.com/davit-dpu/davit/firmware/virtio"
)

// Feature bits of the block device (Virtio 1.2, 5.2.3).
const (
	FeatureSegMax      virtio.Features = 1 << 2
	FeatureReadOnly    virtio.Features = 1 << 5
	FeatureBlkSize     virtio.Features = 1 << 6
	FeatureFlush       virtio.Features = 1 << 9
	FeatureTopology    virtio.Features = 1 << 10
	FeatureConfigWCE   virtio.Features = 1 << 11
	FeatureMQ          virtio.Features = 1 << 12
	FeatureDiscard     virtio.Features = 1 << 13
	FeatureWriteZeroes virtio.Features = 1 << 14
)

// Limits that the device declares, and holds drivers to where it matters.
const (
	// SegMax is the largest number of data buffers in a request: a queue of 128
	// descriptors less header and status.
	SegMax = 126
	// MaxDiscardSectors is the longest range of one discard: 2 GiB.
	MaxDiscardSectors = 4 << 20
	// MaxWriteZeroesSectors is the longest range to zero: 64 MiB, for stores that
	// have to write the zeroes.
	MaxWriteZeroesSectors = 128 << 10
	// MaxDiscardRanges is the number of ranges in one discard request.
	MaxDiscardRanges = 16
	// MaxWriteZeroesRanges is the number of ranges in one write-zeroes request:
	// each may have to be written.
	MaxWriteZeroesRanges = 1
)

const (
	sectorSize = disk.SectorSize
	// physicalExp says that 2^3 sectors are one physical block: what page
	// caches, file systems and modern disks write at once.
	physicalExp = 3

	offWCE     = 32
	configSize = 60
)

// config is the configuration space (Virtio 1.2, 5.2.4), zero padded.
func config(info disk.Info, queues int, trim, writeback bool) [configSize]byte {
	var c [configSize]byte
	le := binary.LittleEndian
	le.PutUint64(c[0:], uint64(info.Size)/sectorSize)
	le.PutUint32(c[12:], SegMax)
	le.PutUint32(c[20:], sectorSize)
	c[24] = physicalExp
	le.PutUint16(c[26:], 1<<physicalExp) // min_io_size, in blocks
	if writeback {
		c[offWCE] = 1
	}
	le.PutUint16(c[34:], uint16(queues))
	if trim {
		le.PutUint32(c[36:], MaxDiscardSectors)
		le.PutUint32(c[40:], MaxDiscardRanges)
		le.PutUint32(c[44:], 1<<physicalExp) // discard_sector_alignment
		le.PutUint32(c[48:], MaxWriteZeroesSectors)
		le.PutUint32(c[52:], MaxWriteZeroesRanges)
		c[56] = 1 // write_zeroes_may_unmap
	}
	return c
}

// ReadConfig implements virtio.Device.
func (d *Device) ReadConfig(p []byte, off uint32) error {
	if off > virtio.MaxConfigSize || len(p) > virtio.MaxConfigSize-int(off) {
		return fmt.Errorf("read %d bytes at %d: %w", len(p), off, virtio.ErrConfig)
	}
	c := config(d.volume.Info(), d.queues, d.trimmer != nil, d.writeback.Load())
	clear(p)
	if int(off) < len(c) {
		copy(p, c[off:])
	}
	return nil
}

// WriteConfig implements virtio.Device. The one field that a driver may write
// is writeback, when it was offered.
func (d *Device) WriteConfig(p []byte, off uint32) error {
	if !d.info.Features.Has(FeatureConfigWCE) || off != offWCE || len(p) != 1 || p[0] > 1 {
		return fmt.Errorf("write %d bytes at %d: %w", len(p), off, virtio.ErrConfig)
	}
	d.writeback.Store(p[0] == 1)
	return nil
}
