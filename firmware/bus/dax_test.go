// SPDX-License-Identifier: Apache-2.0

package bus

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/davit-dpu/davit/firmware/spec"
)

// fakeSys is a sysfs tree of one or more NVDIMM regions.
type fakeSys struct {
	t    *testing.T
	root string
}

func newFakeSys(t *testing.T) *fakeSys {
	s := &fakeSys{t, t.TempDir()}
	for _, d := range []string{"nd_pmem", "dax_pmem"} {
		s.set(ndDrivers+"/"+d+"/bind", "")
		s.set(ndDrivers+"/"+d+"/unbind", "")
	}
	return s
}

func (s *fakeSys) set(path, value string) {
	s.t.Helper()
	full := filepath.Join(s.root, path)
	if err := errors.Join(os.MkdirAll(filepath.Dir(full), 0o755), os.WriteFile(full, []byte(value), 0o644)); err != nil {
		s.t.Fatal(err)
	}
}

func (s *fakeSys) get(path string) string { return attr(s.root, path) }

func (s *fakeSys) driver(device, driver string) {
	s.t.Helper()
	link := filepath.Join(s.root, ndDevices, device, "driver")
	_ = os.Remove(link)
	if driver == "" {
		return
	}
	if err := os.Symlink(filepath.Join(s.root, ndDrivers, driver), link); err != nil {
		s.t.Fatal(err)
	}
}

// region adds a region with a raw namespace, as a fresh pool comes up.
func (s *fakeSys) region(n int, size uint64) {
	r := fmt.Sprintf("%s/region%d/", ndDevices, n)
	s.set(r+"size", fmt.Sprint(size))
	s.set(r+"resource", fmt.Sprintf("%#x", uint64(n+1)<<32))
	s.set(r+"dax_seed", fmt.Sprintf("dax%d.0", n))
	ns := fmt.Sprintf("%s/namespace%d.0/", ndDevices, n)
	s.set(ns+"size", fmt.Sprint(size))
	s.set(ns+"holder", "")
	s.driver(fmt.Sprintf("namespace%d.0", n), "nd_pmem")
	dax := fmt.Sprintf("%s/dax%d.0/", ndDevices, n)
	for _, a := range []string{"uuid", "mode", "align", "namespace"} {
		s.set(dax+a, "")
	}
}

// ready adds the character device, as the kernel does after the bind.
func (s *fakeSys) ready(n int, size uint64) {
	d := fmt.Sprintf("%s/dax%d.0/", daxDevices, n)
	s.set(d+"size", fmt.Sprint(size))
	s.set(d+"resource", fmt.Sprintf("%#x", uint64(n+1)<<32+uint64(spec.PoolReserved)))
}

func TestDAXConversion(t *testing.T) {
	t.Parallel()
	s := newFakeSys(t)
	s.region(0, 64<<20)
	s.region(1, 512<<20)
	_, err := stepDAX(s.root, DAXSelect{Size: 512 << 20})
	if !errors.Is(err, errNotYet) {
		t.Fatal(err)
	}
	for path, want := range map[string]string{
		ndDrivers + "/nd_pmem/unbind": "namespace1.0", ndDrivers + "/dax_pmem/bind": "dax1.0",
		ndDevices + "/dax1.0/mode": "ram", ndDevices + "/dax1.0/align": "2097152", ndDevices + "/dax1.0/namespace": "namespace1.0",
	} {
		if got := s.get(path); got != want {
			t.Errorf("%s: %q, want %q", path, got, want)
		}
	}
	if uuid := s.get(ndDevices + "/dax1.0/uuid"); len(uuid) != 36 || uuid[14] != '4' {
		t.Errorf("uuid %q", uuid)
	}
	if s.get(ndDevices+"/dax0.0/mode") != "" {
		t.Error("the other region was touched")
	}
	s.ready(1, 510<<20)
	dev := t.TempDir()
	if err := os.WriteFile(filepath.Join(dev, "dax1.0"), nil, 0o600); err != nil {
		t.Fatal(err)
	}
	a, err := openDAX(t.Context(), s.root, dev, DAXSelect{Region: 1})
	if err != nil {
		t.Fatal(err)
	}
	defer a.File.Close()
	if a.Size != 510<<20 || a.PoolOffset != uint64(spec.PoolReserved) || a.FileOffset != 0 {
		t.Errorf("aperture %+v", a)
	}
}

