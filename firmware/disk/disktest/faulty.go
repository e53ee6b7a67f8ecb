// SPDX-License-Identifier: Apache-2.0

package disktest

import (
	"fmt"
	"sync"

	"github.com/davit-dpu/davit/firmware/disk"
)

// Op is a set of operations on a volume.
type Op uint8

// The operations.
const (
	Read Op = 1 << iota
	Write
	Flush
	Discard
	WriteZeroes

	Any = Read | Write | Flush | Discard | WriteZeroes
)

// String names a single operation.
func (o Op) String() string {
	switch o {
	case Read:
		return "read"
	case Write:
		return "write"
	case Flush:
		return "flush"
	case Discard:
		return "discard"
	case WriteZeroes:
		return "write-zeroes"
	}
	return fmt.Sprintf("Op(%#x)", uint8(o))
}

// Access is one operation, as it was asked for. Off and Len are in bytes, 0 for a flush.
type Access struct {
	Op       Op
	Off, Len int64
	Unmap    bool // WriteZeroes
}

// Fault says which accesses fail or hang. Its zero values mean every access, at once, for ever.
type Fault struct {
	Op Op // 0: Any
	// Off and Len are the bytes that an access must touch; Len 0: any bytes, and none.
	Off, Len int64
	After    int // so many matching accesses go through before
	Times    int // so many are hit; 0: all

	// Hang, if not nil, holds a hit access until the channel is closed.
	Hang <-chan struct{}
	// Err is what a hit access fails with, without reaching the volume; nil: it goes on.
	Err error
}

// hits reports whether an access is one of those that the fault is for.
func (f *Fault) hits(a Access) bool {
	if f.Op != 0 && f.Op&a.Op == 0 {
		return false
	}
	return f.Len == 0 || a.Off < f.Off+f.Len && f.Off < a.Off+a.Len
}

// Faulty is a volume that notes what is asked of it, and fails as told. It implements disk.Trimmer; where
// the volume below does not, discard and write-zeroes fail with disk.ErrNotSupported.
type Faulty struct {
	disk.Volume

	mu       sync.Mutex
	accesses []Access // guarded by mu
	faults   []*Fault // guarded by mu
}

// New wraps a volume, which Close closes.
func New(v disk.Volume, faults ...Fault) *Faulty {
	f := &Faulty{Volume: v}
	for _, fault := range faults {
		f.Add(fault)
	}
	return f
}

// Add adds a fault. Of several that hit an access the first added counts.
func (f *Faulty) Add(fault Fault) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.faults = append(f.faults, &fault)
}

// Repair removes all faults. What hangs goes on hanging.
func (f *Faulty) Repair() {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.faults = nil
}

// Take returns all accesses since the last Take, those that hang included.
func (f *Faulty) Take() []Access {
	f.mu.Lock()
	defer f.mu.Unlock()
	a := f.accesses
	f.accesses = nil
	return a
}

// enter notes an access and waits or fails as the faults say.
func (f *Faulty) enter(a Access) error {
	f.mu.Lock()
	f.accesses = append(f.accesses, a)
	hit := f.hitLocked(a)
	f.mu.Unlock()
	if hit.Hang != nil {
		<-hit.Hang
	}
	return hit.Err
}

// hitLocked counts down and returns the fault that hits a; the zero one for none. mu is held.
func (f *Faulty) hitLocked(a Access) Fault {
	for i, fault := range f.faults {
		if !fault.hits(a) {
			continue
		}
		if fault.After > 0 {
			fault.After--
			continue
		}
		hit := *fault
		if fault.Times > 0 {
			if fault.Times--; fault.Times == 0 {
				f.faults = append(f.faults[:i:i], f.faults[i+1:]...)
			}
		}
		return hit
	}
	return Fault{}
}

func access(op Op, bufs [][]byte, off int64) Access {
	a := Access{Op: op, Off: off}
	for _, b := range bufs {
		a.Len += int64(len(b))
	}
	return a
}

// ReadAt implements disk.Volume.
func (f *Faulty) ReadAt(bufs [][]byte, off int64) error {
	if err := f.enter(access(Read, bufs, off)); err != nil {
		return err
	}
	return f.Volume.ReadAt(bufs, off)
}

// WriteAt implements disk.Volume.
func (f *Faulty) WriteAt(bufs [][]byte, off int64) error {
	if err := f.enter(access(Write, bufs, off)); err != nil {
		return err
	}
	return f.Volume.WriteAt(bufs, off)
}

// Flush implements disk.Volume.
func (f *Faulty) Flush() error {
	if err := f.enter(Access{Op: Flush}); err != nil {
		return err
	}
	return f.Volume.Flush()
}

// Discard implements disk.Trimmer.
func (f *Faulty) Discard(off, n int64) error {
	if err := f.enter(Access{Op: Discard, Off: off, Len: n}); err != nil {
		return err
	}
	t, ok := f.Volume.(disk.Trimmer)
	if !ok {
		return disk.ErrNotSupported
	}
	return t.Discard(off, n)
}

// WriteZeroes implements disk.Trimmer.
func (f *Faulty) WriteZeroes(off, n int64, unmap bool) error {
	if err := f.enter(Access{Op: WriteZeroes, Off: off, Len: n, Unmap: unmap}); err != nil {
		return err
	}
	t, ok := f.Volume.(disk.Trimmer)
	if !ok {
		return disk.ErrNotSupported
	}
	return t.WriteZeroes(off, n, unmap)
}

var (
	_ disk.Volume  = (*Faulty)(nil)
	_ disk.Trimmer = (*Faulty)(nil)
)
