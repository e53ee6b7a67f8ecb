// SPDX-License-Identifier: Apache-2.0

package boot

import (
	"context"
	"fmt"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/davit-dpu/davit/board/qemuvirt"
	"github.com/davit-dpu/davit/initramfs/image"
	"github.com/davit-dpu/davit/initramfs/kernel"
	"github.com/davit-dpu/davit/tests/vm"
	"github.com/davit-dpu/davit/tools/packages"
)

// payload is the image under test: the real init, and our stand-in agent.
type payload struct{ kernel, initrd string }

var build struct {
	once sync.Once
	payload
	err error
}

func buildOnce(t *testing.T) payload {
	t.Helper()
	build.once.Do(func() { build.payload, build.err = buildPayload(t) })
	if build.err != nil {
		t.Fatal(build.err)
	}
	return build.payload
}

func buildPayload(t *testing.T) (payload, error) {
	root, _, err := vm.Packages(t).Where(packages.KernelFor(packages.ArchARM64))
	if err != nil {
		return payload{}, err
	}
	k, err := kernel.Open(root)
	if err != nil {
		return payload{}, err
	}
	built, err := image.Build(context.Background(), image.Options{
		Source: vm.Source(t), Arch: packages.ArchARM64, Board: qemuvirt.Board().Name, Version: "test", Kernel: k,
		Modules: qemuvirt.Board().Modules, Config: []byte("version: 1\n"), Cmdline: "in the test",
		Commands: []image.Command{
			{Path: "init", Package: "./initramfs/init"},
			{Path: "davit/davitd", Package: "./tests/boot/davitd"},
			{Path: "davit/vcard", Package: "./firmware/cmd/vcard"},
		},
		CacheDir: filepath.Join(vm.State(t), "cache-boot"),
	})
	if err != nil {
		return payload{}, err
	}
	file, err := os.CreateTemp("", "davit-initrd-") // outlives the test that happens to be first
	if err != nil {
		return payload{}, err
	}
	if _, err := file.Write(built.Payload.Initrd); err != nil {
		return payload{}, err
	}
	return payload{k.ImagePath(), file.Name()}, file.Close()
}

func TestMain(m *testing.M) {
	code := m.Run()
	if build.initrd != "" {
		os.Remove(build.initrd)
	}
	os.Exit(code)
}

// boot is one start of the machine.
type boot struct {
	cmdline string
	until   string // regular expression on the first serial line; empty: until QEMU ends
	limit   time.Duration
	reboots bool // let the machine reboot instead of ending QEMU then
}

// run boots and returns what each serial line (ttyAMA0, hvc0) said, and
// whether QEMU ended by itself.
func (b boot) run(t *testing.T) (uart, virtio string, ended bool) {
	t.Helper()
	p, dir := buildOnce(t), t.TempDir()
	uartLog, virtioLog := filepath.Join(dir, "ttyAMA0.log"), filepath.Join(dir, "hvc0.log")
	args := []string{
		"-M", "virt", "-cpu", "cortex-a72", "-smp", "1", "-m", "512", "-nodefaults", "-no-user-config", "-display", "none",
		"-serial", "file:" + uartLog,
		"-device", "virtio-serial-pci", "-chardev", "file,id=hvc,path=" + virtioLog, "-device", "virtconsole,chardev=hvc",
		"-kernel", p.kernel, "-initrd", p.initrd, "-append", b.cmdline + " davit.board=qemuvirt quiet",
	}
	if !b.reboots {
		args = append(args, "-no-reboot")
	}
	ctx, cancel := context.WithTimeout(t.Context(), b.limit)
	defer cancel()
	cmd := vm.Packages(t).CommandContext(ctx, "qemu-system-aarch64", args...)
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	done := make(chan struct{})
	go func() { _ = cmd.Wait(); close(done) }()
	seen := make(chan struct{})
	if b.until != "" {
		go watch(ctx, uartLog, regexp.MustCompile(b.until), seen)
	}
	select {
	case <-done:
		ended = ctx.Err() == nil
	case <-seen:
	}
	cancel()
	<-done
	return read(uartLog), read(virtioLog), ended
}

