// SPDX-License-Identifier: Apache-2.0

package image

import (
	"bytes"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"strings"
	"testing"

	"github.com/u-root/mkuimage/cpio"
)

// testArchive has one record of each kind.
func testArchive(t testing.TB) []byte {
	t.Helper()
	a := newArchive()
	a.file("etc/hello", 0o644, []byte("hello"))
	a.file("empty", 0o600, nil)
	a.record(cpio.Symlink("bin/sh", "../bbin/gosh"))
	a.skeleton()
	b, err := a.bytes()
	if err != nil {
		t.Fatal(err)
	}
	return b
}

func TestInspect(t *testing.T) {
	t.Parallel()
	plain := testArchive(t)
	initrd, err := compress(plain)
	if err != nil {
		t.Fatal(err)
	}
	m, err := Inspect(Payload{Kernel: make([]byte, 1<<20), Initrd: initrd, Uname: "6.12", Cmdline: "quiet"})
	if err != nil {
		t.Fatal(err)
	}
	if m.KernelSize != 1<<20 || m.InitrdSize != len(initrd) || m.PlainSize != len(plain) {
		t.Errorf("sizes %d %d %d", m.KernelSize, m.InitrdSize, m.PlainSize)
	}
	want := []Entry{
		{Path: "/bin/sh", Mode: fs.ModeSymlink | 0o777, Size: 12, Target: "../bbin/gosh",
			SHA256: "ac2475f028d944a8"},
		{Path: "/dev/console", Mode: fs.ModeDevice | fs.ModeCharDevice | 0o600, SHA256: "e3b0c44298fc1c14"},
		{Path: "/dev/null", Mode: fs.ModeDevice | fs.ModeCharDevice | 0o666, SHA256: "e3b0c44298fc1c14"},
		{Path: "/empty", Mode: 0o600, SHA256: "e3b0c44298fc1c14"},
		{Path: "/etc/hello", Mode: 0o644, Size: 5, SHA256: "2cf24dba5fb0a30e"},
	}
	if len(m.Entries) != len(want) {
		t.Fatalf("%d entries, want %d: %v", len(m.Entries), len(want), m.Entries)
	}
	for i, got := range m.Entries {
		got.SHA256 = got.SHA256[:16]
		if got != want[i] {
			t.Errorf("entry %d is %+v, want %+v", i, got, want[i])
		}
	}
	var out strings.Builder
	if err := m.Print(&out); err != nil {
		t.Fatal(err)
	}
	for _, s := range []string{"6.12", "1.0 MiB", "quiet", "/bin/sh -> ../bbin/gosh", "2cf24dba5fb0a30e"} {
		if !strings.Contains(out.String(), s) {
			t.Errorf("printed manifest lacks %q:\n%s", s, &out)
		}
	}
}

func TestArchiveRecords(t *testing.T) {
	t.Parallel()
	modes := make(map[string]uint64)
	plain := testArchive(t)
	if err := walk(plain, func(r record) error { modes[r.name] = r.mode; return nil }); err != nil {
		t.Fatal(err)
	}
	for name, want := range map[string]uint64{
		"etc": cpio.S_IFDIR | 0o755, "tmp": cpio.S_IFDIR | 0o1777, "root": cpio.S_IFDIR | 0o700,
		"var/lib/davit": cpio.S_IFDIR | 0o700, "dev/console": cpio.S_IFCHR | 0o600, "bin": cpio.S_IFDIR | 0o755,
	} {
		if modes[name] != want {
			t.Errorf("%s has mode %#o, want %#o", name, modes[name], want)
		}
	}
	// Owner, links and time: fields 2 to 5 of each header.
	for at := 0; ; {
		i := bytes.Index(plain[at:], []byte(newcMagic))
		if i < 0 {
			break
		}
		at += i
		if got := string(plain[at+6+16 : at+6+48]); got != strings.Repeat("0", 32) {
			t.Errorf("record at %d has owner, links and time %s", at, got)
		}
		at += newcHeader
	}
}

func TestArchiveRefusesTwice(t *testing.T) {
	t.Parallel()
	a := newArchive()
	a.file("x", 0o644, []byte("one"))
	a.file("x", 0o644, []byte("two"))
	if b, err := a.bytes(); err == nil || b != nil {
		t.Errorf("got %d bytes, error %v", len(b), err)
	}
}

func TestWalkRefuses(t *testing.T) {
	t.Parallel()
	good := testArchive(t)
	header := func(size, nameSize uint32, name string) []byte {
		return fmt.Appendf(nil, "%s%08X%08X%s%08X%s%08X%08X%s\x00\x00", newcMagic, 0, 0o100644,
			strings.Repeat("0", 32), size, strings.Repeat("0", 32), nameSize, 0, name)
	}
	for name, b := range map[string][]byte{
		"nothing":        nil,
		"garbage":        []byte(strings.Repeat("garbage", 30)),
		"no trailer":     good[:bytes.Index(good, []byte(trailer))-newcHeader],
		"4 GiB of data":  header(0xffffffff, 2, "x"),
		"4 GiB of name":  header(0, 0xffffffff, "x"),
		"no name":        header(0, 0, "x"),
		"absolute name":  header(0, 3, "/x"),
		"name leads out": header(0, 5, "../x"),
		"bad number":     bytes.Replace(header(0, 2, "x"), []byte("00000000"), []byte("0000000g"), 1),
	} {
		if err := walk(b, func(record) error { return nil }); !errors.Is(err, ErrArchive) {
			t.Errorf("%s: error %v, want %v", name, err, ErrArchive)
		}
	}
}

func TestInspectRefuses(t *testing.T) {
	t.Parallel()
	initrd, err := compress(testArchive(t))
	if err != nil {
		t.Fatal(err)
	}
	bad := bytes.Clone(initrd)
	bad[len(bad)/2] ^= 0x10
	for name, b := range map[string][]byte{
		"nothing": nil, "garbage": []byte("garbage"), "cut off": initrd[:len(initrd)/2], "damaged": bad,
	} {
		if m, err := Inspect(Payload{Initrd: b}); m != nil || !errors.Is(err, ErrArchive) {
			t.Errorf("%s: got %v, error %v, want %v", name, m, err, ErrArchive)
		}
	}
}

func FuzzWalk(f *testing.F) {
	f.Add(testArchive(f))
	f.Fuzz(func(t *testing.T, data []byte) {
		err := walk(data, func(r record) error {
			if !fs.ValidPath(r.name) {
				t.Fatalf("name %q passed", r.name)
			}
			return nil
		})
		if err != nil && !errors.Is(err, ErrArchive) {
			t.Fatalf("error %v", err)
		}
	})
}

func TestCachePrunes(t *testing.T) {
	t.Parallel()
	c, err := openCache(t.Context(), t.TempDir())
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	var last string
	for i := range keep + 3 {
		last = c.key("thing", []byte{byte(i)})
		if err := c.put(last, []byte("x")); err != nil {
			t.Fatal(err)
		}
	}
	other := c.key("other", nil)
	if err := c.put(other, []byte("y")); err != nil {
		t.Fatal(err)
	}
	entries, err := fs.Glob(os.DirFS(c.root), "thing-*")
	if err != nil || len(entries) != keep {
		t.Errorf("%d entries, error %v, want %d", len(entries), err, keep)
	}
	for _, key := range []string{last, other} {
		if _, ok := c.get(key); !ok {
			t.Errorf("%s is gone", key)
		}
	}
}
