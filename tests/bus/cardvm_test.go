// SPDX-License-Identifier: Apache-2.0

package bus

import (
	"bufio"
	"bytes"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/u-root/u-root/pkg/cpio"

	"github.com/davit-dpu/davit/initramfs/kernel"
	"github.com/davit-dpu/davit/tests/vm"
	"github.com/davit-dpu/davit/tools/packages"
	"github.com/davit-dpu/davit/tools/rig"
)

// TestCardInVM puts the card into a VM with a stock kernel: the window is an
// NVDIMM that becomes device-DAX, the stream a virtio-serial port. Hosts come
// and go while the guest works.
func TestCardInVM(t *testing.T) {
	t.Parallel()
	vm.Need(t, packages.KernelFor("amd64"))
	h := newHost(t)
	vm := startCardVM(t, h)
	vm.until("window /dev/dax0.0 of ")
	if again := vm.until("window /dev/dax0.0 of "); !strings.HasSuffix(again, " at 2097152") {
		t.Errorf("the second time: window %s", again)
	}
	vm.until("port /dev/vport")
	h.start()
	vm.until("ordered running adopted=false err=<nil>")
	vm.counts(10)
	pid := h.pid()
	for round := range 3 {
		_ = h.end(syscall.SIGKILL)
		began := time.Now()
		h.start()
		vm.until("ordered running adopted=true err=<nil>")
		vm.counts(10)
		t.Logf("round %d: guest went on after %s", round, time.Since(began).Round(time.Millisecond))
	}
	if h.pid() != pid {
		t.Error("the VMM is another process")
	}
	_ = h.end(syscall.SIGTERM)
	time.Sleep(300 * time.Millisecond) // the port is not connected for a while
	h.start("--kill-on-exit")
	vm.until("ordered running adopted=true err=<nil>")
	vm.counts(5)
	_ = h.end(syscall.SIGTERM)
	h.clean()
}

// cardVM is a running card VM.
type cardVM struct {
	t     *testing.T
	lines chan string
	seen  []string
}

func startCardVM(t *testing.T, h *host) *cardVM {
	t.Helper()
	image, initrd := cardImage(t, filepath.Dir(h.bus))
	args := append(h.qemu.Args[1:len(h.qemu.Args):len(h.qemu.Args)],
		"-nodefaults", "-no-user-config", "-display", "none", "-no-reboot", "-serial", "stdio",
		"-M", "q35,nvdimm=on,accel=tcg", "-cpu", "max", "-m", "512M,slots=1,maxmem=2G",
		"-object", "memory-backend-file,id=pool,size="+strconv.Itoa(poolSize)+",mem-path="+h.pool+",share=on", "-device", "nvdimm,memdev=pool",
		"-device", "virtio-serial-pci", "-chardev", "socket,id=bus,path="+h.bus+",server=on,wait=off",
		"-device", "virtserialport,chardev=bus,name=org.davit.bus.0",
		"-kernel", image, "-initrd", initrd, "-append", "console=ttyS0 quiet panic=-1 "+rig.NoTimerCheck)
	cmd := exec.Command(h.qemu.Path, args...)
	cmd.Env, cmd.Stderr = h.qemu.Env, h.log
	cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
	out, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	v := &cardVM{t: t, lines: make(chan string, 4096)}
	go func() {
		defer close(v.lines)
		for s := bufio.NewScanner(out); s.Scan(); {
			v.lines <- strings.TrimSpace(s.Text())
		}
	}()
	t.Cleanup(func() {
		_ = cmd.Process.Kill()
		for range v.lines {
		}
		_ = cmd.Wait()
		if t.Failed() {
			t.Logf("card:\n%s", strings.Join(v.seen, "\n"))
		}
	})
	return v
}

// until reads the console up to a line that begins with prefix and returns it.
func (v *cardVM) until(prefix string) string {
	v.t.Helper()
	timeout := time.After(90 * time.Second)
	for {
		select {
		case line, ok := <-v.lines:
			v.seen = append(v.seen, line)
			switch {
			case !ok || strings.HasPrefix(line, "guest failed"):
				v.t.Fatalf("the card ended before %q: %s", prefix, line)
			case strings.HasPrefix(line, prefix):
				return line
			}
		case <-timeout:
			v.t.Fatalf("the card never said %q", prefix)
		}
	}
}

// counts waits for n lines of progress.
func (v *cardVM) counts(n int) {
	v.t.Helper()
	for range n {
		v.until("counter ")
	}
}

// cardImage makes the initramfs of the card VM: the guest program, the modules
// for an NVDIMM, the guest's disk.
func cardImage(t *testing.T, dir string) (image, initrd string) {
	t.Helper()
	root, _, err := vm.Need(t, packages.KernelFor("amd64")).Where(packages.KernelFor("amd64"))
	if err != nil {
		t.Fatal(err)
	}
	k, err := kernel.Open(root)
	if err != nil {
		t.Fatal(err)
	}
	set, err := k.Resolve([]string{"nfit", "nd_pmem", "device_dax", "dax_pmem", "virtio_console"})
	if err != nil {
		t.Fatal(err)
	}
	program := filepath.Join(dir, "guest")
	build := exec.Command("go", "build", "-o", program, "./guest")
	build.Env = append(os.Environ(), "CGO_ENABLED=0", "GOARCH=amd64", "GOOS=linux")
	if out, err := build.CombinedOutput(); err != nil {
		t.Fatalf("build guest: %v\n%s", err, out)
	}
	exe, err := os.ReadFile(program)
	if err != nil {
		t.Fatal(err)
	}
	records := []cpio.Record{cpio.StaticFile("init", string(exe), 0o755), cpio.Directory("dev", 0o755), cpio.CharDev("dev/console", 0o600, 5, 1),
		cpio.StaticFile("disk", string(bootSector(t)), 0o644)}
	var order strings.Builder
	for _, m := range set.Load {
		name := m.Name + ".ko"
		records = append(records, cpio.StaticFile(name, string(m.Data), 0o644))
		order.WriteString("/" + name + "\n")
	}
	records = append(records, cpio.StaticFile("modules", order.String(), 0o644))
	var b bytes.Buffer
	w := cpio.Newc.Writer(&b)
	if err := cpio.WriteRecords(w, records); err != nil {
		t.Fatal(err)
	}
	if err := cpio.WriteTrailer(w); err != nil {
		t.Fatal(err)
	}
	initrd = filepath.Join(dir, "initrd")
	if err := os.WriteFile(initrd, b.Bytes(), 0o600); err != nil {
		t.Fatal(err)
	}
	return k.ImagePath(), initrd
}
