// SPDX-License-Identifier: Apache-2.0

package uki

import (
	"bytes"
	"crypto/sha256"
	"debug/pe"
	"errors"
	"strings"
	"testing"
)

func TestBuild(t *testing.T) {
	t.Parallel()
	stubs := map[string][]byte{
		"arm64":          makeStub(stubOptions{}),
		"amd64":          makeStub(stubOptions{machine: MachineAMD64}),
		"no-op filler":   makeStub(stubOptions{filler: 0xd503201f}),
		"six dirs":       makeStub(stubOptions{dirs: 6}),
		"linker remains": makeStub(stubOptions{tail: []byte("symbols and strings")}),
		"page headers":   makeStub(stubOptions{headers: 0x1000}),
	}
	for name, stub := range stubs {
		t.Run(name, func(t *testing.T) {
			before := bytes.Clone(stub)
			out := mustBuild(t, stub)
			if !bytes.Equal(stub, before) {
				t.Error("the stub was changed")
			}
			if again := mustBuild(t, stub); !bytes.Equal(out, again) {
				t.Error("two builds differ")
			}
			checkAgainstStdlib(t, stub, out)
			checkContents(t, out)
		})
	}
}

// checkAgainstStdlib reads the image with another parser.
func checkAgainstStdlib(t *testing.T, stub, out []byte) {
	t.Helper()
	old := mustOpen(t, stub).header.sections
	f, err := pe.NewFile(bytes.NewReader(out))
	if err != nil {
		t.Fatal(err)
	}
	opt := f.OptionalHeader.(*pe.OptionalHeader64)
	if opt.CheckSum != 0 || f.PointerToSymbolTable != 0 || f.NumberOfSymbols != 0 {
		t.Errorf("checksum %#x, symbols at %#x (%d), want none", opt.CheckSum, f.PointerToSymbolTable, f.NumberOfSymbols)
	}
	want := []string{".text", ".data", ".sbat", ".osrel", ".cmdline", ".uname", ".linux", ".initrd"}
	end, rawEnd := uint32(opt.SizeOfHeaders), uint32(opt.SizeOfHeaders)
	for i, s := range f.Sections {
		if s.Name != want[i] {
			t.Errorf("section %d is %s, want %s", i, s.Name, want[i])
		}
		if s.VirtualAddress < end || s.VirtualAddress%opt.SectionAlignment != 0 {
			t.Errorf("%s at %#x, want aligned and behind %#x", s.Name, s.VirtualAddress, end)
		}
		if s.Offset != rawEnd || s.Size%opt.FileAlignment != 0 {
			t.Errorf("%s at offset %#x with %#x bytes, want aligned, at %#x", s.Name, s.Offset, s.Size, rawEnd)
		}
		end, rawEnd = s.VirtualAddress+s.VirtualSize, s.Offset+s.Size
		if i < len(old) {
			want := stub[old[i].rawOffset:old[i].rawEnd()]
			got, err := s.Data()
			if err != nil || !bytes.HasPrefix(want, got) || old[i].virtualAddress != s.VirtualAddress {
				t.Errorf("%s of the stub was changed (error %v)", s.Name, err)
			}
		}
	}
	if got := uint32(align(uint64(end), uint64(opt.SectionAlignment))); opt.SizeOfImage != got {
		t.Errorf("SizeOfImage %#x, want %#x", opt.SizeOfImage, got)
	}
	if int(rawEnd) != len(out) {
		t.Errorf("%d bytes behind the last section", len(out)-int(rawEnd))
	}
}

func checkContents(t *testing.T, out []byte) {
	t.Helper()
	img := mustOpen(t, out)
	s := testSections()
	for name, want := range map[string][]byte{
		".osrel": s.OSRelease, ".cmdline": []byte(s.Cmdline), ".uname": []byte(s.Uname),
		".linux": s.Linux, ".initrd": s.Initrd,
	} {
		got, ok := img.Content(name)
		if !ok || !bytes.Equal(got, want) {
			t.Errorf("%s holds %d bytes (there: %t), want %d", name, len(got), ok, len(want))
		}
		for _, x := range img.Sections() {
			if x.Name == name && (x.SHA256 != sha256.Sum256(want) || int(x.Size) != len(want)) {
				t.Errorf("%s is listed with size %d and digest %x", name, x.Size, x.SHA256)
			}
		}
	}
	if _, ok := img.Content(".none"); ok {
		t.Error("a section that is not there was found")
	}
}

func TestBuildLeavesEmptySectionsOut(t *testing.T) {
	t.Parallel()
	out, err := Build(makeStub(stubOptions{}), Sections{Linux: []byte("kernel")})
	if err != nil {
		t.Fatal(err)
	}
	if n := len(mustOpen(t, out).Sections()); n != 4 {
		t.Errorf("%d sections, want the stub's 3 and .linux", n)
	}
}

func TestBuildRefuses(t *testing.T) {
	t.Parallel()
	good := makeStub(stubOptions{})
	used := bytes.Clone(good)
	used[0x200] = 1
	gap := bytes.Clone(good)
	h := mustOpen(t, good).header
	le.PutUint32(gap[h.table+sectionSize+20:], 0x10000) // .data elsewhere
	odd := makeStub(stubOptions{fileAlign: 8})
	le.PutUint32(odd[0x44+coffSize+offFileAlignment:], 0x200)
	sections := testSections()
	line := sections
	line.Cmdline = "a\nb"
	none := sections
	none.Linux = nil
	for _, tc := range []struct {
		name     string
		stub     []byte
		sections Sections
		is       error
		says     string
	}{
		{"nothing", nil, sections, ErrStub, "DOS header"},
		{"cut off", good[:0x500], sections, ErrStub, "ends at"},
		{"signed", mustSign(t, good, signerA()), sections, ErrStub, "signed"},
		{"no room", makeStub(stubOptions{headers: 0x200}), sections, ErrStub, "section table needs"},
		{"room in use", used, sections, ErrStub, "in use"},
		{"is one already", makeStub(stubOptions{extra: ".linux"}), sections, ErrStub, "already"},
		{"debug directory", makeStub(stubOptions{debug: true}), sections, ErrStub, "debug"},
		{"gap", gap, sections, ErrFormat, "begins at"},
		{"unaligned end", odd, sections, ErrStub, "not aligned"},
		{"two lines", good, line, nil, "one line"},
		{"no kernel", good, none, nil, "no kernel"},
	} {
		t.Run(tc.name, func(t *testing.T) {
			out, err := Build(tc.stub, tc.sections)
			if err == nil || out != nil {
				t.Fatalf("got %d bytes, error %v", len(out), err)
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
