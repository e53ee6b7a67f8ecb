// SPDX-License-Identifier: Apache-2.0

package disk

import (
	"crypto/sha256"
	"encoding/binary"
	"fmt"
)

const (
	sectorSize      = 512
	reservedSectors = 32
	fatCopies       = 2
	minFAT32        = 65525 // fewer clusters make it FAT16, by definition
	maxPerCluster   = 8     // sectors
	rootCluster     = 2
	firstFile       = 5 // behind root, EFI and BOOT, one cluster each
	endOfChain      = 0x0fffffff
	dosEpoch        = 1<<5 | 1 // 1980-01-01: the same in every build
	backupBoot      = 6        // sector
)

var le = binary.LittleEndian

// segment is a run of bytes at an offset of the partition.
type segment struct {
	offset int64
	data   []byte
}

// geometry is how a partition is divided.
type geometry struct {
	sectors    uint32 // of the partition
	perCluster uint32 // sectors
	fatSectors uint32 // of one copy
	clusters   uint32
}

// layout finds the largest clusters with which the partition is still FAT32.
func layout(size int64) (geometry, error) {
	g := geometry{sectors: uint32(min(size/sectorSize, 1<<31))}
	for g.perCluster = maxPerCluster; g.perCluster >= 1; g.perCluster /= 2 {
		// Each cluster takes its sectors, and four bytes of each FAT.
		per := uint64(g.perCluster*sectorSize + 4*fatCopies)
		usable := uint64(g.sectors)*sectorSize - reservedSectors*sectorSize
		g.clusters = uint32(usable / per)
		g.fatSectors = (4*(g.clusters+2) + sectorSize - 1) / sectorSize
		// Rounding the FATs up may have cost clusters.
		left := g.sectors - reservedSectors - fatCopies*g.fatSectors
		g.clusters = min(g.clusters, left/g.perCluster)
		if g.clusters >= minFAT32 {
			return g, nil
		}
	}
	return geometry{}, fmt.Errorf("a partition of %d bytes is too small for FAT32", size)
}

func (g geometry) clusterSize() int64 { return int64(g.perCluster) * sectorSize }

func (g geometry) offset(cluster uint32) int64 {
	data := int64(reservedSectors+fatCopies*g.fatSectors) * sectorSize
	return data + int64(cluster-rootCluster)*g.clusterSize()
}

// fat gives what must be written to a partition of size bytes that begins at
// sector start of the disk, to make it a FAT32 file system with content as
// EFI/BOOT/name. The name must be of the form 8.3, with eight characters.
func fat(size int64, start uint32, name string, content []byte) ([]segment, error) {
	if size < reservedSectors*sectorSize*2 || len(content) == 0 || int64(len(content)) > size {
		return nil, fmt.Errorf("file of %d bytes on a partition of %d", len(content), size)
	}
	g, err := layout(size)
	if err != nil {
		return nil, err
	}
	fileClusters := uint32((int64(len(content)) + g.clusterSize() - 1) / g.clusterSize())
	if fileClusters > g.clusters-(firstFile-rootCluster) {
		return nil, fmt.Errorf("file of %d bytes does not fit on a partition of %d", len(content), size)
	}
	boot := g.bootSector(start, sha256.Sum256(content))
	info := fsInfo(g.clusters-(firstFile-rootCluster)-fileClusters, firstFile+fileClusters)
	table := g.table(fileClusters)
	segments := []segment{
		{0, boot}, {sectorSize, info},
		{backupBoot * sectorSize, boot}, {(backupBoot + 1) * sectorSize, info},
	}
	for i := range int64(fatCopies) {
		segments = append(segments, segment{(reservedSectors + i*int64(g.fatSectors)) * sectorSize, table})
	}
	for i, entries := range [][][]byte{
		{entry("DAVIT      ", 0x08, 0, 0), entry("EFI        ", 0x10, 3, 0)},
		{entry(".          ", 0x10, 3, 0), entry("..         ", 0x10, 0, 0), entry("BOOT       ", 0x10, 4, 0)},
		{entry(".          ", 0x10, 4, 0), entry("..         ", 0x10, 3, 0), entry(name[:8]+name[9:], 0x20, firstFile, uint32(len(content)))},
	} {
		dir := make([]byte, 0, g.clusterSize())
		for _, e := range entries {
			dir = append(dir, e...)
		}
		segments = append(segments, segment{g.offset(rootCluster + uint32(i)), dir[:g.clusterSize()]})
	}
	return append(segments, segment{g.offset(firstFile), content}), nil
}

// bootSector is the BIOS parameter block of FAT32.
func (g geometry) bootSector(start uint32, id [32]byte) []byte {
	b := make([]byte, sectorSize)
	copy(b, "\xeb\x58\x90DAVIT   ")
	le.PutUint16(b[11:], sectorSize)
	b[13] = byte(g.perCluster)
	le.PutUint16(b[14:], reservedSectors)
	b[16] = fatCopies
	b[21] = 0xf8             // fixed disk
	le.PutUint16(b[24:], 32) // sectors per track, as of old
	le.PutUint16(b[26:], 64) // heads
	le.PutUint32(b[28:], start)
	le.PutUint32(b[32:], g.sectors)
	le.PutUint32(b[36:], g.fatSectors)
	le.PutUint32(b[44:], rootCluster)
	le.PutUint16(b[48:], 1) // FSInfo
	le.PutUint16(b[50:], backupBoot)
	b[64] = 0x80
	b[66] = 0x29
	copy(b[67:71], id[:4]) // volume serial number
	copy(b[71:82], "DAVIT      ")
	copy(b[82:90], "FAT32   ")
	b[510], b[511] = 0x55, 0xaa
	return b
}

func fsInfo(free, next uint32) []byte {
	b := make([]byte, sectorSize)
	le.PutUint32(b, 0x41615252)
	le.PutUint32(b[484:], 0x61417272)
	le.PutUint32(b[488:], free)
	le.PutUint32(b[492:], next)
	le.PutUint32(b[508:], 0xaa550000)
	return b
}

// table is one copy of the file allocation table.
func (g geometry) table(fileClusters uint32) []byte {
	b := make([]byte, g.fatSectors*sectorSize)
	le.PutUint32(b, 0x0ffffff8)
	for c := uint32(1); c < firstFile; c++ {
		le.PutUint32(b[4*c:], endOfChain)
	}
	last := firstFile + fileClusters - 1
	for c := uint32(firstFile); c < last; c++ {
		le.PutUint32(b[4*c:], c+1)
	}
	le.PutUint32(b[4*last:], endOfChain)
	return b
}

// entry is a directory entry with a short name of 11 characters.
func entry(name string, attributes byte, cluster, size uint32) []byte {
	b := make([]byte, 32)
	copy(b, name)
	b[11] = attributes
	le.PutUint16(b[16:], dosEpoch)
	le.PutUint16(b[18:], dosEpoch)
	le.PutUint16(b[20:], uint16(cluster>>16))
	le.PutUint16(b[24:], dosEpoch)
	le.PutUint16(b[26:], uint16(cluster))
	le.PutUint32(b[28:], size)
	return b
}
