// SPDX-License-Identifier: Apache-2.0

package rig

import (
	"context"
	"fmt"
	"io"
	"os"
	"regexp"
	"strconv"
	"syscall"
	"time"

	"github.com/davit-dpu/davit/board/qemuvirt"
	"github.com/davit-dpu/davit/tools/packages"
)

// Boot is how the card's firmware finds its image.
type Boot string

// Ways to boot the emulated card; both go through UEFI and are measured by it.
const (
	BootESP    Boot = "esp"    // from the EFI system partition of the card's storage, as a card does
	BootDirect Boot = "direct" // handed to the firmware by QEMU: some seconds faster
)

// cardDoor is the port of the card's TLS door inside its network.
const cardDoor = 8443

// StartTPM gives the card a TPM: made once for a run's folder, then kept, so
// that a card that is started again is the same card. It outlives the card's
// process, as a TPM's state outlives a power cut.
func (s *Server) StartTPM(ctx context.Context) error {
	state := s.path("tpm")
	if _, err := os.Stat(state); err != nil {
		if err := s.set.ManufactureTPM(ctx, state, s.path("tpm-maker")); err != nil {
			return err
		}
	}
	sock := s.sock("tpm")
	cmd := s.set.Command("swtpm", "socket", "--tpm2", "--tpmstate", "dir="+state,
		"--ctrl", "type=unixio,path="+sock, "--flags", "startup-clear", "--log", "level=1")
	p, err := s.start("swtpm", cmd, syscall.SIGKILL)
	if err != nil {
		return err
	}
	s.TPM = p
	return waitListening(ctx, p, sock)
}

// cardArgs describes the emulated card to QEMU.
func (s *Server) cardArgs(fw packages.Firmware) []string {
	args := []string{
		"-name", "davit-card", "-nodefaults", "-no-user-config", "-display", "none",
		"-M", "virt,acpi=on,nvdimm=on,gic-version=3", "-cpu", "cortex-a72", "-smp", "2",
		"-m", fmt.Sprintf("1G,slots=2,maxmem=%d", uint64(s.cfg.Pool)+4<<30),
		"-qmp", "unix:" + s.sock("card-qmp") + ",server=on,wait=off",
		"-drive", "if=pflash,format=raw,readonly=on,file=" + fw.Code,
		"-drive", "if=pflash,format=raw,file=" + s.path("efivars.fd"),
		// the serial line of a field engineer, and a copy of all it ever said
		"-chardev", "socket,id=console,server=on,wait=off,path=" + s.sock("card-console") + ",logfile=" + s.path("card.log") + ",logappend=on",
		"-serial", "chardev:console",
		"-drive", "if=none,id=disk,format=raw,discard=unmap,file=" + s.path("card.img"),
		"-device", "nvme,drive=disk,serial=davit-card,bootindex=0",
		"-chardev", "socket,id=tpm,path=" + s.sock("tpm"), "-tpmdev", "emulator,id=tpm,chardev=tpm", "-device", "tpm-tis-device,tpmdev=tpm",
		// the bus: messages and doorbells on virtio-serial, DMA into the host's pool
		"-chardev", "socket,id=bus,server=on,wait=off,path=" + s.sock("bus"),
		"-device", "virtio-serial-pci", "-device", "virtserialport,chardev=bus,name=" + qemuvirt.BusPort,
		"-object", fmt.Sprintf("memory-backend-file,id=pool,share=on,size=%d,mem-path=%s", uint64(s.cfg.Pool), s.pool),
		"-device", "nvdimm,memdev=pool,unarmed=off",
		// the management network: closed but for the door
		"-netdev", fmt.Sprintf("user,id=mgmt,restrict=on,hostfwd=tcp:127.0.0.1:0-:%d", cardDoor),
		"-device", "virtio-net-pci,netdev=mgmt,romfile=",
		"-device", "virtio-rng-pci",
	}
	if s.cfg.Boot == BootDirect {
		args = append(args, "-kernel", s.cfg.UKI)
	}
	return args
}

// StartCard powers the card on, for the first time or after its process was
// killed, with the storage, firmware variables and TPM of the run's folder. It
// returns when the machine runs; the door answers later, at a new Address.
func (s *Server) StartCard(ctx context.Context) error {
	fw, err := s.set.Firmware(packages.ArchARM64)
	if err != nil {
		return err
	}
	if _, err := os.Stat(s.path("efivars.fd")); err != nil {
		if err := copyFile(s.path("efivars.fd"), fw.Vars); err != nil {
			return err
		}
	}
	p, err := s.start("card", s.set.Command("qemu-system-aarch64", s.cardArgs(fw)...), syscall.SIGKILL)
	if err != nil {
		return err
	}
	s.Card = p
	if err := waitListening(ctx, p, s.sock("card-qmp")); err != nil {
		return err
	}
	port, err := s.forwardedPort(ctx)
	if err != nil {
		return err
	}
	s.Address = fmt.Sprintf("127.0.0.1:%d", port)
	return nil
}

var forwardRE = regexp.MustCompile(`TCP\[HOST_FORWARD\]\s+\d+\s+\S+\s+(\d+)\s`)

// forwardedPort asks QEMU which port it chose for the door.
func (s *Server) forwardedPort(ctx context.Context) (int, error) {
	call, cancel := context.WithTimeout(ctx, 10*time.Second)
	defer cancel()
	text, err := s.CardMonitor(call, "info usernet")
	if err != nil {
		return 0, err
	}
	m := forwardRE.FindStringSubmatch(text)
	if m == nil {
		return 0, fmt.Errorf("find the card's door in %q", text)
	}
	return strconv.Atoi(m[1])
}

func copyFile(to, from string) error {
	in, err := os.Open(from)
	if err != nil {
		return err
	}
	defer in.Close()
	out, err := os.OpenFile(to, os.O_CREATE|os.O_WRONLY|os.O_TRUNC, 0o600)
	if err != nil {
		return err
	}
	if _, err := io.Copy(out, in); err != nil {
		out.Close()
		return err
	}
	return out.Close()
}
