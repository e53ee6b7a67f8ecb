// SPDX-License-Identifier: Apache-2.0

package agent

import (
	"context"
	"errors"
	"fmt"
	"os"
	"time"

	"github.com/davit-dpu/davit/board"
	"github.com/davit-dpu/davit/firmware/bus"
	"github.com/davit-dpu/davit/firmware/control"
	"github.com/davit-dpu/davit/firmware/spec"
)

// windowTimeout bounds the wait for the memory's drivers.
const windowTimeout = 10 * time.Second

// hostPort opens the two things through which a card reaches its host: the
// bus's byte stream and the DMA window. The agent only opens them; what comes
// through is for the vcard that they are handed to.
type hostPort struct {
	board  board.Bus
	pool   string // loopback: the pool file
	socket string // loopback: where hostd connects
}

// present tells whether there is a host at all: a loopback card without a pool
// serves local disks only.
func (h hostPort) present() bool { return h.board.NVDIMM || h.pool != "" }

// aperture opens the DMA window; the memory's device may appear while it waits.
func (h hostPort) aperture(ctx context.Context) (bus.Aperture, error) {
	if h.board.NVDIMM {
		ctx, cancel := context.WithTimeout(ctx, windowTimeout)
		defer cancel()
		return bus.OpenDAX(ctx, bus.DAXSelect{Region: 0})
	}
	if h.pool == "" {
		return bus.Aperture{}, errors.New("no memory pool: name the host's with --pool")
	}
	return bus.OpenPool(h.pool)
}

// poolSize is the size of the host's pool, its reserved head included.
func (h hostPort) poolSize(ctx context.Context) (spec.Bytes, error) {
	a, err := h.aperture(ctx)
	if err != nil {
		return 0, err
	}
	return spec.Bytes(a.PoolOffset + a.Size), a.File.Close()
}

// stream opens the bus: the card's virtio-serial port, or a listening socket.
func (h hostPort) stream() (f *os.File, listen bool, err error) {
	if h.board.Port != "" {
		path, err := bus.FindPort(h.board.Port)
		if err != nil {
			return nil, false, err
		}
		f, err := bus.OpenPort(path)
		return f, false, err
	}
	f, err = listenStream(h.socket)
	return f, true, err
}

// open opens both and describes them; the caller closes the files.
func (h hostPort) open(ctx context.Context) (control.AttachBus, *os.File, *os.File, error) {
	a, err := h.aperture(ctx)
	if err != nil {
		return control.AttachBus{}, nil, nil, fmt.Errorf("window: %w", err)
	}
	stream, listen, err := h.stream()
	if err != nil {
		return control.AttachBus{}, nil, nil, errors.Join(err, a.File.Close())
	}
	return control.AttachBus{
		Listen: listen, WindowBase: spec.Bytes(a.PoolOffset), WindowSize: spec.Bytes(a.Size), FileOffset: spec.Bytes(a.FileOffset),
	}, stream, a.File, nil
}
