// SPDX-License-Identifier: Apache-2.0

package disk

import (
	"bytes"
	"strings"
	"testing"
)

// readFAT reads a file of a FAT32 file system by the rules of the format, and
// checks what a reader may rely on.
func readFAT(t *testing.T, fs []byte, name string) []byte {
	t.Helper()
	if fs[510] != 0x55 || fs[511] != 0xaa || string(fs[82:90]) != "FAT32   " {
		t.Fatal("no FAT32 boot sector")
	}
	sector := int(le.Uint16(fs[11:]))
	cluster := int(fs[13]) * sector
	reserved, copies, length := int(le.Uint16(fs[14:])), int(fs[16]), int(le.Uint32(fs[36:]))
	table := fs[reserved*sector : (reserved+length)*sector]
	for i := 1; i < copies; i++ {
		if !bytes.Equal(table, fs[(reserved+i*length)*sector:(reserved+(i+1)*length)*sector]) {
			t.Errorf("copy %d of the table differs", i)
		}
	}
	if !bytes.Equal(fs[:2*sector], fs[6*sector:8*sector]) {
		t.Error("the backup of the boot sector differs")
	}
	data := (reserved + copies*length) * sector
	total := (int(le.Uint32(fs[32:]))*sector - data) / cluster
	if total < 65525 || 4*(total+2) > len(table) {
		t.Errorf("%d clusters with a table of %d bytes", total, len(table))
	}
	used := 0
	for c := 2; c < total+2; c++ {
		if le.Uint32(table[4*c:]) != 0 {
			used++
		}
	}
	if free := int(le.Uint32(fs[sector+488:])); free != total-used {
		t.Errorf("%d free clusters by the information sector, %d by the table", free, total-used)
	}
	read := func(first uint32) []byte {
		var out []byte
		for c := first; c < 0x0ffffff8; c = le.Uint32(table[4*c:]) {
			if c < 2 || int(c) >= total+2 {
				t.Fatalf("chain of cluster %d leads to %d", first, c)
			}
			if c == 0x0fffffff {
				break
			}
			out = append(out, fs[data+int(c-2)*cluster:data+int(c-1)*cluster]...)
		}
		return out
	}
	at := le.Uint32(fs[44:])
	parts := strings.Split(name, "/")
	for i, part := range parts {
		base, ext, _ := strings.Cut(part, ".")
		short := base + strings.Repeat(" ", 8-len(base)) + ext + strings.Repeat(" ", 3-len(ext))
		entry := findEntry(read(at), short)
		if entry == nil {
			t.Fatalf("no %q", part)
		}
		at = uint32(le.Uint16(entry[20:]))<<16 | uint32(le.Uint16(entry[26:]))
		if i == len(parts)-1 {
			size := int(le.Uint32(entry[28:]))
			if content := read(at); size <= len(content) {
				return content[:size]
			}
			t.Fatalf("%q is longer than its clusters", part)
		}
	}
	return nil
}

func findEntry(dir []byte, short string) []byte {
	for ; len(dir) >= 32 && dir[0] != 0; dir = dir[32:] {
		if string(dir[:11]) == short {
			return dir[:32]
		}
	}
	return nil
}

func TestFAT(t *testing.T) {
	t.Parallel()
	for _, tc := range []struct {
		name string
		size int64
		file int
	}{
		{"BOOTAA64.EFI", 96 << 20, 40 << 20},
		{"BOOTX64 .EFI", 36 << 20, 1},
		{"BOOTAA64.EFI", 256 << 20, 8 << 10},
		{"BOOTAA64.EFI", 64 << 20, 1<<20 + 1},
	} {
		content := bytes.Repeat([]byte{0xa5}, tc.file)
		segments, err := fat(tc.size, 2048, tc.name, content)
		if err != nil {
			t.Fatal(err)
		}
		fs := make([]byte, tc.size)
		for _, s := range segments {
			if s.offset+int64(len(s.data)) > tc.size {
				t.Fatalf("segment of %d bytes at %d of %d", len(s.data), s.offset, tc.size)
			}
			copy(fs[s.offset:], s.data)
		}
		name := "EFI/BOOT/" + strings.ReplaceAll(tc.name, " ", "")
		if got := readFAT(t, fs, name); !bytes.Equal(got, content) {
			t.Errorf("%s on %d bytes: %d bytes, want %d", tc.name, tc.size, len(got), tc.file)
		}
	}
}

// The largest file fills the partition to its last cluster, and no further.
func TestFATFull(t *testing.T) {
	t.Parallel()
	const size = 40 << 20
	g, err := layout(size)
	if err != nil {
		t.Fatal(err)
	}
	most := int64(g.clusters-3) * g.clusterSize()
	segments, err := fat(size, 2048, "BOOTAA64.EFI", make([]byte, most))
	if err != nil {
		t.Fatal(err)
	}
	last := segments[len(segments)-1]
	if end := last.offset + int64(len(last.data)); end > size {
		t.Errorf("the file ends at %d of %d", end, size)
	}
	if s, err := fat(size, 2048, "BOOTAA64.EFI", make([]byte, most+1)); err == nil || s != nil {
		t.Error("one byte more was accepted")
	}
}