func TestDAXPlan(t *testing.T) {
	t.Parallel()
	raw := ndDevice{name: "namespace0.0", size: 1 << 30, driver: "nd_pmem"}
	for _, c := range []struct {
		name   string
		region ndRegion
		want   string // paths written, or the ready device
		err    string
	}{
		{"raw", ndRegion{seed: "dax0.0", namespaces: []ndDevice{raw}}, "unbind uuid mode align namespace bind", ""},
		{"raw, interrupted after unbind", ndRegion{seed: "dax0.0", namespaces: []ndDevice{{name: "namespace0.0", size: 1}}}, "uuid mode align namespace bind", ""},
		{"configured, not bound", ndRegion{seed: "dax0.1", namespaces: []ndDevice{raw}, dax: []ndDevice{{name: "dax0.0", namespace: "namespace0.0"}}}, "bind", ""},
		{"bound, device to come", ndRegion{dax: []ndDevice{{name: "dax0.0", namespace: "namespace0.0", driver: "dax_pmem"}}}, "", "not there yet"},
		{"later boot", ndRegion{namespaces: []ndDevice{raw}, devices: []daxDevice{{name: "dax0.0", size: 2}}}, "dax0.0", ""},
		{"two devices", ndRegion{devices: make([]daxDevice, 2)}, "", "want one"},
		{"held by a btt", ndRegion{seed: "dax0.0", namespaces: []ndDevice{{name: "namespace0.0", size: 1, holder: "btt0.0"}}}, "", "is held by btt0.0"},
		{"no namespace", ndRegion{seed: "dax0.0"}, "", "0 namespaces"},
		{"no seed", ndRegion{namespaces: []ndDevice{raw}}, "", "no dax seed"},
	} {
		d, writes, err := c.region.plan("u")
		got := []string{}
		for _, w := range writes {
			got = append(got, filepath.Base(w.path))
		}
		if d.name != "" {
			got = []string{d.name}
		}
		if strings.Join(got, " ") != c.want || (err == nil) != (c.err == "") || err != nil && !strings.Contains(err.Error(), c.err) {
			t.Errorf("%s: %v, %v", c.name, got, err)
		}
	}
}

func TestDAXRefusals(t *testing.T) {
	t.Parallel()
	s := newFakeSys(t)
	s.region(0, 64<<20)
	s.region(1, 64<<20)
	if _, err := openDAX(t.Context(), s.root, "", DAXSelect{Size: 64 << 20}); err == nil || !strings.Contains(err.Error(), "both") {
		t.Errorf("two regions of one size: %v", err)
	}
	ctx, cancel := context.WithTimeout(t.Context(), 10*time.Millisecond)
	defer cancel()
	if _, err := openDAX(ctx, s.root, "", DAXSelect{Region: 7}); !errors.Is(err, context.DeadlineExceeded) || !strings.Contains(err.Error(), "no region7") {
		t.Errorf("a region that never comes: %v", err)
	}
	s.set(daxDevices+"/dax0.0/size", "4194304")
	s.set(daxDevices+"/dax0.0/resource", fmt.Sprintf("%#x", uint64(1)<<32+4096))
	if _, err := openDAX(t.Context(), s.root, "", DAXSelect{}); err == nil || !strings.Contains(err.Error(), "begins 4096 bytes into its region") {
		t.Errorf("a device at a wrong offset: %v", err)
	}
	if _, err := openDAX(ctx, t.TempDir(), "", DAXSelect{}); err == nil || !strings.Contains(err.Error(), "libnvdimm") {
		t.Errorf("no libnvdimm: %v", err)
	}
}

func TestFindPort(t *testing.T) {
	t.Parallel()
	s := newFakeSys(t)
	s.set("class/virtio-ports/vport0p1/name", "org.qemu.guest_agent.0\n")
	if _, err := findPort(s.root, "/dev", PortName); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("no such port: %v", err)
	}
	s.set("class/virtio-ports/vport1p3/name", PortName+"\n")
	got, err := findPort(s.root, "/dev", PortName)
	if err != nil || got != "/dev/vport1p3" {
		t.Errorf("got %q, %v", got, err)
	}
}

func TestNDTreeIgnoresOthers(t *testing.T) {
	t.Parallel()
	s := newFakeSys(t)
	s.region(0, 1<<30)
	for _, d := range []string{"ndbus0", "nmem0", "regionX", "btt0.0", "dax10.0", "namespace10.0"} {
		s.set(ndDevices+"/"+d+"/size", "5")
	}
	tree, err := readND(s.root)
	if err != nil || len(tree.regions) != 1 {
		t.Fatalf("%+v, %v", tree, err)
	}
	if r := tree.regions[0]; len(r.namespaces) != 1 || len(r.dax) != 1 || !slices.Equal(r.devices, nil) {
		t.Errorf("region %+v", r)
	}
}
