// SPDX-License-Identifier: Apache-2.0

package main

import (
	"cmp"
	"encoding/binary"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
)

// runRoot is pid 1 on the disk; it only returns an error.
func runRoot() error {
	if err := mount("tmpfs", "/run", "tmpfs", 0); err != nil {
		return err
	}
	nonce := cmp.Or(argument("davit.nonce"), serial())
	boot := countBoots()
	fmt.Printf("DAVIT-GUEST root mounted from the card's disk, boot %d\n", boot)
	var off sync.Once
	stop, idle, alone := make(chan struct{}), make(chan struct{}), make(chan struct{})
	// Before the proof: who has read that can press the button and be heard.
	watchPowerButton(func() {
		off.Do(func() {
			fmt.Println("DAVIT-GUEST power button: powering off")
			close(stop)
			<-idle
			endOthers(alone)
			powerOff()
		})
	})
	if err := prove(os.Stdout, "/var/proof", nonce); err != nil {
		fmt.Printf("DAVIT-PROOF nonce=%s error: %v\n", nonce, err)
	} else {
		fmt.Printf("DAVIT-PROOF nonce=%s end\n", nonce)
	}
	go func() {
		defer close(idle)
		if argument("davit.load") != "" {
			load("/var/load", boot, stop)
		}
	}()
	return shells(stop, alone)
}

// argument is the value of key=value on the kernel command line.
func argument(key string) string {
	text, err := os.ReadFile("/proc/cmdline")
	if err != nil {
		return ""
	}
	for _, word := range strings.Fields(string(text)) {
		if value, ok := strings.CutPrefix(word, key+"="); ok {
			return value
		}
	}
	return ""
}

// serial is the disk's serial number.
func serial() string {
	text, err := os.ReadFile("/sys/block/" + disk + "/serial")
	if err != nil {
		return ""
	}
	return strings.TrimSpace(string(text))
}

// countBoots counts on the disk, so that a later boot shows that the disk kept it.
func countBoots() int {
	const path = "/var/boots"
	n := 0
	if text, err := os.ReadFile(path); err == nil {
		fmt.Sscan(string(text), &n)
	}
	n++
	if err := writeSynced(path, fmt.Appendln(nil, n)); err != nil {
		fmt.Println("count boots:", err)
	}
	return n
}

// shells keeps a shell on the console and reaps orphans. After stop it starts
// no more, and closes alone when no other process is left.
func shells(stop <-chan struct{}, alone chan<- struct{}) error {
	for {
		select {
		case <-stop:
			for {
				if _, err := syscall.Wait4(-1, nil, 0, nil); err != nil && err != syscall.EINTR {
					close(alone)
					select {}
				}
			}
		default:
		}
		sh := exec.Command("/bin/sh", "-l")
		sh.Env = []string{"HOME=/root", "PATH=/bin:/sbin", "TERM=vt100", "PS1=demo# "}
		sh.Stdin, sh.Stdout, sh.Stderr = os.Stdin, os.Stdout, os.Stderr
		sh.SysProcAttr = &syscall.SysProcAttr{Setsid: true, Setctty: true}
		if err := sh.Start(); err != nil {
			return fmt.Errorf("start a shell: %w", err)
		}
		for {
			pid, err := syscall.Wait4(-1, nil, 0, nil)
			if err == syscall.EINTR {
				continue
			}
			if err != nil || pid == sh.Process.Pid {
				break
			}
		}
	}
}

// watchPowerButton calls pressed when a KEY_POWER event arrives (linux/input.h:
// struct input_event is two longs of time, then type, code and value). No event
// is lost once it has returned.
func watchPowerButton(pressed func()) {
	files, err := filepath.Glob("/dev/input/event*")
	if err != nil || len(files) == 0 {
		fmt.Println("no power button: stopping this instance will need force")
		return
	}
	for _, name := range files {
		f, err := os.Open(name)
		if err != nil {
			fmt.Println(err)
			continue
		}
		go func() {
			defer f.Close()
			const evKey, keyPower, eventSize = 1, 116, 24
			var event [eventSize]byte
			for {
				if _, err := io.ReadFull(f, event[:]); err != nil {
					return
				}
				kind := binary.NativeEndian.Uint16(event[16:])
				code := binary.NativeEndian.Uint16(event[18:])
				if kind == evKey && code == keyPower && event[20] == 1 {
					pressed()
				}
			}
		}()
	}
}

// endOthers ends all other processes. While devices are shut down, a read from
// the disk would fail: of programs that are loaded page by page, too.
func endOthers(alone <-chan struct{}) {
	for {
		if err := unix.Kill(-1, unix.SIGKILL); err != nil && err != unix.ESRCH {
			fmt.Println("end processes:", err)
		}
		select {
		case <-alone:
			return
		case <-time.After(50 * time.Millisecond): // one may just have been started
		}
	}
}

// keepProgram brings the whole of this program into memory, to stay.
func keepProgram() error {
	self, err := os.Executable()
	if err != nil {
		return err
	}
	maps, err := os.ReadFile("/proc/self/maps")
	if err != nil {
		return err
	}
	for line := range strings.Lines(string(maps)) {
		var from, to uintptr
		if _, err := fmt.Sscanf(line, "%x-%x", &from, &to); err != nil || !strings.HasSuffix(strings.TrimSpace(line), self) {
			continue
		}
		if _, _, errno := unix.Syscall(unix.SYS_MLOCK, from, to-from, 0); errno != 0 {
			return fmt.Errorf("lock %x-%x: %w", from, to, errno)
		}
	}
	return nil
}

// powerOff leaves the disk clean: nothing writes behind the remount.
func powerOff() {
	if err := keepProgram(); err != nil {
		fmt.Println("keep this program in memory:", err)
	}
	unix.Sync()
	if err := unix.Mount("", "/", "", unix.MS_REMOUNT|unix.MS_RDONLY, ""); err != nil {
		fmt.Println("remount read-only:", err)
	}
	unix.Sync()
	if err := unix.Reboot(unix.LINUX_REBOOT_CMD_POWER_OFF); err != nil {
		fmt.Println("power off:", err)
	}
}
