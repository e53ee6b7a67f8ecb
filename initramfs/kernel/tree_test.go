// SPDX-License-Identifier: Apache-2.0

package kernel

import (
	"bytes"
	"compress/gzip"
	"debug/elf"
	"encoding/binary"
	"io"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/klauspost/compress/zstd"
	"github.com/ulikunitz/xz"
)

const release = "6.12.0-test-arm64"

// signature is how the kernel's build appends a module's signature: the bytes,
// a description of them, and this mark.
const signature = "\x30\x82signature bytes\x00\x00\x02~Module signature appended~\n"

// modinfo joins entries to the content of a .modinfo section.
func modinfo(entries ...string) []byte {
	return []byte(strings.Join(entries, "\x00") + "\x00")
}

// makeModule makes a relocatable ELF file with a .modinfo section, and a
// signature behind it.
func makeModule(info []byte) []byte { return append(makeELF(elf.ET_REL, info), signature...) }

func makeELF(kind elf.Type, info []byte) []byte {
	const headerSize, sectionSize = 64, 64
	names := []byte("\x00.modinfo\x00.shstrtab\x00")
	infoAt := headerSize
	namesAt := infoAt + len(info)
	table := (namesAt + len(names) + 7) &^ 7
	var b bytes.Buffer
	h := elf.Header64{
		Type: uint16(kind), Machine: uint16(elf.EM_AARCH64), Version: 1, Shoff: uint64(table),
		Ehsize: headerSize, Shentsize: sectionSize, Shnum: 3, Shstrndx: 2,
	}
	copy(h.Ident[:], "\x7fELF\x02\x01\x01")
	write := func(v any) {
		if err := binary.Write(&b, binary.LittleEndian, v); err != nil {
			panic(err)
		}
	}
	write(h)
	b.Write(info)
	b.Write(names)
	b.Write(make([]byte, table-b.Len()))
	write(elf.Section64{})
	write(elf.Section64{Name: 1, Type: uint32(elf.SHT_PROGBITS), Flags: uint64(elf.SHF_ALLOC), Off: uint64(infoAt), Size: uint64(len(info))})
	write(elf.Section64{Name: 10, Type: uint32(elf.SHT_STRTAB), Off: uint64(namesAt), Size: uint64(len(names))})
	return b.Bytes()
}

// module is makeModule for a module of the test's kernel.
func module(name, depends string, more ...string) []byte {
	return makeModule(modinfo(append([]string{
		"license=GPL", "depends=" + depends, "name=" + name, "vermagic=" + release + " SMP mod_unload aarch64",
	}, more...)...))
}

// squeeze compresses by the suffix of the name.
func squeeze(t testing.TB, name string, data []byte) []byte {
	t.Helper()
	var b bytes.Buffer
	var w io.WriteCloser
	var err error
	switch filepath.Ext(name) {
	case ".xz":
		w, err = xz.NewWriter(&b)
	case ".zst":
		w, err = zstd.NewWriter(&b)
	case ".gz":
		w = gzip.NewWriter(&b)
	default:
		return data
	}
	if err != nil {
		t.Fatal(err)
	}
	if _, err := w.Write(data); err != nil {
		t.Fatal(err)
	}
	if err := w.Close(); err != nil {
		t.Fatal(err)
	}
	return b.Bytes()
}

// tree is a kernel package: files by path below lib/modules/REL.
type tree map[string][]byte

// store writes the package, with modules below lib.
func (tr tree) store(t testing.TB, lib string) string {
	t.Helper()
	dir := t.TempDir()
	put := func(name string, b []byte) {
		file := filepath.Join(dir, name)
		if err := os.MkdirAll(filepath.Dir(file), 0o755); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(file, b, 0o644); err != nil {
			t.Fatal(err)
		}
	}
	put("boot/vmlinuz-"+release, []byte("the kernel"))
	put("boot/config-"+release, []byte("CONFIG_X=y\n"))
	put(lib+"/"+release+"/modules.builtin", []byte("kernel/fs/ext4/ext4.ko\nkernel/drivers/nvme/host/nvme-core.ko\n"))
	for name, b := range tr {
		put(lib+"/"+release+"/"+name, squeeze(t, name, b))
	}
	return dir
}

// usual is a package with modules in all kinds of compression.
func usual() tree {
	return tree{
		"kernel/drivers/net/virtio_net.ko.xz":        module("virtio_net", "net_failover", "softdep=pre: nothing_of_the_kind"),
		"kernel/drivers/net/net_failover.ko.zst":     module("net_failover", "failover"),
		"kernel/net/core/failover.ko.gz":             module("failover", ""),
		"kernel/drivers/char/hw/virtio-rng.ko":       module("virtio_rng", ""),
		"kernel/drivers/nvdimm/libnvdimm.ko.xz":      module("libnvdimm", ""),
		"kernel/drivers/nvdimm/nd_pmem.ko.xz":        module("nd_pmem", "nd_btt,libnvdimm,nvme_core"),
		"kernel/drivers/nvdimm/nd_btt.ko.xz":         module("nd_btt", "libnvdimm"),
		"kernel/loop/a.ko":                           module("a", "b"),
		"kernel/loop/b.ko":                           module("b", "a"),
		"kernel/broken/orphan.ko":                    module("orphan", "missing_one"),
		"kernel/broken/liar.ko":                      module("someone_else", ""),
		"kernel/broken/old.ko":                       makeModule(modinfo("name=old", "depends=", "vermagic=5.10.0 SMP")),
		"kernel/broken/text.ko":                      []byte("not a module"),
		"kernel/broken/cut.ko.xz":                    module("cut", ""),
		"kernel/broken/program.ko":                   makeELF(elf.ET_EXEC, modinfo("name=program")),
		"modules.order":                              []byte("kernel/net/core/failover.ko\n"),
		"kernel/drivers/net/notes-about-virtio.text": []byte("not a module"),
	}
}
