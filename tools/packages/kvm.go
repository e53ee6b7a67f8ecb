// SPDX-License-Identifier: Apache-2.0

package packages

import (
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"runtime"
	"strings"
	"time"
)

// ErrNoKVM says that virtual machines of this machine's architecture have to
// be emulated.
var ErrNoKVM = errors.New("kvm is not usable")

// kvmTimeout bounds the trial boot: with KVM it takes a second.
const kvmTimeout = 15 * time.Second

// maxTrialOutput bounds what is kept of a trial's console.
const maxTrialOutput = 1 << 20

// What a trial boot prints: a kernel that has done all its work but has no
// root file system, and a QEMU whose KVM gave up.
const (
	trialBooted = "Kernel panic - not syncing"
	trialBroken = "KVM internal error"
)

// ProbeKVM tells whether KVM runs a stock kernel here: nil when it does, else
// an error with ErrNoKVM and the reason. /dev/kvm may open and be of no use, in
// nested virtualization, so a kernel of the set (which needs QEMU and the
// kernel of this machine's architecture) is booted for a second. The answer is
// kept in the cache until the machine is booted again.
func (c *Cache) ProbeKVM(ctx context.Context, s *Set) error {
	if err := openKVM(); err != nil {
		return err
	}
	kernel, err := s.Kernel(runtime.GOARCH)
	if err != nil {
		return fmt.Errorf("%w: %w", ErrNoKVM, err)
	}
	emulator, err := s.Tool(nativeEmulator())
	if err != nil {
		return fmt.Errorf("%w: %w", ErrNoKVM, err)
	}
	note := c.kvmNote(emulator, kernel.Image)
	if note != "" {
		if reason, err := os.ReadFile(note); err == nil {
			return kvmAnswer(strings.TrimSpace(string(reason)))
		}
	}
	reason, err := s.tryKVM(ctx, kernel.Image)
	if err != nil {
		return err
	}
	if note != "" {
		c.keepKVMNote(note, reason)
	}
	return kvmAnswer(reason)
}

// openKVM checks that the user may use the device at all.
func openKVM() error {
	f, err := os.OpenFile("/dev/kvm", os.O_RDWR, 0)
	if err != nil {
		return fmt.Errorf("%w: %w", ErrNoKVM, err)
	}
	_ = f.Close()
	return nil
}

func kvmAnswer(reason string) error {
	if reason == "" {
		return nil
	}
	return fmt.Errorf("%w: %s", ErrNoKVM, reason)
}

func nativeEmulator() string {
	if runtime.GOARCH == ArchARM64 {
		return "qemu-system-aarch64"
	}
	return "qemu-system-x86_64"
}

// tryKVM boots a kernel without a root file system. It gives the reason why
// KVM is of no use, empty when it is of use, or ctx's error.
func (s *Set) tryKVM(ctx context.Context, image string) (string, error) {
	machine, console := "q35", "ttyS0"
	if runtime.GOARCH == ArchARM64 {
		machine, console = "virt,gic-version=host", "ttyAMA0"
	}
	trial, cancel := context.WithTimeout(ctx, kvmTimeout)
	defer cancel()
	watch := &trialWatch{stop: cancel}
	cmd := s.CommandContext(trial, nativeEmulator(), "-accel", "kvm", "-M", machine, "-cpu", "host", "-m", "256",
		"-nodefaults", "-display", "none", "-serial", "stdio", "-no-reboot",
		"-kernel", image, "-append", "console="+console+" panic=-1")
	cmd.Stdout, cmd.Stderr = watch, watch
	cmd.WaitDelay = time.Second
	err := cmd.Run()
	out := watch.text()
	switch {
	case strings.Contains(out, trialBooted):
		return "", nil
	case ctx.Err() != nil:
		return "", fmt.Errorf("probe kvm: %w", ctx.Err())
	case strings.Contains(out, trialBroken):
		return "a stock kernel stops with \"" + trialBroken + "\"", nil
	case trial.Err() != nil:
		return fmt.Sprintf("a stock kernel doesn't boot within %v", kvmTimeout), nil
	case err != nil:
		return fmt.Sprintf("qemu: %v: %s", err, oneLine(summary(out))), nil
	}
	return "a stock kernel ends before it has booted", nil
}

// oneLine makes foreign output fit for a message.
func oneLine(s string) string {
	const most = 300
	s = strings.Map(func(r rune) rune {
		if r < ' ' || r == 0x7f {
			return ' '
		}
		return r
	}, s)
	return s[:min(len(s), most)]
}

// trialWatch collects a console, and stops the trial when the outcome is
// known. exec.Cmd calls it from one goroutine, as both outputs are the same.
type trialWatch struct {
	buf  bytes.Buffer
	stop func()
}

func (w *trialWatch) Write(p []byte) (int, error) {
	w.buf.Write(p[:min(len(p), maxTrialOutput-w.buf.Len())])
	tail := w.buf.Bytes()[max(0, w.buf.Len()-len(p)-len(trialBooted)):]
	if bytes.Contains(tail, []byte(trialBooted)) || bytes.Contains(tail, []byte(trialBroken)) || w.buf.Len() == maxTrialOutput {
		w.stop()
	}
	return len(p), nil
}

func (w *trialWatch) text() string { return w.buf.String() }

// kvmNote is the file that keeps the answer for this boot of the machine, this
// user, and these files; empty when the boot is not known.
func (c *Cache) kvmNote(emulator, image string) string {
	boot, err := os.ReadFile("/proc/sys/kernel/random/boot_id")
	if err != nil {
		return ""
	}
	key := fmt.Sprintf("%s %d %s %s", strings.TrimSpace(string(boot)), os.Geteuid(), emulator, image)
	sum := sha256.Sum256([]byte(key))
	return filepath.Join(c.dir, "kvm", hex.EncodeToString(sum[:8]))
}

// keepKVMNote writes the answer, in place of those of earlier boots. That it
// cannot be kept costs the next probe a second and is only logged.
func (c *Cache) keepKVMNote(note, reason string) {
	err := os.RemoveAll(filepath.Dir(note))
	if err == nil {
		err = os.MkdirAll(filepath.Dir(note), 0o755)
	}
	if err == nil {
		err = writeSynced(note+".new", reason+"\n")
	}
	if err == nil {
		err = os.Rename(note+".new", note)
	}
	if err != nil {
		c.cfg.Log.Info("answer of the kvm probe not kept", "error", err)
	}
}
