// SPDX-License-Identifier: Apache-2.0

package bus

import (
	"fmt"
	"os"
	"testing"
	"time"

	"github.com/davit-dpu/davit/firmware/bus"
	"github.com/davit-dpu/davit/firmware/spec"
	"github.com/davit-dpu/davit/tests/vm"
	"github.com/davit-dpu/davit/tools/packages"
)

// TestUEFI starts an instance with UEFI firmware, which talks on the console.
func TestUEFI(t *testing.T) {
	t.Parallel()
	need1 := packages.FirmwareFor("amd64")
	h := newHost(t, need1)
	fw, err := vm.Need(t, need1).Firmware("amd64")
	if err != nil {
		t.Fatal(err)
	}
	h.start("--firmware-uefi", fw.Code+","+fw.Vars)
	c := startCard(t, h.bus, h.pool, counting(t))
	o := order(1)
	o.Memory, o.Firmware = 128*spec.MiB, spec.FirmwareUEFI
	c.mustStart(o)
	out := c.open(bus.KindConsole, o)
	if err := out.SetReadDeadline(time.Now().Add(90 * time.Second)); err != nil {
		t.Fatal(err)
	}
	readUntil(t, out, "BdsDxe")
	c.kill(o)
	h.clean()
}

// TestNothingLeaks: sessions come and go without leaving descriptors in hostd.
func TestNothingLeaks(t *testing.T) {
	t.Parallel()
	h := newHost(t)
	v := counting(t)
	h.start("--kill-on-exit")
	c := startCard(t, h.bus, h.pool, v)
	o := order(1)
	c.mustStart(o)
	goesOn(t, v, 5)
	before := -1
	for round := range 10 {
		q := c.qmp(o)
		_ = q.Close()
		c.stop()
		c = startCard(t, h.bus, h.pool, v)
		goesOn(t, v, 5)
		n := h.descriptors()
		if round == 2 { // whatever is opened once is open by now
			before = n
		}
		if before > 0 && n > before+4 { // a connection may be coming or going
			t.Errorf("round %d: %d descriptors, were %d", round, n, before)
		}
	}
}

func (h *host) descriptors() int {
	h.t.Helper()
	entries, err := os.ReadDir(fmt.Sprintf("/proc/%d/fd", h.cmd.Process.Pid))
	if err != nil {
		h.t.Fatal(err)
	}
	return len(entries)
}
