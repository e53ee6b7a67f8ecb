// SPDX-License-Identifier: Apache-2.0

package nbd

import (
	"context"
	"fmt"
	"log/slog"
	"net"
	"sync"

	"github.com/davit-dpu/davit/firmware/disk"
)

// Config is where a volume comes from, and how it is used.
type Config struct {
	// Dial makes a stream to the server: for the first time in Open, and again
	// whenever one was lost. It may wait as long as it wants, until ctx ends. What it returns is
	// closed by the volume. A connection whose peer is gone without a word must end by
	// itself (TCP keep-alive, TCP_USER_TIMEOUT): the volume sets no limit to a request.
	// Vectors are moved by system calls, without a copy, if it is a TCP or unix socket. Any other
	// stream touches buffers itself, in goroutines that no guestmem.Guard covers: then they must
	// not be memory that can vanish, as a guest's can.
	Dial func(ctx context.Context) (net.Conn, error)
	// Export is the export's name, at most 4096 bytes; "" is the server's default.
	Export string
	// ReadOnly makes a read-only volume. A server's read-only export gives no other.
	ReadOnly bool
	// WriteBack lets the server acknowledge changes that it has in a volatile cache only. Otherwise each
	// change is durable when it ends, if the server can do that (NBD_FLAG_SEND_FUA).
	// See the package's documentation for what that means when a connection is lost.
	WriteBack bool
	// Log gets two lines for each lost connection, of which a server can cause 20 a second. Default: no log.
	Log *slog.Logger
}

// Volume is an export of a server. It implements disk.Volume and disk.Trimmer.
type Volume struct {
	cfg      Config
	export   Export
	volatile bool   // changes need a flush
	fua      uint16 // flag of every change: flagFUA or 0
	log      *slog.Logger

	ctx    context.Context // ends with Close
	cancel context.CancelFunc
	ended  chan struct{} // closed when run has ended
	free   sync.Pool     // of *request

	mu      sync.Mutex
	closed  bool                // guarded by mu
	conn    *conn               // nil while there is none; guarded by mu
	pending map[uint64]*request // by cookie; guarded by mu
	cookie  uint64              // of the newest request; guarded by mu
	changed uint64              // changes that ended and were volatile then; guarded by mu
	durable uint64              // how many of them were flushed; guarded by mu
	lost    error               // why every flush fails; guarded by mu
}

// Open connects to a server and makes a volume of its export. ctx ends the attempt only.
func Open(ctx context.Context, cfg Config) (*Volume, error) {
	if len(cfg.Export) > maxExportName {
		return nil, fmt.Errorf("open nbd volume: name of %d bytes, at most %d", len(cfg.Export), maxExportName)
	}
	if cfg.Log == nil {
		cfg.Log = slog.New(slog.DiscardHandler)
	}
	c, export, err := connect(ctx, cfg)
	if err != nil {
		return nil, fmt.Errorf("open nbd volume %q: %w", cfg.Export, err)
	}
	v := &Volume{
		cfg: cfg, export: export, log: cfg.Log,
		volatile: export.has(sendFlush),
		ended:    make(chan struct{}), pending: map[uint64]*request{},
		free: sync.Pool{New: func() any { return &request{done: make(chan error, 1)} }},
	}
	if export.has(sendFUA) && !cfg.WriteBack {
		v.fua, v.volatile = flagFUA, false
	}
	v.ctx, v.cancel = context.WithCancel(context.Background())
	go v.run(c)
	return v, nil
}

// Info implements disk.Volume.
func (v *Volume) Info() disk.Info { return disk.Info{Size: v.export.Size, ReadOnly: v.cfg.ReadOnly} }

// ReadAt implements disk.Volume.
func (v *Volume) ReadAt(bufs [][]byte, off int64) error {
	return v.transfer("read", cmdRead, 0, bufs, off)
}

// WriteAt implements disk.Volume.
func (v *Volume) WriteAt(bufs [][]byte, off int64) error {
	if v.cfg.ReadOnly {
		return disk.ErrReadOnly
	}
	return v.transfer("write", cmdWrite, v.fua, bufs, off)
}

// transfer moves bufs in pieces that the server takes, one after the other.
func (v *Volume) transfer(what string, cmd, flags uint16, bufs [][]byte, off int64) error {
	var n int64
	for _, b := range bufs {
		n += int64(len(b))
	}
	if err := v.check(off, n); err != nil {
		return err
	}
	for n > 0 {
		size := min(n, int64(v.export.maxPayload))
		piece, rest := disk.Split(bufs, size)
		if err := v.do(cmd, flags, off, uint32(size), piece); err != nil {
			return fmt.Errorf("%s %d bytes at %d: %w", what, size, off, err)
		}
		bufs, off, n = rest, off+size, n-size
	}
	return nil
}

