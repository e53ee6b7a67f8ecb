// SPDX-License-Identifier: Apache-2.0

package bus

import (
	"encoding/hex"
	"strings"
	"testing"
	"time"

	"github.com/davit-dpu/davit/firmware/disk"
	"github.com/davit-dpu/davit/tests/bus/testcard"
)

// bootCode is a master boot record that counts in sector 2 for ever: it writes
// the counter, reads the sector back, compares, and prints a dot on the serial
// port; an error of the disk or a wrong value prints F and halts.
const bootCode = `
	fa 31c0 8ed8 8ec0 8ed0 bc007c fb fc         cli; ds = es = ss = 0; sp = 7c00; sti; cld
	8816f07d                                    mov [7df0], dl
	ff06f27d                                    loop: inc word [7df2]
	a1f27d a30080 a3fe81                        the counter to both ends of the buffer at 8000
	8a16f07d be107d b80043 cd13 7231            write by the packet at 7d10, or fail
	c70600800000 c706fe810000                   clear both ends
	8a16f07d be107d b442 cd13 721a              read it back, or fail
	a1f27d 3b060080 7511 3b06fe81 750b          compare, or fail
	b02e baf803 ee ebb5                         print a dot; loop
	9090909090                                  (filling)
	b046 baf803 ee f4 ebfd                      fail: print F; halt
`

// bootSector assembles bootCode and the packet it uses.
func bootSector(t *testing.T) []byte {
	t.Helper()
	var code []byte
	for _, line := range strings.Split(strings.TrimSpace(bootCode), "\n") {
		digits, _, _ := strings.Cut(strings.TrimSpace(line), "   ")
		b, err := hex.DecodeString(strings.ReplaceAll(digits, " ", ""))
		if err != nil {
			t.Fatal(err)
		}
		code = append(code, b...)
	}
	s := make([]byte, 512)
	copy(s, code)
	copy(s[0x110:], []byte{0x10, 0, 1, 0, 0x00, 0x80, 0, 0, 2})
	s[510], s[511] = 0x55, 0xaa
	return s
}

// counting returns a volume that boots bootCode.
func counting(t *testing.T) disk.Volume {
	t.Helper()
	v, err := disk.NewMemory(1 << 20)
	if err != nil {
		t.Fatal(err)
	}
	if err := v.WriteAt([][]byte{bootSector(t)}, 0); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = v.Close() })
	return v
}

// counter reads what the guest has counted.
func counter(t *testing.T, v disk.Volume) uint16 {
	t.Helper()
	n, err := testcard.Counter(v)
	if err != nil {
		t.Fatal(err)
	}
	return n
}

// goesOn waits until the guest has counted n further, so until what it did
// before is verified by itself.
func goesOn(t *testing.T, v disk.Volume, n uint16) {
	t.Helper()
	from, deadline := counter(t, v), time.Now().Add(30*time.Second)
	for counter(t, v)-from < n {
		if time.Now().After(deadline) {
			t.Fatalf("the guest's disk stands still at %d", from)
		}
		time.Sleep(10 * time.Millisecond)
	}
}
