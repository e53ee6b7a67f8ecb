// SPDX-License-Identifier: Apache-2.0

package block

import (
	"bytes"
	"encoding/hex"
	"os"
	"strings"
	"testing"

	harness "github.com/davit-dpu/davit/tests/vm"
	"github.com/davit-dpu/davit/tools/packages"
)

// bootCode is a master boot record: it reads sector 1 with int 13h, prints it on
// the serial port, writes it to sector 2, and leaves through isa-debug-exit.
const bootCode = `
	fa 31c0 8ed8 8ec0 8ed0 bc007c fb fc   cli; ds = es = ss = 0; sp = 7c00; sti; cld
	8816f07d                              mov [7df0], dl
	be007d b442 cd13 7223                 read by the packet at 7d00, or fail
	be0080                                mov si, 8000
	ac 84c0 7406 baf803 ee ebf5           print until zero
	8a16f07d be107d b80043 cd13 7207      write by the packet at 7d10, or fail
	b010 baf400 ee f4                     exit 0x10
	b020 baf400 ee f4                     fail: exit 0x20
`

// bootSector assembles the code and its two disk address packets.
func bootSector(t *testing.T) []byte {
	t.Helper()
	var code []byte
	for _, line := range strings.Split(strings.TrimSpace(bootCode), "\n") {
		digits, _, _ := strings.Cut(strings.TrimSpace(line), "  ")
		b, err := hex.DecodeString(strings.ReplaceAll(digits, " ", ""))
		if err != nil {
			t.Fatal(err)
		}
		code = append(code, b...)
	}
	s := make([]byte, 512)
	copy(s, code)
	for at, lba := range map[int]byte{0x100: 1, 0x110: 2} {
		copy(s[at:], []byte{0x10, 0, 1, 0, 0x00, 0x80, 0, 0, lba})
	}
	s[510], s[511] = 0x55, 0xaa
	return s
}

// SeaBIOS boots from the disk: the smallest driver there is, without event
// index or indirect descriptors.
func TestSeaBIOS(t *testing.T) {
	set := harness.Need(t, packages.QEMU)
	dir := t.TempDir()
	const text = "read by SeaBIOS through vhost-user-blk\n"
	content := append(bootSector(t), text...)
	volume := newVolume(t, dir, 1<<20, content)
	startBackEnd(t, dir, volume)
	v := startVM(t, set, dir,
		"-device", "vhost-user-blk-pci,chardev=disk,num-queues=1,bootindex=0",
		"-device", "isa-debug-exit,iobase=0xf4,iosize=4")
	if code := v.end(); code != 0x10<<1|1 {
		v.fail("exit code of the boot sector")
	}
	if !strings.Contains(v.all.String(), text) {
		v.fail("the sector's text is missing")
	}
	got, err := os.ReadFile(volume)
	if err != nil {
		t.Fatal(err)
	}
	want := append([]byte(text), make([]byte, 512-len(text))...)
	if !bytes.Equal(got[1024:1536], want) {
		t.Errorf("sector 2 is %q", got[1024:1536])
	}
}
