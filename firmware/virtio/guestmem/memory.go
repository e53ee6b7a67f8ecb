// SPDX-License-Identifier: Apache-2.0

package guestmem

import (
	"cmp"
	"errors"
	"fmt"
	"slices"
	"sync/atomic"
	"unsafe"
)

// PageSize is the granularity of regions in bytes: addresses and sizes are
// multiples of it. It is the virtio and vhost page size, not the processor's.
const PageSize = 4096

// MaxRegions is the largest number of regions that a Memory holds.
const MaxRegions = 512

// Sentinels of this package; each is wrapped with the numbers that led to it.
var (
	// ErrUnmapped says that an address range is not (wholly) in the table.
	ErrUnmapped = errors.New("address range is not mapped")
	// ErrRegion says that a region can not be part of a table.
	ErrRegion = errors.New("bad memory region")
)

// Region is one mapped piece of guest memory. Its zero value is empty.
type Region struct {
	// GuestPhys is the guest-physical address of the first byte.
	GuestPhys uint64
	// UserAddr is the front end's virtual address of the first byte.
	UserAddr uint64

	bytes   []byte
	mapping *mapping
}

// mapping is what holds the memory of a region for all tables that have it.
type mapping struct {
	users   atomic.Int32
	release func() error
}

// NewRegion makes a region of mapped memory. release, which may be nil, is
// called once, when every Memory that has the region is closed. On error the
// caller still owns the memory.
func NewRegion(guestPhys, userAddr uint64, mem []byte, release func() error) (Region, error) {
	size := uint64(len(mem))
	switch {
	case size == 0 || size%PageSize != 0:
		return Region{}, fmt.Errorf("%w: size %#x is not a multiple of %#x", ErrRegion, size, PageSize)
	case guestPhys%PageSize != 0 || userAddr%PageSize != 0:
		return Region{}, fmt.Errorf("%w: address %#x (user %#x) is not page aligned", ErrRegion, guestPhys, userAddr)
	case guestPhys+size < guestPhys || userAddr+size < userAddr:
		return Region{}, fmt.Errorf("%w: address %#x (user %#x) + size %#x overflows", ErrRegion, guestPhys, userAddr, size)
	case machine(mem)%PageSize != 0:
		return Region{}, fmt.Errorf("%w: mapping is not page aligned", ErrRegion)
	}
	m := &mapping{release: release}
	m.users.Store(1)
	return Region{GuestPhys: guestPhys, UserAddr: userAddr, bytes: mem, mapping: m}, nil
}

// Size is the region's length in bytes.
func (r Region) Size() uint64 { return uint64(len(r.bytes)) }

// Close releases a region that never became part of a Memory.
func (r Region) Close() error {
	if r.mapping == nil || r.mapping.users.Add(-1) > 0 || r.mapping.release == nil {
		return nil
	}
	return r.mapping.release()
}

// Memory is a table of regions. It is immutable and safe for concurrent use; a
// changed table is a new Memory, made by With or Without, which shares the
// mappings of the regions that stay. Each is closed on its own: what is mapped
// stays so until the last table that has it is closed.
type Memory struct {
	phys []Region // sorted by GuestPhys
	user []Region // sorted by UserAddr
}

// New makes a table of regions, in any order, and takes them over: they are
// released by Close, or before New returns an error. No two regions may overlap in
// either address space.
func New(regions []Region) (*Memory, error) {
	m, err := build(regions)
	if err != nil {
		for _, r := range regions {
			err = errors.Join(err, r.Close())
		}
		return nil, err
	}
	return m, nil
}

func build(regions []Region) (*Memory, error) {
	if len(regions) > MaxRegions {
		return nil, fmt.Errorf("%w: %d regions, at most %d", ErrRegion, len(regions), MaxRegions)
	}
	m := &Memory{phys: slices.Clone(regions), user: slices.Clone(regions)}
	slices.SortFunc(m.phys, func(a, b Region) int { return cmp.Compare(a.GuestPhys, b.GuestPhys) })
	slices.SortFunc(m.user, func(a, b Region) int { return cmp.Compare(a.UserAddr, b.UserAddr) })
	for i := range regions {
		if m.phys[i].Size() == 0 {
			return nil, fmt.Errorf("%w: region at %#x is empty", ErrRegion, m.phys[i].GuestPhys)
		}
		if i == 0 {
			continue
		}
		if a, b := m.phys[i-1], m.phys[i]; a.GuestPhys+a.Size() > b.GuestPhys {
			return nil, fmt.Errorf("%w: guest addresses %#x and %#x overlap", ErrRegion, a.GuestPhys, b.GuestPhys)
		}
		if a, b := m.user[i-1], m.user[i]; a.UserAddr+a.Size() > b.UserAddr {
			return nil, fmt.Errorf("%w: user addresses %#x and %#x overlap", ErrRegion, a.UserAddr, b.UserAddr)
		}
	}
	return m, nil
}

// With makes a table of m's regions and one more, which it takes over like New.
func (m *Memory) With(r Region) (*Memory, error) {
	return New(append(share(slices.Clone(m.phys)), r))
}

