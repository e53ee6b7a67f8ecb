// SPDX-License-Identifier: Apache-2.0

package kernel

import (
	"bytes"
	"errors"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
)

func mustOpen(t *testing.T, dir string) *Kernel {
	t.Helper()
	k, err := Open(dir)
	if err != nil {
		t.Fatal(err)
	}
	return k
}

func names(set *Set) []string {
	var list []string
	for _, m := range set.Load {
		list = append(list, m.Name)
	}
	return list
}

func TestOpen(t *testing.T) {
	t.Parallel()
	for _, lib := range []string{"lib/modules", "usr/lib/modules"} {
		k := mustOpen(t, usual().store(t, lib))
		if k.Release() != release {
			t.Errorf("%s: release %q, want %q", lib, k.Release(), release)
		}
		image, err := k.Image()
		if err != nil || string(image) != "the kernel" {
			t.Errorf("%s: image %q, error %v", lib, image, err)
		}
		if filepath.Base(k.ImagePath()) != "vmlinuz-"+release {
			t.Errorf("%s: image path %s", lib, k.ImagePath())
		}
		if _, err := k.Resolve([]string{"virtio_net"}); err != nil {
			t.Errorf("%s: %v", lib, err)
		}
	}
}

func TestOpenRefuses(t *testing.T) {
	t.Parallel()
	damage := func(f func(t *testing.T, dir string)) string {
		dir := usual().store(t, "lib/modules")
		f(t, dir)
		return dir
	}
	must := func(t *testing.T, err error) {
		t.Helper()
		if err != nil {
			t.Fatal(err)
		}
	}
	for _, tc := range []struct {
		name, dir string
		is        error
		says      string
	}{
		{"nothing", t.TempDir(), ErrNoKernel, "no boot/vmlinuz-"},
		{"two kernels", damage(func(t *testing.T, dir string) {
			must(t, os.WriteFile(filepath.Join(dir, "boot/vmlinuz-6.1.0"), []byte("k"), 0o644))
		}), ErrNoKernel, "2 kernels"},
		{"no modules", damage(func(t *testing.T, dir string) {
			must(t, os.RemoveAll(filepath.Join(dir, "lib")))
		}), ErrNoKernel, "no lib/modules/" + release},
		{"no list of built-in modules", damage(func(t *testing.T, dir string) {
			must(t, os.Remove(filepath.Join(dir, "lib/modules", release, "modules.builtin")))
		}), os.ErrNotExist, "built-in"},
		{"a module twice", damage(func(t *testing.T, dir string) {
			must(t, os.WriteFile(filepath.Join(dir, "lib/modules", release, "kernel/nd-btt.ko"), nil, 0o644))
		}), nil, "nd_btt is there twice"},
	} {
		t.Run(tc.name, func(t *testing.T) {
			k, err := Open(tc.dir)
			if err == nil || k != nil {
				t.Fatalf("got %v, error %v", k, err)
			}
			if tc.is != nil && !errors.Is(err, tc.is) {
				t.Errorf("error %v, want one that wraps %v", err, tc.is)
			}
			if !strings.Contains(err.Error(), tc.says) {
				t.Errorf("error %q, want one that says %q", err, tc.says)
			}
		})
	}
}

func TestResolve(t *testing.T) {
	t.Parallel()
	k := mustOpen(t, usual().store(t, "lib/modules"))
	for _, tc := range []struct {
		name    string
		ask     []string
		load    []string
		builtin []string
	}{
		{"none", nil, nil, nil},
		{"dependencies first", []string{"virtio_net"}, []string{"failover", "net_failover", "virtio_net"}, nil},
		{"asked order is kept", []string{"virtio_rng", "failover"}, []string{"virtio_rng", "failover"}, nil},
		{"dashes and repetition", []string{"virtio-rng", "virtio_rng", " virtio_rng "}, []string{"virtio_rng"}, nil},
		{"built in", []string{"nvme-core", "ext4", "ext4"}, nil, []string{"ext4", "nvme_core"}},
		{"depends on what is built in", []string{"nd_pmem"}, []string{"libnvdimm", "nd_btt", "nd_pmem"}, nil},
		{"a dependency asked for later", []string{"nd_pmem", "libnvdimm"}, []string{"libnvdimm", "nd_btt", "nd_pmem"}, nil},
	} {
		t.Run(tc.name, func(t *testing.T) {
			set, err := k.Resolve(tc.ask)
			if err != nil {
				t.Fatal(err)
			}
			if got := names(set); !slices.Equal(got, tc.load) {
				t.Errorf("load %v, want %v", got, tc.load)
			}
			if !slices.Equal(set.BuiltIn, tc.builtin) {
				t.Errorf("built in %v, want %v", set.BuiltIn, tc.builtin)
			}
		})
	}
}

