// SPDX-License-Identifier: Apache-2.0

package disk

import (
	"encoding/binary"
	"errors"
	"fmt"
	"hash/crc32"
	"io"
)

// Bounds of an overlay. The last one bounds the memory that an open overlay
// takes for its bitmap: 32 MiB, for 16 TiB in clusters of the default size.
const (
	DefaultClusterSize = 64 << 10
	MinClusterSize     = 4 << 10
	MaxClusterSize     = 2 << 20
	MaxClusters        = 1 << 28
)

// ErrOtherBase says that an overlay was made over another base.
var ErrOtherBase = errors.New("overlay belongs to another base")

// BaseID names the content of a base image: a digest, or whatever else the
// caller never gives to two contents.
type BaseID [32]byte

// OverlayHeader is the constant part of an overlay: what it is, and over what.
// It is written once, when the overlay is made.
//
//	offset  bytes  (little endian)
//	     0      8  "DAVITCOW"
//	     8      4  version: 1
//	    12      4  ClusterSize
//	    16      8  Size
//	    24      8  BaseSize
//	    32     32  Base
//	    64      4  CRC-32C of the bytes before it
type OverlayHeader struct {
	// Size is that of the volume, and BaseSize that of the base, which is not
	// larger; both in bytes. What is beyond the base's end reads as zero.
	Size, BaseSize int64
	// ClusterSize is in bytes, a power of two.
	ClusterSize int64
	// Base is what the overlay was made over.
	Base BaseID
}

const (
	overlayMagic   = "DAVITCOW"
	overlayVersion = 1
	headerLen      = 68

	headerRoom = 4096 // bytes from the start of the store to the bitmap
	blockSize  = 4096 // bytes of the bitmap that are written together
)

var castagnoli = crc32.MakeTable(crc32.Castagnoli)

// check refuses headers that no overlay has.
func (h OverlayHeader) check() error {
	if err := errors.Join(checkSize(h.Size), checkSize(h.BaseSize)); err != nil {
		return err
	}
	if h.BaseSize > h.Size {
		return fmt.Errorf("overlay of %d bytes over a base of %d: it can not be smaller", h.Size, h.BaseSize)
	}
	if c := h.ClusterSize; c < MinClusterSize || c > MaxClusterSize || c&(c-1) != 0 {
		return fmt.Errorf("clusters of %d bytes: not a power of two from %d to %d", c, MinClusterSize, MaxClusterSize)
	}
	if h.Size > MaxClusters*h.ClusterSize {
		return fmt.Errorf("overlay of %d bytes: more than %d clusters of %d bytes", h.Size, MaxClusters, h.ClusterSize)
	}
	return nil
}

// clusters is the number of clusters; the last one may be cut by the end of the volume.
func (h OverlayHeader) clusters() int64 { return (h.Size + h.ClusterSize - 1) / h.ClusterSize }

// bitmapSize is in bytes, whole blocks.
func (h OverlayHeader) bitmapSize() int64 { return roundUp((h.clusters()+7)/8, blockSize) }

// dataOffset is where the first cluster lies in the store, at a multiple of the cluster size.
func (h OverlayHeader) dataOffset() int64 { return roundUp(headerRoom+h.bitmapSize(), h.ClusterSize) }

// StoreSize is the size in bytes that the overlay's own file must have. It is
// sparse: it takes room as clusters are written.
func (h OverlayHeader) StoreSize() int64 { return h.dataOffset() + h.Size }

func roundUp(n, unit int64) int64 { return (n + unit - 1) / unit * unit }

func (h OverlayHeader) encode() [headerLen]byte {
	var b [headerLen]byte
	copy(b[:], overlayMagic)
	binary.LittleEndian.PutUint32(b[8:], overlayVersion)
	binary.LittleEndian.PutUint32(b[12:], uint32(h.ClusterSize))
	binary.LittleEndian.PutUint64(b[16:], uint64(h.Size))
	binary.LittleEndian.PutUint64(b[24:], uint64(h.BaseSize))
	copy(b[32:], h.Base[:])
	binary.LittleEndian.PutUint32(b[64:], crc32.Checksum(b[:64], castagnoli))
	return b
}

// ReadOverlayHeader reads the header of an overlay's store, which may be in use:
// it never changes.
func ReadOverlayHeader(store io.ReaderAt) (OverlayHeader, error) {
	var b [headerLen]byte
	if _, err := store.ReadAt(b[:], 0); err != nil {
		return OverlayHeader{}, fmt.Errorf("overlay header: %w", err)
	}
	return parseOverlayHeader(b)
}

// parseOverlayHeader reads a header. What it returns without an error can be
// used for arithmetic: no sum or product of it overflows.
func parseOverlayHeader(b [headerLen]byte) (OverlayHeader, error) {
	if magic := string(b[:8]); magic != overlayMagic {
		return OverlayHeader{}, fmt.Errorf("overlay header: begins with %q, not with %q", magic, overlayMagic)
	}
	if got, want := binary.LittleEndian.Uint32(b[64:]), crc32.Checksum(b[:64], castagnoli); got != want {
		return OverlayHeader{}, fmt.Errorf("overlay header: checksum %#08x, its bytes have %#08x", got, want)
	}
	if v := binary.LittleEndian.Uint32(b[8:]); v != overlayVersion {
		return OverlayHeader{}, fmt.Errorf("overlay header: version %d, only %d is known", v, overlayVersion)
	}
	h := OverlayHeader{
		ClusterSize: int64(binary.LittleEndian.Uint32(b[12:])),
		Size:        int64(binary.LittleEndian.Uint64(b[16:])),
		BaseSize:    int64(binary.LittleEndian.Uint64(b[24:])),
		Base:        BaseID(b[32:64]),
	}
	if err := h.check(); err != nil {
		return OverlayHeader{}, fmt.Errorf("overlay header: %w", err)
	}
	return h, nil
}