// watch closes seen once the file matches.
func watch(ctx context.Context, path string, want *regexp.Regexp, seen chan<- struct{}) {
	tick := time.NewTicker(50 * time.Millisecond)
	defer tick.Stop()
	for {
		if want.MatchString(read(path)) {
			close(seen)
			return
		}
		select {
		case <-ctx.Done():
			return
		case <-tick.C:
		}
	}
}

func read(path string) string {
	text, err := os.ReadFile(path)
	if err != nil {
		return ""
	}
	return strings.ReplaceAll(string(text), "\r", "")
}

const development = "davit.lifecycle=development "

func TestConsoles(t *testing.T) {
	tests := []struct {
		name, args   string
		uart, virtio bool // which of them must carry the boot's lines
	}{
		{"none given", "", true, false},
		{"one", "console=hvc0", false, true},
		{"two", "console=hvc0 console=ttyAMA0", true, true},
		{"one that is not there", "console=ttyS7", true, false},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			t.Parallel()
			uart, virtio, ended := boot{cmdline: development + "agent=poweroff " + tt.args, limit: 90 * time.Second}.run(t)
			if !ended {
				t.Errorf("the machine did not power off")
			}
			for _, line := range []string{"mounts", "agent: mode poweroff", "agent: SIGTERM, ends", "agent: root refuses writes"} {
				if tt.uart && !strings.Contains(uart, line) {
					t.Errorf("ttyAMA0 lacks %q:\n%s", line, uart)
				}
				if tt.virtio && !strings.Contains(virtio, line) {
					t.Errorf("hvc0 lacks %q:\n%s", line, virtio)
				}
			}
		})
	}
}

func TestProductionWithoutTPMStops(t *testing.T) {
	t.Parallel()
	for _, lifecycle := range []string{"", "davit.lifecycle=production davit.lifecycle=development "} {
		t.Run(fmt.Sprintf("%q", lifecycle), func(t *testing.T) {
			t.Parallel()
			uart, _, ended := boot{cmdline: lifecycle + "console=ttyAMA0 agent=poweroff", limit: 150 * time.Second}.run(t)
			if strings.Contains(uart, "agent:") {
				t.Errorf("the agent was started without a TPM:\n%s", uart)
			}
			if !strings.Contains(uart, "tpm") || !strings.Contains(uart, "stop") {
				t.Errorf("no reason on the console:\n%s", uart)
			}
			if !ended {
				t.Errorf("the machine did not power off by itself:\n%s", uart)
			}
		})
	}
}

func TestAgentThatCrashesIsRestartedWithinBounds(t *testing.T) {
	t.Parallel()
	for mode, reason := range map[string]string{"crash": "exit code 3", "kill": "signal 9"} {
		t.Run(mode, func(t *testing.T) {
			t.Parallel()
			uart, _, ended := boot{cmdline: development + "console=ttyAMA0 agent=" + mode, until: `(?s)(agent: mode.*){4}`, limit: 90 * time.Second}.run(t)
			if ended {
				t.Errorf("the machine ended because its agent did:\n%s", uart)
			}
			if n := strings.Count(uart, "agent: mode"); n < 4 {
				t.Errorf("started %d times, want at least 4:\n%s", n, uart)
			}
			if !strings.Contains(uart, reason) {
				t.Errorf("no line gives the reason %q:\n%s", reason, uart)
			}
		})
	}
}

func TestReboot(t *testing.T) {
	t.Parallel()
	uart, _, ended := boot{cmdline: development + "console=ttyAMA0 agent=reboot", until: `(?s)(agent: mode.*){2}`, limit: 90 * time.Second, reboots: true}.run(t)
	if ended || strings.Count(uart, "agent: mode reboot") < 2 {
		t.Errorf("it did not come up again:\n%s", uart)
	}
}

func TestStubbornAgentDoesNotHoldPowerOffUp(t *testing.T) {
	t.Parallel()
	uart, _, ended := boot{cmdline: development + "console=ttyAMA0 agent=stubborn", limit: 120 * time.Second}.run(t)
	if !ended {
		t.Errorf("the machine did not power off:\n%s", uart)
	}
	if strings.Contains(uart, "agent: SIGTERM, ends") {
		t.Errorf("the agent was to ignore SIGTERM:\n%s", uart)
	}
}