func TestResolveRefuses(t *testing.T) {
	t.Parallel()
	dir := usual().store(t, "lib/modules")
	cut := filepath.Join(dir, "lib/modules", release, "kernel/broken/cut.ko.xz")
	b, err := os.ReadFile(cut)
	if err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(cut, b[:len(b)/2], 0o644); err != nil {
		t.Fatal(err)
	}
	k := mustOpen(t, dir)
	for _, tc := range []struct {
		name, ask string
		is        error
		says      string
	}{
		{"unknown", "i6300esb", ErrUnknownModule, `"i6300esb" in kernel ` + release},
		{"unknown dependency", "orphan", ErrUnknownModule, "needed by orphan"},
		{"empty name", "", ErrUnknownModule, `""`},
		{"path", "../../boot/vmlinuz", ErrUnknownModule, "../../boot"},
		{"loop", "a", nil, "depends on itself"},
		{"another name inside", "liar", nil, `says that it is "someone_else"`},
		{"another kernel", "old", nil, `"5.10.0", not ` + release},
		{"not ELF", "text", ErrModinfo, "module text"},
		{"cut off", "cut", nil, "module cut"},
		{"a program", "program", ErrModinfo, "ET_EXEC"},
	} {
		t.Run(tc.name, func(t *testing.T) {
			set, err := k.Resolve([]string{"failover", tc.ask})
			if err == nil || set != nil {
				t.Fatalf("got %v, error %v", set, err)
			}
			if tc.is != nil && !errors.Is(err, tc.is) {
				t.Errorf("error %v, want one that wraps %v", err, tc.is)
			}
			if !strings.Contains(err.Error(), tc.says) || !strings.Contains(err.Error(), release) {
				t.Errorf("error %q, want one that says %q and names the kernel", err, tc.says)
			}
		})
	}
}

// What is loaded is the decompressed file, with the signature behind it.
func TestResolveKeepsSignatures(t *testing.T) {
	t.Parallel()
	tr := usual()
	k := mustOpen(t, tr.store(t, "usr/lib/modules"))
	set, err := k.Resolve([]string{"virtio_net", "virtio_rng"})
	if err != nil {
		t.Fatal(err)
	}
	want := map[string]string{
		"failover":     "kernel/net/core/failover.ko.gz",
		"net_failover": "kernel/drivers/net/net_failover.ko.zst",
		"virtio_net":   "kernel/drivers/net/virtio_net.ko.xz",
		"virtio_rng":   "kernel/drivers/char/hw/virtio-rng.ko",
	}
	for _, m := range set.Load {
		file := want[m.Name]
		if !bytes.Equal(m.Data, tr[file]) || !bytes.HasSuffix(m.Data, []byte(signature)) {
			t.Errorf("%s: %d bytes are not those of %s (%d)", m.Name, len(m.Data), file, len(tr[file]))
		}
		plain := "lib/modules/" + release + "/" + file[:strings.Index(file, ".ko")+3]
		if m.Path != plain {
			t.Errorf("%s: path %s, want %s", m.Name, m.Path, plain)
		}
	}
}

func TestDecompressLimit(t *testing.T) {
	t.Parallel()
	for _, name := range []string{"x.ko", "x.ko.gz", "x.ko.xz", "x.ko.zst"} {
		b := squeeze(t, name, make([]byte, 1000))
		if got, err := decompress(bytes.NewReader(b), name, 1000); err != nil || len(got) != 1000 {
			t.Errorf("%s: %d bytes, error %v", name, len(got), err)
		}
		if got, err := decompress(bytes.NewReader(b), name, 999); err == nil || got != nil {
			t.Errorf("%s: %d bytes over the limit passed", name, len(got))
		}
	}
}
