// SPDX-License-Identifier: Apache-2.0

package disk

import (
	"bytes"
	"context"
	"crypto/sha256"
	"errors"
	"io"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"github.com/davit-dpu/davit/tools/packages"
)

// testImage is a PE image of about size bytes for the machine type.
func testImage(t *testing.T, machine uint16, size int) []byte {
	t.Helper()
	b, err := os.ReadFile("../../../secureboot/uki/testdata/stub.efi")
	if err != nil {
		t.Fatal(err)
	}
	b = bytes.Clone(b)
	le.PutUint16(b[0x44:], machine)
	for i := 0; len(b) < size; i++ {
		b = le.AppendUint32(b, uint32(i))
	}
	return b
}

// mke2fs is that of the system, or of the user's package cache.
func mke2fs(t *testing.T) func(context.Context, ...string) *exec.Cmd {
	t.Helper()
	cache, err := packages.Open(packages.Config{})
	if err != nil {
		t.Fatal(err)
	}
	set, err := cache.Ensure(t.Context(), nil, packages.E2fsprogs)
	if err != nil {
		t.Fatal(err)
	}
	return func(ctx context.Context, args ...string) *exec.Cmd { return set.CommandContext(ctx, "mke2fs", args...) }
}

func testOptions(t *testing.T) Options {
	tree := t.TempDir()
	if err := os.WriteFile(filepath.Join(tree, "hello"), []byte("state of the card: "+t.Name()), 0o600); err != nil {
		t.Fatal(err)
	}
	return Options{
		Path: filepath.Join(t.TempDir(), "card.img"), UKI: testImage(t, 0xaa64, 3<<20),
		ESPSize: 40 << 20, DataSize: 16 << 20, DataTree: tree, Mke2fs: mke2fs(t),
	}
}

func readRange(t *testing.T, path string, offset, size int64) []byte {
	t.Helper()
	f, err := os.Open(path)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	b := make([]byte, size)
	if _, err := f.ReadAt(b, offset); err != nil {
		t.Fatal(err)
	}
	return b
}

func TestCreateAndReplace(t *testing.T) {
	t.Parallel()
	o := testOptions(t)
	if err := Create(t.Context(), o); err != nil {
		t.Fatal(err)
	}
	esp := func() []byte { return readRange(t, o.Path, mebibyte, o.ESPSize) }
	data := func() []byte { return readRange(t, o.Path, mebibyte+o.ESPSize, o.DataSize) }
	if got := readFAT(t, esp(), "EFI/BOOT/BOOTAA64.EFI"); !bytes.Equal(got, o.UKI) {
		t.Errorf("the image on the disk has %d bytes, want %d", len(got), len(o.UKI))
	}
	before := data()
	if le.Uint16(before[1024+56:]) != 0xef53 || !bytes.Contains(before[1024:2048], []byte(DataName)) {
		t.Error("no ext4 file system with its label on the data partition")
	}
	if !bytes.Contains(before, []byte("state of the card: "+t.Name())) {
		t.Error("the tree is not on the data partition")
	}
	if uid, gid := rootOwner(before); uid != 0 || gid != 0 {
		t.Errorf("the root folder belongs to %d:%d", uid, gid)
	}
	for _, tc := range []struct {
		name    string
		image   []byte
		changed bool
	}{
		{"the same", o.UKI, false},
		{"larger", testImage(t, 0xaa64, 9<<20), true},
		{"smaller", testImage(t, 0xaa64, 1<<20), true},
		{"the same again", testImage(t, 0xaa64, 1<<20), false},
	} {
		changed, err := ReplaceUKI(o.Path, tc.image)
		if err != nil || changed != tc.changed {
			t.Errorf("%s: changed %t, error %v, want %t", tc.name, changed, err, tc.changed)
		}
		if got := readFAT(t, esp(), "EFI/BOOT/BOOTAA64.EFI"); !bytes.Equal(got, tc.image) {
			t.Errorf("%s: the image on the disk has %d bytes, want %d", tc.name, len(got), len(tc.image))
		}
	}
	if sha256.Sum256(data()) != sha256.Sum256(before) {
		t.Error("the data partition was changed")
	}
}

