// SPDX-License-Identifier: Apache-2.0

package main

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"os"
	"strconv"

	"github.com/spf13/pflag"

	"github.com/davit-dpu/davit/firmware/disk"
	"github.com/davit-dpu/davit/firmware/virtio/vblk"
	"github.com/davit-dpu/davit/firmware/virtio/vhostuser"
)

func main() {
	socket := pflag.String("socket", "", "unix socket to listen on")
	pflag.Parse()
	if *socket == "" || pflag.NArg() != 2 {
		fmt.Fprintln(os.Stderr, "usage: blkserver --socket PATH null|memory|file SIZE|PATH")
		os.Exit(2)
	}
	if err := run(*socket, pflag.Arg(0), pflag.Arg(1)); err != nil {
		fmt.Fprintln(os.Stderr, "blkserver:", err)
		os.Exit(1)
	}
}

// run serves until it is killed, or cannot go on.
func run(socket, kind, what string) error {
	log := slog.New(slog.NewTextHandler(os.Stderr, nil))
	volume, err := open(kind, what)
	if err != nil {
		return err
	}
	device, err := vblk.New(volume, vblk.Options{Log: log})
	if err != nil {
		return errors.Join(err, volume.Close())
	}
	listener, err := net.ListenUnix("unix", &net.UnixAddr{Name: socket, Net: "unix"})
	if err != nil {
		return errors.Join(err, volume.Close())
	}
	server := vhostuser.NewServer(device)
	for {
		conn, err := listener.AcceptUnix()
		if err != nil {
			return errors.Join(err, listener.Close(), volume.Close())
		}
		go func() {
			if err := server.Serve(context.Background(), vhostuser.NewSocketConn(conn), vhostuser.Options{Log: log}); err != nil {
				log.Warn("front end", "err", err)
			}
		}()
	}
}

// open makes or opens a volume: of a size, or by its path.
func open(kind, what string) (disk.Volume, error) {
	if kind == "file" {
		f, err := os.OpenFile(what, os.O_RDWR, 0)
		if err != nil {
			return nil, err
		}
		return disk.OpenFile(f, false)
	}
	size, err := strconv.ParseInt(what, 10, 64)
	if err != nil {
		return nil, fmt.Errorf("size: %w", err)
	}
	switch kind {
	case "null":
		return disk.NewNull(size)
	case "memory":
		return disk.NewMemory(size)
	}
	return nil, fmt.Errorf("volume of kind %q: want null, memory or file", kind)
}
