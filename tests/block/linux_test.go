// SPDX-License-Identifier: Apache-2.0

package block

import (
	"crypto/sha256"
	"encoding/hex"
	"fmt"
	"io"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/u-root/u-root/pkg/cpio"
	"github.com/ulikunitz/xz"

	harness "github.com/davit-dpu/davit/tests/vm"
	"github.com/davit-dpu/davit/tools/packages"
	"github.com/davit-dpu/davit/tools/rig"
)

const volumeSize = 64 << 20

// linux is what a Linux guest needs.
type linux struct {
	set    *packages.Set
	kernel string
	initrd string
}

// newLinux builds the guest's initramfs: the guest program, the driver, busybox.
func newLinux(t *testing.T, dir string) linux {
	t.Helper()
	set := harness.Need(t, packages.QEMU, packages.KernelFor(packages.ArchAMD64), packages.BusyboxFor(packages.ArchAMD64))
	kernel, err := set.Kernel(packages.ArchAMD64)
	if err != nil {
		t.Fatal(err)
	}
	box, err := set.Busybox(packages.ArchAMD64)
	if err != nil {
		t.Fatal(err)
	}
	guest := filepath.Join(dir, "guest")
	build := exec.Command("go", "build", "-trimpath", "-ldflags=-s -w", "-o", guest, "./guest")
	build.Env = append(os.Environ(), "CGO_ENABLED=0", "GOOS=linux", "GOARCH=amd64")
	if out, err := build.CombinedOutput(); err != nil {
		t.Fatalf("build guest: %v\n%s", err, out)
	}
	l := linux{set: set, kernel: kernel.Image, initrd: filepath.Join(dir, "initrd")}
	f, err := os.Create(l.initrd)
	if err != nil {
		t.Fatal(err)
	}
	w := cpio.Newc.Writer(f)
	for _, step := range []error{
		cpio.WriteRecords(w, []cpio.Record{
			cpio.Directory("dev", 0o755), cpio.CharDev("dev/console", 0o600, 5, 1),
			cpio.StaticFile("init", read(t, guest), 0o755), cpio.StaticFile("busybox", read(t, box), 0o755),
			cpio.StaticFile("virtio_blk.ko", module(t, kernel, "drivers/block/virtio_blk.ko"), 0o644),
		}),
		cpio.WriteTrailer(w), f.Close(),
	} {
		if step != nil {
			t.Fatal(step)
		}
	}
	return l
}

func read(t *testing.T, path string) string {
	t.Helper()
	b, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	return string(b)
}

// module returns a kernel module, which the distribution compressed.
func module(t *testing.T, k packages.Kernel, name string) string {
	t.Helper()
	path := filepath.Join(k.ModulesDir, "kernel", name)
	if _, err := os.Stat(path); err == nil {
		return read(t, path)
	}
	r, err := xz.NewReader(strings.NewReader(read(t, path+".xz")))
	if err != nil {
		t.Fatal(err)
	}
	b, err := io.ReadAll(r)
	if err != nil {
		t.Fatal(err)
	}
	return string(b)
}

// start boots the guest in a mode, with extra properties of the disk and extra
// arguments for QEMU.
func (l linux) start(t *testing.T, dir, mode, disk string, more ...string) *vm {
	t.Helper()
	return startVM(t, l.set, dir, append([]string{
		"-smp", strconv.Itoa(queues), "-kernel", l.kernel, "-initrd", l.initrd,
		"-append", "console=ttyS0 quiet panic=-1 " + rig.NoTimerCheck + " davit.mode=" + mode,
		"-device", fmt.Sprintf("vhost-user-blk-pci,chardev=disk,num-queues=%d%s", queues, disk),
	}, more...)...)
}

// randomVolume makes a volume full of data, which the guest must find.
func randomVolume(t *testing.T, dir string) string {
	t.Helper()
	b := make([]byte, volumeSize)
	rand.NewChaCha8([32]byte{1}).Read(b)
	return newVolume(t, dir, volumeSize, b)
}

// checkDigest compares what the guest read last with what the volume holds.
func checkDigest(t *testing.T, v *vm, volume, digest string) {
	t.Helper()
	sum := sha256.Sum256([]byte(read(t, volume)))
	if want := hex.EncodeToString(sum[:]); digest != want {
		v.fail("guest read " + digest + ", volume holds " + want)
	}
}

