// SPDX-License-Identifier: Apache-2.0

package bus

import (
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"time"

	"github.com/davit-dpu/davit/firmware/spec"
)

// DAXSelect picks the NVDIMM region that is a host's pool: by its number, or,
// when Size is not 0, the only one of that size in bytes.
type DAXSelect struct {
	Region int
	Size   uint64
}

// OpenDAX opens the host's pool behind an NVDIMM as device-DAX, which maps it
// as normal cacheable memory also under kernel lockdown. A region that carries
// a raw namespace is converted first; once converted it comes up by itself at
// later boots, and OpenDAX only opens it. The modules nfit, nd_pmem, device_dax
// and dax_pmem must be loaded. It waits until ctx ends for devices to appear.
func OpenDAX(ctx context.Context, sel DAXSelect) (Aperture, error) {
	return openDAX(ctx, "/sys", "/dev", sel)
}

// daxPoll is how often sysfs is looked at while a driver binds; it offers
// nothing to wait on.
const daxPoll = 50 * time.Millisecond

func openDAX(ctx context.Context, sys, dev string, sel DAXSelect) (Aperture, error) {
	var last error
	for {
		d, err := stepDAX(sys, sel)
		if err == nil {
			return d.open(dev)
		}
		if !errors.Is(err, errNotYet) {
			return Aperture{}, fmt.Errorf("open dax: %w", err)
		}
		last = err
		if !sleep(ctx, daxPoll) {
			return Aperture{}, fmt.Errorf("open dax: %w: %w", ctx.Err(), last)
		}
	}
}

// stepDAX reads the tree, does what the plan says, and returns the device once
// it is there.
func stepDAX(sys string, sel DAXSelect) (daxDevice, error) {
	tree, err := readND(sys)
	if err != nil {
		return daxDevice{}, err
	}
	region, err := tree.pick(sel)
	if err != nil {
		return daxDevice{}, err
	}
	uuid, err := newUUID()
	if err != nil {
		return daxDevice{}, err
	}
	device, writes, err := region.plan(uuid)
	if err != nil {
		return daxDevice{}, err
	}
	for _, w := range writes {
		if err := w.do(sys); err != nil {
			return daxDevice{}, err
		}
	}
	if len(writes) > 0 {
		return daxDevice{}, fmt.Errorf("%w: region%d was just converted", errNotYet, region.number)
	}
	return device, nil
}

// open opens the device node and checks where in the pool it begins.
func (d daxDevice) open(dev string) (Aperture, error) {
	if d.size == 0 || d.size%uint64(spec.MemoryAlign) != 0 {
		return Aperture{}, fmt.Errorf("open dax: %s has a size of %d bytes", d.name, d.size)
	}
	if d.offset != uint64(spec.PoolReserved) {
		return Aperture{}, fmt.Errorf("open dax: %s begins %d bytes into its region, want %d", d.name, d.offset, uint64(spec.PoolReserved))
	}
	f, err := os.OpenFile(filepath.Join(dev, d.name), os.O_RDWR, 0)
	if err != nil {
		return Aperture{}, fmt.Errorf("open dax: %w", err)
	}
	return Aperture{File: f, PoolOffset: d.offset, Size: d.size}, nil
}

// write is one value for one sysfs file.
type write struct{ path, value string }

func (w write) do(sys string) error {
	f, err := os.OpenFile(filepath.Join(sys, w.path), os.O_WRONLY, 0)
	if err != nil {
		return fmt.Errorf("write %q to %s: %w", w.value, w.path, err)
	}
	_, err = f.WriteString(w.value)
	if err = errors.Join(err, f.Close()); err != nil {
		return fmt.Errorf("write %q to %s: %w", w.value, w.path, err)
	}
	return nil
}

func newUUID() (string, error) {
	var b [16]byte
	if _, err := rand.Read(b[:]); err != nil {
		return "", fmt.Errorf("make uuid: %w", err)
	}
	b[6], b[8] = b[6]&0x0f|0x40, b[8]&0x3f|0x80 // RFC 9562, section 5.4
	return fmt.Sprintf("%x-%x-%x-%x-%x", b[0:4], b[4:6], b[6:8], b[8:10], b[10:]), nil
}
