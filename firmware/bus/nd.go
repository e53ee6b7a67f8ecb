// SPDX-License-Identifier: Apache-2.0

package bus

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
)

// errNotYet says that the kernel is not through with something: look again.
var errNotYet = errors.New("not there yet")

// ndTree is what sysfs says of NVDIMM regions (Documentation/driver-api/nvdimm
// of the kernel): enough to decide, nothing more.
type ndTree struct{ regions []ndRegion }

type ndRegion struct {
	number     int
	size       uint64
	resource   uint64 // physical address
	seed       string // the unused device that the next conversion takes
	namespaces []ndDevice
	dax        []ndDevice  // libnvdimm's devices, configured or seed
	devices    []daxDevice // ready ones, with a device node
}

type ndDevice struct {
	name      string
	size      uint64
	driver    string // "" when none is bound
	holder    string // of a namespace: what has claimed it
	namespace string // of a dax device: what it stands on
}

// daxDevice is a device-DAX character device.
type daxDevice struct {
	name   string
	size   uint64
	offset uint64 // from the start of its region
}

const (
	ndDevices  = "bus/nd/devices"
	ndDrivers  = "bus/nd/drivers"
	daxDevices = "bus/dax/devices"
)

// attr reads a sysfs attribute; "" if it is not there.
func attr(elem ...string) string {
	b, err := os.ReadFile(filepath.Join(elem...))
	if err != nil {
		return ""
	}
	return strings.TrimSpace(string(b))
}

// number reads a decimal or 0x-prefixed attribute; 0 if it is none.
func number(elem ...string) uint64 {
	n, err := strconv.ParseUint(attr(elem...), 0, 64)
	if err != nil {
		return 0
	}
	return n
}

func driverOf(elem ...string) string {
	target, err := os.Readlink(filepath.Join(append(elem, "driver")...))
	if err != nil {
		return ""
	}
	return filepath.Base(target)
}

func readND(sys string) (*ndTree, error) {
	entries, err := os.ReadDir(filepath.Join(sys, ndDevices))
	if errors.Is(err, os.ErrNotExist) {
		return nil, fmt.Errorf("%w: no %s: is libnvdimm loaded?", errNotYet, ndDevices)
	}
	if err != nil {
		return nil, err
	}
	t := &ndTree{}
	for _, e := range entries {
		digits, ok := strings.CutPrefix(e.Name(), "region")
		n, err := strconv.Atoi(digits)
		if !ok || err != nil || n < 0 {
			continue
		}
		r := ndRegion{
			number: n, size: number(sys, ndDevices, e.Name(), "size"),
			resource: number(sys, ndDevices, e.Name(), "resource"),
			seed:     attr(sys, ndDevices, e.Name(), "dax_seed"),
		}
		r.readDevices(sys, entries)
		t.regions = append(t.regions, r)
	}
	slices.SortFunc(t.regions, func(a, b ndRegion) int { return a.number - b.number })
	return t, nil
}

func (r *ndRegion) readDevices(sys string, entries []os.DirEntry) {
	for _, e := range entries {
		d := ndDevice{
			name: e.Name(), size: number(sys, ndDevices, e.Name(), "size"), driver: driverOf(sys, ndDevices, e.Name()),
			holder: attr(sys, ndDevices, e.Name(), "holder"), namespace: attr(sys, ndDevices, e.Name(), "namespace"),
		}
		switch {
		case strings.HasPrefix(d.name, fmt.Sprintf("namespace%d.", r.number)) && d.size > 0:
			r.namespaces = append(r.namespaces, d)
		case strings.HasPrefix(d.name, fmt.Sprintf("dax%d.", r.number)):
			r.dax = append(r.dax, d)
		}
	}
	ready, err := os.ReadDir(filepath.Join(sys, daxDevices))
	if err != nil {
		return // device_dax is not loaded, or has nothing yet
	}
	for _, e := range ready {
		if strings.HasPrefix(e.Name(), fmt.Sprintf("dax%d.", r.number)) {
			at := number(sys, daxDevices, e.Name(), "resource")
			r.devices = append(r.devices, daxDevice{e.Name(), number(sys, daxDevices, e.Name(), "size"), at - r.resource})
		}
	}
}

// pick chooses the region.
func (t *ndTree) pick(sel DAXSelect) (*ndRegion, error) {
	var found *ndRegion
	for i := range t.regions {
		r := &t.regions[i]
		if sel.Size == 0 && r.number != sel.Region || sel.Size != 0 && r.size != sel.Size {
			continue
		}
		if found != nil {
			return nil, fmt.Errorf("region%d and region%d both have %d bytes", found.number, r.number, sel.Size)
		}
		found = r
	}
	if found != nil {
		return found, nil
	}
	if sel.Size != 0 {
		return nil, fmt.Errorf("%w: no NVDIMM region of %d bytes", errNotYet, sel.Size)
	}
	return nil, fmt.Errorf("%w: no region%d", errNotYet, sel.Region)
}

// plan says what to write next, in order, or returns the device that is ready.
// A plan that was cut short is continued by the next one.
func (r *ndRegion) plan(uuid string) (daxDevice, []write, error) {
	if len(r.devices) > 1 {
		return daxDevice{}, nil, fmt.Errorf("region%d has %d dax devices, want one", r.number, len(r.devices))
	}
	if len(r.devices) == 1 {
		return r.devices[0], nil, nil
	}
	bind := func(name string) write { return write{ndDrivers + "/dax_pmem/bind", name} }
	for _, d := range r.dax {
		if d.namespace == "" {
			continue
		}
		if d.driver != "" {
			return daxDevice{}, nil, fmt.Errorf("%w: %s is bound to %s and has no device", errNotYet, d.name, d.driver)
		}
		return daxDevice{}, []write{bind(d.name)}, nil
	}
	if len(r.namespaces) != 1 {
		return daxDevice{}, nil, fmt.Errorf("%w: region%d has %d namespaces, want one", errNotYet, r.number, len(r.namespaces))
	}
	ns := r.namespaces[0]
	if ns.holder != "" {
		return daxDevice{}, nil, fmt.Errorf("%s is held by %s", ns.name, ns.holder)
	}
	if r.seed == "" {
		return daxDevice{}, nil, fmt.Errorf("%w: region%d has no dax seed", errNotYet, r.number)
	}
	var w []write
	if ns.driver != "" {
		w = append(w, write{ndDrivers + "/" + ns.driver + "/unbind", ns.name})
	}
	seed := ndDevices + "/" + r.seed + "/"
	return daxDevice{}, append(w,
		write{seed + "uuid", uuid},
		write{seed + "mode", "ram"}, // page structures in the card's RAM, none of the pool given away
		write{seed + "align", "2097152"},
		write{seed + "namespace", ns.name},
		bind(r.seed)), nil
}