// rootOwner reads the owner of inode 2 of an ext4 file system with one group.
func rootOwner(b []byte) (uid, gid uint16) {
	const superblock, block = 1024, 4096
	inodeSize := int(le.Uint16(b[superblock+88:]))
	table := int(le.Uint32(b[block+8:])) * block
	inode := b[table+inodeSize:]
	return le.Uint16(inode[2:]), le.Uint16(inode[24:])
}

func TestReplaceRefusesBeforeWriting(t *testing.T) {
	t.Parallel()
	o := testOptions(t)
	if err := Create(t.Context(), o); err != nil {
		t.Fatal(err)
	}
	before, err := os.ReadFile(o.Path)
	if err != nil {
		t.Fatal(err)
	}
	for name, image := range map[string][]byte{
		"too large": testImage(t, 0xaa64, 41<<20), "not an image": []byte("text"), "nothing": nil,
		"strange machine": testImage(t, 0x1234, 0),
	} {
		if changed, err := ReplaceUKI(o.Path, image); err == nil || changed {
			t.Errorf("%s: changed %t, error %v", name, changed, err)
		}
	}
	after, err := os.ReadFile(o.Path)
	if err != nil || !bytes.Equal(before, after) {
		t.Errorf("the disk was changed (error %v)", err)
	}
	other := filepath.Join(t.TempDir(), "other")
	if err := os.WriteFile(other, make([]byte, 4<<20), 0o600); err != nil {
		t.Fatal(err)
	}
	if changed, err := ReplaceUKI(other, o.UKI); changed || !errors.Is(err, ErrLayout) {
		t.Errorf("a file that is no disk: changed %t, error %v, want %v", changed, err, ErrLayout)
	}
}

func TestCreateRefuses(t *testing.T) {
	t.Parallel()
	broken := func(ctx context.Context, args ...string) *exec.Cmd {
		return exec.CommandContext(ctx, "sh", "-c", "echo no such luck >&2; exit 3")
	}
	for _, tc := range []struct {
		name   string
		change func(*Options)
		says   string
	}{
		{"mke2fs fails", func(o *Options) { o.Mke2fs = broken }, "no such luck"},
		{"no mke2fs", func(o *Options) { o.Mke2fs = nil }, "no mke2fs"},
		{"no folder", func(o *Options) { o.Path = filepath.Join(filepath.Dir(o.Path), "none", "x") }, "no such file"},
		{"odd size", func(o *Options) { o.ESPSize++ }, "multiples"},
		{"negative size", func(o *Options) { o.DataSize = -mebibyte }, "multiples"},
		{"small partition", func(o *Options) { o.ESPSize = 16 << 20 }, "too small for FAT32"},
		{"large image", func(o *Options) { o.UKI = testImage(t, 0xaa64, 40<<20) }, "does not fit"},
		{"no image", func(o *Options) { o.UKI = nil }, "malformed"},
	} {
		t.Run(tc.name, func(t *testing.T) {
			o := testOptions(t)
			tc.change(&o)
			if err := Create(t.Context(), o); err == nil || !strings.Contains(err.Error(), tc.says) {
				t.Errorf("error %v, want one that says %q", err, tc.says)
			}
			left, err := filepath.Glob(filepath.Join(filepath.Dir(o.Path), "*"))
			if err != nil || len(left) != 0 {
				t.Errorf("left over: %v, error %v", left, err)
			}
		})
	}
}

func TestCreateKeepsWhatExists(t *testing.T) {
	t.Parallel()
	o := testOptions(t)
	if err := os.WriteFile(o.Path, []byte("a card's state"), 0o600); err != nil {
		t.Fatal(err)
	}
	if err := Create(t.Context(), o); !errors.Is(err, fs.ErrExist) {
		t.Errorf("error %v, want %v", err, fs.ErrExist)
	}
	f, err := os.Open(o.Path)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	if b, err := io.ReadAll(f); err != nil || string(b) != "a card's state" {
		t.Errorf("%q, error %v", b, err)
	}
}