// checkFacts compares what Linux made of the disk with its configuration.
func checkFacts(t *testing.T, v *vm) {
	t.Helper()
	for name, want := range map[string]string{
		"size": "131072", "serial": serial, "ro": "0", "cache_type": "write_back", "queues": strconv.Itoa(queues),
		"queue/logical_block_size": "512", "queue/physical_block_size": "4096", "queue/minimum_io_size": "4096",
		"queue/max_segments": "126", "queue/discard_max_bytes": "2147483648", "queue/discard_granularity": "4096",
		"queue/write_zeroes_max_bytes": "67108864", "queue/write_cache": "write_back",
	} {
		if !strings.Contains(v.all.String(), "fact "+name+" "+want+"\n") {
			t.Errorf("%s is not %s", name, want)
		}
	}
}

// Linux finds the disk as configured. Writes, reads, flushes, discards and
// zeroing on all queues are checked by the guest and against the volume.
func TestLinuxVerify(t *testing.T) {
	for name, disk := range map[string]string{
		"all features": "", "plain small ring": ",indirect_desc=off,event_idx=off,queue-size=64",
	} {
		t.Run(name, func(t *testing.T) {
			dir := t.TempDir()
			l := newLinux(t, dir)
			volume := randomVolume(t, dir)
			startBackEnd(t, dir, volume)
			v := l.start(t, dir, "verify davit.ops=400", disk)
			digest := v.until("digest ")
			v.until("done")
			v.end()
			checkFacts(t, v)
			checkDigest(t, v, volume, digest)
			checkBackEnd(t, v, dir)
		})
	}
}

// checkBackEnd fails the test when the back end complained about the driver.
func checkBackEnd(t *testing.T, v *vm, dir string) {
	t.Helper()
	log := read(t, filepath.Join(dir, "backend.log"))
	if t.Failed() || strings.Contains(log, "device stopped") || strings.Contains(log, "block request failed") {
		v.fail("see the back end's log")
	}
}

// The back end is killed at any moment, again and again: the guest waits, sees no
// error, and what it wrote is there.
func TestKill(t *testing.T) {
	kills := 12
	if s := os.Getenv("DAVIT_KILLS"); s != "" {
		var err error
		if kills, err = strconv.Atoi(s); err != nil {
			t.Fatal(err)
		}
	}
	dir := t.TempDir()
	l := newLinux(t, dir)
	volume := randomVolume(t, dir)
	p := startBackEnd(t, dir, volume)
	v := l.start(t, dir, "churn davit.ops=0", "")
	v.until("ready")
	rng := rand.New(rand.NewPCG(uint64(os.Getpid()), 1))
	for range kills {
		v.progress()
		<-time.After(time.Duration(rng.IntN(300)) * time.Millisecond)
		p.kill()
		p = startBackEnd(t, dir, volume)
	}
	v.progress()
	if _, err := io.WriteString(v.in, "stop\n"); err != nil {
		v.fail(err.Error())
	}
	digest := v.until("digest ")
	v.until("done")
	v.end()
	checkDigest(t, v, volume, digest)
	checkBackEnd(t, v, dir)
}

// A volume that grows does so under the guest that uses it, without a reboot.
func TestGrow(t *testing.T) {
	dir := t.TempDir()
	l := newLinux(t, dir)
	volume := randomVolume(t, dir)
	p := startBackEnd(t, dir, volume)
	v := l.start(t, dir, "churn davit.ops=0", "")
	v.until("ready")
	v.progress()
	if err := os.Truncate(volume, 2*volumeSize); err != nil {
		t.Fatal(err)
	}
	p.grow(t)
	say := func(line string) {
		if _, err := io.WriteString(v.in, line+"\n"); err != nil {
			v.fail(err.Error())
		}
	}
	for size := ""; size != strconv.Itoa(2*volumeSize); size = v.until("size ") {
		say("size")
	}
	v.progress()
	say("stop")
	digest := v.until("digest ")
	v.until("done")
	v.end()
	checkDigest(t, v, volume, digest)
	checkBackEnd(t, v, dir)
}