// Without makes a table of m's regions but one. It fails with ErrUnmapped when
// there is no region with exactly these addresses and size.
func (m *Memory) Without(guestPhys, userAddr, size uint64) (*Memory, error) {
	i := slices.IndexFunc(m.phys, func(r Region) bool {
		return r.GuestPhys == guestPhys && r.UserAddr == userAddr && r.Size() == size
	})
	if i < 0 {
		return nil, fmt.Errorf("%w: no region at %#x (user %#x) of size %#x", ErrUnmapped, guestPhys, userAddr, size)
	}
	return New(share(slices.Concat(m.phys[:i], m.phys[i+1:])))
}

// share counts another user of each region.
func share(regions []Region) []Region {
	for _, r := range regions {
		r.mapping.users.Add(1)
	}
	return regions
}

// Close releases all regions. Nobody may use the Memory, or a slice of it, any
// longer.
func (m *Memory) Close() error {
	var errs []error
	for _, r := range m.phys {
		errs = append(errs, r.Close())
	}
	m.phys, m.user = nil, nil
	return errors.Join(errs...)
}

// Slice returns the n bytes at a guest-physical address. They must lie in one
// region. The slice's capacity ends with it.
func (m *Memory) Slice(guestPhys, n uint64) ([]byte, error) {
	return slice(m.findPhys(guestPhys), guestPhys, n)
}

// SliceUser is Slice for an address of the front end's process.
func (m *Memory) SliceUser(userAddr, n uint64) ([]byte, error) {
	i, ok := slices.BinarySearchFunc(m.user, userAddr, func(r Region, a uint64) int { return cmp.Compare(r.UserAddr, a) })
	if !ok {
		i--
	}
	if i < 0 {
		return nil, fmt.Errorf("%w: user address %#x", ErrUnmapped, userAddr)
	}
	r := &m.user[i]
	off := userAddr - r.UserAddr
	if off > r.Size() || n > r.Size()-off {
		return nil, fmt.Errorf("%w: user address %#x + %#x", ErrUnmapped, userAddr, n)
	}
	return r.bytes[off : off+n : off+n], nil
}

// Append appends the n bytes at a guest-physical address to dst, as one slice
// for each region that the range touches: a buffer may run over the border of
// adjacent regions. On error dst is returned nil.
func (m *Memory) Append(dst [][]byte, guestPhys, n uint64) ([][]byte, error) {
	if guestPhys+n < guestPhys {
		return nil, fmt.Errorf("%w: %#x + %#x overflows", ErrUnmapped, guestPhys, n)
	}
	for n > 0 {
		r := m.findPhys(guestPhys)
		if r == nil {
			return nil, fmt.Errorf("%w: %#x + %#x", ErrUnmapped, guestPhys, n)
		}
		step := min(n, r.GuestPhys+r.Size()-guestPhys)
		b, err := slice(r, guestPhys, step)
		if err != nil {
			return nil, err
		}
		dst = append(dst, b)
		guestPhys += step
		n -= step
	}
	return dst, nil
}

// findPhys returns the region that holds a guest-physical address, or nil.
func (m *Memory) findPhys(guestPhys uint64) *Region {
	lo, hi := 0, len(m.phys)
	for lo < hi {
		mid := int(uint(lo+hi) / 2)
		if m.phys[mid].GuestPhys <= guestPhys {
			lo = mid + 1
		} else {
			hi = mid
		}
	}
	if lo == 0 {
		return nil
	}
	r := &m.phys[lo-1]
	if guestPhys-r.GuestPhys >= r.Size() {
		return nil
	}
	return r
}

func slice(r *Region, guestPhys, n uint64) ([]byte, error) {
	if r == nil {
		return nil, fmt.Errorf("%w: %#x + %#x", ErrUnmapped, guestPhys, n)
	}
	off := guestPhys - r.GuestPhys
	if n > r.Size()-off {
		return nil, fmt.Errorf("%w: %#x + %#x", ErrUnmapped, guestPhys, n)
	}
	return r.bytes[off : off+n : off+n], nil
}

// holds reports whether a machine address lies in one of the mappings.
func (m *Memory) holds(addr uintptr) bool {
	for _, r := range m.phys {
		if within(r.bytes, addr) {
			return true
		}
	}
	return false
}

// Locate is the way back from a slice of the memory, not empty, to its
// guest-physical address.
func (m *Memory) Locate(b []byte) (guestPhys uint64, ok bool) {
	addr := machine(b)
	for _, r := range m.phys {
		if within(r.bytes, addr) {
			return r.GuestPhys + uint64(addr-machine(r.bytes)), true
		}
	}
	return 0, false
}

func machine(b []byte) uintptr { return uintptr(unsafe.Pointer(unsafe.SliceData(b))) }

// within reports whether a machine address is one of b's.
func within(b []byte, addr uintptr) bool {
	base := machine(b)
	return addr >= base && addr-base < uintptr(len(b))
}