// Flush implements disk.Volume.
func (v *Volume) Flush() error {
	if err := v.open(); err != nil || v.cfg.ReadOnly || !v.export.has(sendFlush) {
		return err
	}
	if err := v.do(cmdFlush, 0, 0, 0, nil); err != nil {
		return fmt.Errorf("flush: %w", err)
	}
	return nil
}

// Discard implements disk.Trimmer. What is read afterwards is the server's choice.
func (v *Volume) Discard(off, n int64) error {
	if v.cfg.ReadOnly {
		return disk.ErrReadOnly
	}
	if err := v.check(off, n); err != nil {
		return err
	}
	if !v.export.has(sendTrim) {
		return fmt.Errorf("discard: %w", disk.ErrNotSupported)
	}
	return v.change("discard", cmdTrim, v.fua, off, n)
}

// WriteZeroes implements disk.Trimmer. Servers that have no fast way get zeroes written.
func (v *Volume) WriteZeroes(off, n int64, unmap bool) error {
	if v.cfg.ReadOnly {
		return disk.ErrReadOnly
	}
	if err := v.check(off, n); err != nil {
		return err
	}
	if !v.export.has(sendWriteZeroes) {
		return disk.Zero(v, off, n)
	}
	flags := v.fua
	if !unmap {
		flags |= flagNoHole
	}
	return v.change("write zeroes", cmdWriteZeroes, flags, off, n)
}

// maxChange is how many bytes one request trims or zeroes. Such requests carry no
// data, and the server's limit for those that do is none for them.
const maxChange = 1 << 30

// change trims or zeroes a range in pieces.
func (v *Volume) change(what string, cmd, flags uint16, off, n int64) error {
	for n > 0 {
		size := min(n, maxChange)
		if err := v.do(cmd, flags, off, uint32(size), nil); err != nil {
			return fmt.Errorf("%s: %d bytes at %d: %w", what, size, off, err)
		}
		off, n = off+size, n-size
	}
	return nil
}

// do executes one request, however long the server is gone meanwhile.
func (v *Volume) do(cmd, flags uint16, off int64, n uint32, bufs [][]byte) error {
	r := v.free.Get().(*request)
	defer v.free.Put(r)
	r.cmd, r.bufs, r.fault = cmd, bufs, nil
	r.phase.Store(unsent)
	c, err := v.register(r, flags, off, n)
	if err != nil {
		return err
	}
	if c != nil {
		c.send(r)
	}
	err = <-r.done
	r.bufs = nil
	return err
}

// register puts a request under way, and returns the connection on which its maker
// must send it; nil: there is none, and it will be sent on the next.
func (v *Volume) register(r *request, flags uint16, off int64, n uint32) (*conn, error) {
	v.mu.Lock()
	defer v.mu.Unlock()
	if v.closed {
		return nil, disk.ErrClosed
	}
	if r.cmd == cmdFlush {
		if v.lost != nil {
			return nil, v.lost
		}
		r.covers = v.changed
	}
	v.cookie++
	r.cookie = v.cookie
	r.head = encodeRequest(flags, r.cmd, r.cookie, off, n)
	v.pending[r.cookie] = r
	return v.conn, nil
}

// check refuses ranges that are not in the volume, or not of whole blocks of the
// server's, and volumes that were closed.
func (v *Volume) check(off, n int64) error {
	if off < 0 || n < 0 || off > v.export.Size || n > v.export.Size-off {
		return fmt.Errorf("%d bytes at %d of %d: %w", n, off, v.export.Size, disk.ErrRange)
	}
	if block := int64(v.export.minBlock); off%block != 0 || n%block != 0 {
		return fmt.Errorf("%d bytes at %d: the server wants whole blocks of %d", n, off, block)
	}
	return v.open()
}

// open fails with disk.ErrClosed when the volume was closed.
func (v *Volume) open() error {
	v.mu.Lock()
	defer v.mu.Unlock()
	if v.closed {
		return disk.ErrClosed
	}
	return nil
}

// Close implements disk.Volume. Requests under way, which could wait for the
// server for ever, end with disk.ErrClosed.
func (v *Volume) Close() error {
	v.mu.Lock()
	if v.closed {
		v.mu.Unlock()
		return disk.ErrClosed
	}
	v.closed = true
	v.mu.Unlock()
	v.cancel()
	<-v.ended
	return nil
}

var (
	_ disk.Volume  = (*Volume)(nil)
	_ disk.Trimmer = (*Volume)(nil)
)
