// SPDX-License-Identifier: Apache-2.0

package block

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"os"
	"os/exec"
	"os/signal"
	"path/filepath"
	"syscall"
	"testing"

	"github.com/davit-dpu/davit/firmware/disk"
	"github.com/davit-dpu/davit/firmware/virtio/vblk"
	"github.com/davit-dpu/davit/firmware/virtio/vhostuser"
	harness "github.com/davit-dpu/davit/tests/vm"
)

// The test binary is the back-end process too, when these are set.
const (
	envSocket = "DAVIT_TEST_BLOCK_SOCKET"
	envVolume = "DAVIT_TEST_BLOCK_VOLUME"
)

const (
	serial = "davit-test-0001"
	queues = 4
)

func TestMain(m *testing.M) {
	if os.Getenv(envSocket) == "" {
		os.Exit(harness.Main(m))
	}
	err := backEnd(os.Getenv(envSocket), os.Getenv(envVolume))
	fmt.Fprintln(os.Stderr, "back end:", err)
	os.Exit(1)
}

// backEnd serves a volume to front ends that take turns, and has it grow on
// SIGHUP. It only returns with an error.
func backEnd(socket, volume string) error {
	f, err := os.OpenFile(volume, os.O_RDWR, 0)
	if err != nil {
		return err
	}
	v, err := disk.OpenFile(f, false)
	if err != nil {
		return err
	}
	log := slog.New(slog.NewTextHandler(os.Stderr, nil))
	d, err := vblk.New(v, vblk.Options{Serial: serial, Queues: queues, Log: log})
	if err != nil {
		return err
	}
	if err := os.Remove(socket); err != nil && !errors.Is(err, os.ErrNotExist) {
		return err
	}
	l, err := net.ListenUnix("unix", &net.UnixAddr{Name: socket, Net: "unix"})
	if err != nil {
		return err
	}
	hup := make(chan os.Signal, 1)
	signal.Notify(hup, syscall.SIGHUP)
	go func() {
		for range hup {
			size, err := d.Grow()
			log.Info("volume grows", "size", size, "err", err)
		}
	}()
	fmt.Println("listening")
	server := vhostuser.NewServer(d)
	for {
		c, err := l.AcceptUnix()
		if err != nil {
			return err
		}
		go func() {
			err := server.Serve(context.Background(), vhostuser.NewSocketConn(c), vhostuser.Options{Log: log})
			log.Info("session ended", "err", err, "stats", fmt.Sprintf("%+v", d.Stats()))
		}()
	}
}

// process is a running back end.
type process struct {
	cmd *exec.Cmd
	log *os.File
}

// startBackEnd starts a back end and waits until it listens.
func startBackEnd(t *testing.T, dir, volume string) *process {
	t.Helper()
	log, err := os.OpenFile(filepath.Join(dir, "backend.log"), os.O_CREATE|os.O_APPEND|os.O_WRONLY, 0o600)
	if err != nil {
		t.Fatal(err)
	}
	self, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	cmd := exec.Command(self)
	cmd.Env = append(os.Environ(), envSocket+"="+filepath.Join(dir, "sock"), envVolume+"="+volume)
	cmd.Stderr = log
	cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
	out, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	p := &process{cmd: cmd, log: log}
	t.Cleanup(p.kill)
	if _, err := out.Read(make([]byte, 16)); err != nil {
		p.kill()
		b, _ := os.ReadFile(log.Name())
		t.Fatalf("back end did not start: %v\n%s", err, b)
	}
	return p
}

// grow has the back end look at the size of its volume again.
func (p *process) grow(t *testing.T) {
	t.Helper()
	if err := p.cmd.Process.Signal(syscall.SIGHUP); err != nil {
		t.Fatal(err)
	}
}

// kill ends the process at once, and waits until it is gone.
func (p *process) kill() {
	if p.cmd.ProcessState == nil {
		_ = p.cmd.Process.Kill()
		_ = p.cmd.Wait()
		_ = p.log.Close()
	}
}
