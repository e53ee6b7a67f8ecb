// SPDX-License-Identifier: Apache-2.0

package main

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"strings"
	"time"

	"golang.org/x/sys/unix"

	"github.com/davit-dpu/davit/firmware/bus"
	"github.com/davit-dpu/davit/firmware/disk"
	"github.com/davit-dpu/davit/firmware/spec"
	"github.com/davit-dpu/davit/tests/bus/testcard"
)

func main() {
	err := run(context.Background())
	fmt.Println("guest failed:", err)
	_ = unix.Reboot(unix.LINUX_REBOOT_CMD_POWER_OFF)
}

func run(ctx context.Context) error {
	for _, m := range [][2]string{{"proc", "/proc"}, {"sysfs", "/sys"}, {"devtmpfs", "/dev"}} {
		if err := errors.Join(os.MkdirAll(m[1], 0o755), unix.Mount(m[0], m[1], m[0], 0, "")); err != nil {
			return err
		}
	}
	if err := loadModules(); err != nil {
		return err
	}
	window, err := openWindow(ctx)
	if err != nil {
		return err
	}
	port, err := openPort(ctx)
	if err != nil {
		return err
	}
	content, err := os.ReadFile("/disk")
	if err != nil {
		return err
	}
	volume, err := disk.NewMemory(1 << 20)
	if err == nil {
		err = volume.WriteAt([][]byte{content}, 0)
	}
	if err != nil {
		return err
	}
	log := slog.New(slog.NewTextHandler(os.Stdout, nil))
	c := &testcard.Card{Window: window, Volume: volume, Log: log, Event: func(st spec.VMMStatus) { fmt.Printf("event %+v\n", st) }}
	go count(volume)
	return bus.Run(ctx, bus.Config{Role: bus.Card, Build: "guest", Log: log}, port.Dial, func(ctx context.Context, s *bus.Session) error {
		go order(ctx, c)
		return c.Serve(ctx, s)
	})
}

func loadModules() error {
	f, err := os.Open("/modules")
	if err != nil {
		return err
	}
	defer f.Close()
	for s := bufio.NewScanner(f); s.Scan(); {
		m, err := os.Open(s.Text())
		if err != nil {
			return err
		}
		if err := unix.FinitModule(int(m.Fd()), "", 0); err != nil {
			return fmt.Errorf("load %s: %w", s.Text(), err)
		}
		_ = m.Close()
	}
	return nil
}

// openWindow opens the window twice: the second time nothing is left to do.
func openWindow(ctx context.Context) (*bus.Window, error) {
	ctx, cancel := context.WithTimeout(ctx, 20*time.Second)
	defer cancel()
	for range 2 {
		a, err := bus.OpenDAX(ctx, bus.DAXSelect{})
		if err != nil {
			return nil, err
		}
		fmt.Printf("window %s of %d bytes at %d\n", a.File.Name(), a.Size, a.PoolOffset)
		_ = a.File.Close()
	}
	a, err := bus.OpenDAX(ctx, bus.DAXSelect{})
	if err != nil {
		return nil, err
	}
	defer a.File.Close()
	return bus.Map(a)
}

func openPort(ctx context.Context) (*bus.Port, error) {
	for range 100 {
		path, err := bus.FindPort(bus.PortName)
		if errors.Is(err, os.ErrNotExist) {
			time.Sleep(50 * time.Millisecond)
			continue
		}
		if err != nil {
			return nil, err
		}
		f, err := bus.OpenPort(path)
		if err != nil {
			return nil, err
		}
		defer f.Close()
		fmt.Println("port", path)
		fd, err := unix.FcntlInt(f.Fd(), unix.F_DUPFD_CLOEXEC, 0)
		if err != nil {
			return nil, err
		}
		return bus.NewPort(fd)
	}
	return nil, errors.New("no port")
}

// order gives the one order, again in each session.
func order(ctx context.Context, c *testcard.Card) {
	for ctx.Err() == nil {
		u, changed := c.Link.Get()
		if u == nil {
			<-changed
			continue
		}
		st, err := u.Orders.Start(ctx, spec.VMMOrder{
			Instance: "guest", Generation: strings.Repeat("0", 31) + "1", VCPUs: 1, Memory: 64 * spec.MiB, PoolOffset: 64 * spec.MiB,
			Firmware: spec.FirmwareBIOS, Disks: []spec.VMMDisk{{Device: "root", Queues: testcard.Queues}},
		})
		fmt.Printf("ordered %s adopted=%v err=%v\n", st.State, st.Adopted, err)
		return
	}
}

func count(v disk.Volume) {
	last := uint16(0)
	for range time.Tick(100 * time.Millisecond) {
		n, err := testcard.Counter(v)
		if err != nil {
			fmt.Println("guest failed:", err)
		}
		if n != last {
			fmt.Println("counter", n)
		}
		last = n
	}
}
